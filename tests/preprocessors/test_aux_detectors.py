"""Detectors of controlnet-aux: the package's own results at its own sizes, and right at every other size."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from pathlib import Path

import aux_weights
import cv2
import numpy as np
import pytest
import torch
from hint_pictures import ASTRONAUT
from nextcontrol.models.state_dict import unwrap
from nextcontrol.preprocessors import aux_detector
from nextcontrol.preprocessors.annotator import Annotator
from nextcontrol.preprocessors.aux_detector import DETECTORS, build_detector, import_aux
from nextcontrol.preprocessors.canvas import to_bytes
from nextcontrol.preprocessors.hed import ATTEMPTS, HIGHEST, LOWEST, hed, sketch, sketch_of
from nextcontrol.preprocessors.lineart import lineart, lineart_anime
from nextcontrol.preprocessors.lines import find_lines, lines
from nextcontrol.preprocessors.soft_edge import anyline, dark_strokes, pidinet, teed
from nextcontrol.preprocessors.table import PREPROCESSORS
from torch.nn import functional as F

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[2]
SIDE = 64
PICTURE = torch.from_numpy(np.asarray(cv2.resize(np.uint8(ASTRONAUT[0].numpy() * 255 + 0.5), (SIDE, SIDE))))[None] / 255
BYTES = np.uint8(PICTURE[0].numpy() * 255 + 0.5)
# Side maps are resized and averaged by torch here and by OpenCV there: a level may be cut differently.
LEVEL = 1 / 255 + 1e-6

# Name in the table, then how the package is asked for the same: its class, its weights and its own arguments.
SAME = {
    "hed": ("HEDdetector", ("hed",), {}),
    "pidinet": ("PidiNetDetector", ("pidinet",), {}),
    "lineart": ("LineartDetector", ("lineart", "lineart_coarse"), {}),
    "lineart_coarse": ("LineartDetector", ("lineart", "lineart_coarse"), {"coarse": True}),
    "lineart_anime": ("LineartAnimeDetector", ("lineart_anime",), {}),
    "lines": ("MLSDdetector", ("mlsd",), {}),
    "normal_bae": ("NormalBaeDetector", ("normal_bae",), {}),
}
THRESHOLDS = (((0.1, 0.1), (0.9, 0.1)), ((0.1, 0.1), (0.1, 5.0)))
INVERTED = {"lineart", "lineart_coarse", "lineart_anime"}


def read(path: Path, name: str) -> Annotator:
    tensors = unwrap(torch.load(path, map_location="cpu", weights_only=True))
    return Annotator(path.name, build_detector(name, tensors, path.name), None)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("annotators")


@pytest.fixture(scope="module")
def network(weights):
    """Networks by name, each written and read once."""
    made: dict[str, Annotator] = {}

    def get(name: str) -> Annotator:
        if name not in made:
            made[name] = read(aux_weights.write_weights(weights, name), name)
        return made[name]

    return get


@pytest.fixture(scope="module")
def package():
    import_aux("util")
    return importlib.import_module("controlnet_aux")


def ask(package, class_name: str, folder: Path, picture: np.ndarray, **arguments) -> np.ndarray:
    """The package's own answer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detector = getattr(package, class_name).from_pretrained(str(folder))
        return detector(picture, output_type="np", **arguments)


@pytest.mark.parametrize("name", SAME)
def test_the_hint_is_the_package_s_own(name, network, package, weights):
    class_name, needed, arguments = SAME[name]
    for other in needed:
        network(other)
    expected = ask(package, class_name, weights, BYTES, detect_resolution=SIDE, image_resolution=SIDE, **arguments)
    found = PREPROCESSORS[name].make(PICTURE, SIDE, network(PREPROCESSORS[name].task))[0]
    if name in INVERTED:
        found = 1 - found
    difference = (found - torch.from_numpy(expected) / 255).abs()
    assert difference.max() <= LEVEL
    assert (difference > 1e-6).float().mean() < 0.03
    assert found.std() > 0.02


@pytest.mark.parametrize("name", ["hed", "sketch", "pidinet", "teed", "anyline", "lineart", "lines"])
def test_a_batch_is_its_pictures_one_by_one_at_any_size(name, network):
    row = PREPROCESSORS[name]
    frames = torch.cat([PICTURE, PICTURE.flip(2), 1 - PICTURE])[:, :, :41]
    hints = row.make(frames, 0, network(row.task))
    assert hints.shape == (3, 64, 40, 3)
    assert hints.dtype == torch.float32
    assert hints.device.type == "cpu"
    assert hints.min() >= 0
    assert hints.max() <= 1
    single = torch.cat([row.make(frame[None], 0, network(row.task)) for frame in frames])
    assert (hints - single).abs().max() <= LEVEL
    assert row.make(frames[:1, :8, :8], 0, network(row.task)).shape == (1, 8, 8, 3)
    assert row.make(frames[:1], 128, network(row.task)).shape == (1, 192, 128, 3)


@pytest.mark.parametrize("name", ["lineart_anime", "normal_bae"])
def test_a_batch_of_the_large_networks_is_its_pictures_one_by_one(name, network):
    frames = torch.cat([PICTURE, 1 - PICTURE])[:, :24, :41]
    make, detector = PREPROCESSORS[name].make, network(name)
    hints = make(frames, 0, detector)
    assert hints.shape == (2, 24, 40, 3)
    assert (hints[1:] - make(frames[1:], 0, detector)).abs().max() <= LEVEL


def test_line_drawings_are_black_on_white_for_ctrlora_alone(network):
    # Their last layer is a sigmoid or tanh that is near 1 on paper: with random weights only the inversion shows.
    picture = PICTURE[:, :32, :32]
    for make, name in ((lineart, "lineart"), (lineart_anime, "lineart_anime")):
        plain = make(picture, 0, network(name), "plain")
        assert torch.allclose(make(picture, 0, network(name)), 1 - plain)
    assert torch.equal(*(lineart(picture, 0, network("lineart"), other) for other in ("plain", "controlnext")))


def test_safe_edges_have_three_levels(network):
    for make, name in ((hed, "hed"), (pidinet, "pidinet"), (teed, "teed")):
        assert len(make(PICTURE, SIDE, network(name)).unique()) > 10
        assert set((make(PICTURE, SIDE, network(name), safe=True) * 255).round().unique().tolist()) <= {0.0, 127.0, 255.0}


# Sketch


def drawn_edges(level: int) -> torch.Tensor:
    """A hint of soft edges: a cross of one grey level on black."""
    edges = torch.zeros(1, 64, 64, 3)
    edges[:, 30:34], edges[:, :, 30:34] = level / 255, level / 255
    return edges


def test_a_sketch_is_black_on_white_and_blurred_a_little():
    found = sketch_of(drawn_edges(200), 135)
    lines_of = np.where(np.uint8(drawn_edges(200)[0, ..., 0].numpy() * 255 + 0.5) > 135, 0, 255).astype(np.uint8)
    expected = torch.from_numpy(cv2.GaussianBlur(lines_of, (3, 3), 0)) / 255
    assert torch.equal(found[0], expected[..., None].expand(-1, -1, 3))
    assert found[0, 0, 0, 0] == 1
    assert found[0, 31, 31, 0] == 0
    assert torch.equal(sketch_of(drawn_edges(200), 135, hint_for="plain"), 1 - found)
    assert torch.equal(sketch_of(drawn_edges(135), 135), torch.ones(1, 64, 64, 3))


def test_a_sketch_that_is_nearly_empty_is_drawn_again_from_the_edges():
    level = 125
    draws = {seed: np.random.default_rng(seed).integers(LOWEST, HIGHEST + 1, size=ATTEMPTS) for seed in range(200)}
    late = next(seed for seed, drawn in draws.items() if (drawn[:2] >= level).all() and (drawn[2:] < level).any())
    found = sketch_of(drawn_edges(level), 0, "random", late)
    assert torch.equal(found, sketch_of(drawn_edges(level), level - 1))
    assert found[0, 0, 0, 0] == 1, "the ground is white after any number of attempts"


def test_a_random_sketch_depends_on_its_seed_alone(network):
    edges = hed(PICTURE, 0, network("hed"))
    ramp = torch.linspace(0, 1, 64)[None, None, :, None].expand(2, 64, 64, 3)
    assert torch.equal(*sketch_of(ramp, 0, "random", 5).split(1))
    first, second = sketch_of(ramp, 0, "random", [5, 6]).split(1)
    assert torch.equal(first, sketch_of(ramp[:1], 0, "random", 5))
    assert not torch.equal(first, second)
    assert torch.equal(sketch(PICTURE, 0, network("hed"), 140), sketch_of(edges, 140))
    with pytest.raises(ValueError, match=r"threshold \(255\) must be from 0 to 254"):
        sketch_of(ramp, 255)


# Lines


def test_a_picture_without_lines_is_black(network):
    assert not lines(PICTURE, SIDE, network("mlsd"), 1.0).any()
    with pytest.raises(ValueError, match=r"score_threshold \(2\) must be from 0 to 1\."):
        lines(PICTURE, SIDE, network("mlsd"), 2)


def test_fewer_lines_pass_a_higher_threshold(network):
    picture = to_bytes(PICTURE)[0]
    scores, distances = ([len(find_lines(picture, network("mlsd"), *pair)) for pair in pairs] for pairs in THRESHOLDS)
    assert 0 < scores[1] < scores[0]
    assert 0 < distances[1] < distances[0]
    assert set(lines(PICTURE, SIDE, network("mlsd")).unique().tolist()) == {0.0, 1.0}


# Anyline


def test_dark_strokes_are_the_package_s(package):
    from skimage import measure

    picture = np.float32(ASTRONAUT[0].numpy() * 255)
    depth = (cv2.GaussianBlur(picture, (0, 0), 2.0) - picture).min(axis=2).clip(0, 255)
    strokes = (depth / max(16, np.median(depth[depth > 3])) * 127).clip(0, 255).astype(np.uint8)
    tripled = np.repeat(strokes[..., None], 3, axis=2)
    # Releases of scikit-image disagree on whether remove_small_objects keeps what has exactly the smallest size.
    labels = measure.label(tripled > 0, connectivity=1)
    expected = tripled * (np.bincount(labels.ravel()) >= 36)[labels]
    assert np.array_equal(dark_strokes(picture), expected[..., 0])
    assert np.array_equal(dark_strokes(np.zeros((16, 16, 3), np.float32)), np.zeros((16, 16)))


# Real weights


def test_teed_with_its_real_weights_finds_the_edges_of_a_photograph(package):
    places = [Path(os.environ.get("NEXTCONTROL_ASSETS", "/nonexistent")), ROOT.parent / "shared" / "assets"]
    path = next((place / "MTEED.pth" for place in places if (place / "MTEED.pth").is_file()), None)
    if path is None:
        pytest.skip("no MTEED.pth in $NEXTCONTROL_ASSETS or ../shared/assets: TEED runs with random weights only")
    detector = read(path, "teed")
    picture = np.uint8(ASTRONAUT[0].numpy() * 255 + 0.5)
    found = teed(ASTRONAUT, 512, detector)
    own = package.TEEDdetector.from_pretrained(str(path.parent), path.name)
    assert (found[0] - torch.from_numpy(own(picture, 512, 0, "np")) / 255).abs().max() <= LEVEL
    edges = F.max_pool2d(torch.from_numpy(cv2.Canny(picture, 100, 200))[None].float(), 3, 1, 1)[0] > 0
    for hint in (found, anyline(ASTRONAUT, 512, detector)):
        brightness = hint[0, ..., 0]
        assert brightness[edges].mean() > 3 * brightness[~edges].mean()
        assert brightness.median() < 0.2, "white on black"


# What cannot be read or imported


def test_every_file_is_known_to_the_catalogue():
    from nextcontrol.models.catalogue import CATALOGUE, command_for

    known = {item.name: item for item in CATALOGUE}
    for name, row in DETECTORS.items():
        item = known[row.file]
        assert item.task == name
        assert item.folder == "annotators"
        assert item.files[0].rpartition("/")[2] == row.file
        assert f"hf download {item.repository} {item.files[0]} --local-dir models/annotators'" in command_for(
            row.file, "annotators", name
        )


@pytest.mark.parametrize("name", ["hed", "pidinet", "teed", "openpose"])
def test_weights_of_another_network_are_refused(name, network):
    other = "pidinet" if name != "pidinet" else "teed"
    tensors = network(other).network.state_dict()
    with pytest.raises(ValueError, match=r"^'x\.pth' does not hold the weights of .*: .* first; download .* again\.$"):
        build_detector(name, tensors, "x.pth")


def test_a_surplus_tensor_and_a_wrong_shape_are_named(network):
    tensors = dict(network("teed").network.state_dict())
    with pytest.raises(ValueError, match=r"1 belong to another network, 'extra\.weight' first"):
        build_detector("teed", tensors | {"extra.weight": torch.zeros(1)}, "x.pth")
    key = next(iter(tensors))
    with pytest.raises(ValueError, match=f"1 have another shape, '{key}' first"):
        build_detector("teed", tensors | {key: torch.zeros(1)}, "x.pth")


@pytest.fixture
def afresh(monkeypatch):
    """The package is imported anew in this test, and as it was afterwards."""
    for name in [name for name in sys.modules if name.partition(".")[0] == aux_detector.PACKAGE]:
        monkeypatch.delitem(sys.modules, name)
    yield monkeypatch
    for name in [name for name in sys.modules if name.partition(".")[0] == aux_detector.PACKAGE]:
        del sys.modules[name]
    importlib.invalidate_caches()


def test_without_the_package_the_error_says_how_to_install_it(afresh):
    afresh.setattr(sys, "path", [place for place in sys.path if not (Path(place) / aux_detector.PACKAGE).is_dir()])
    importlib.invalidate_caches()
    with pytest.raises(ImportError, match=r"^This hint needs the package controlnet-aux: run 'python -m pip install cont"):
        import_aux("hed")


def test_beside_a_mediapipe_without_solutions_the_error_says_what_to_remove(afresh, tmp_path):
    (tmp_path / "mediapipe").mkdir()
    (tmp_path / "mediapipe" / "__init__.py").write_text('__version__ = "0.10.30"\n')
    afresh.syspath_prepend(str(tmp_path))
    afresh.delitem(sys.modules, "mediapipe", raising=False)
    with pytest.raises(ImportError, match=r"beside this mediapipe.*'python -m pip uninstall mediapipe'") as caught:
        import_aux("hed")
    assert isinstance(caught.value.__cause__, AttributeError)
    sys.modules.pop("mediapipe", None)


def test_a_package_that_controlnet_aux_lacks_is_named(afresh):
    afresh.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"^controlnet-aux is there but 'timm'.*'python -m pip install controlnet-aux'"):
        import_aux("hed")


def test_any_other_failure_of_its_import_is_told(afresh, tmp_path):
    (tmp_path / "controlnet_aux").mkdir()
    (tmp_path / "controlnet_aux" / "__init__.py").write_text('raise RuntimeError("made for another age")\n')
    afresh.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError, match=r"cannot be imported \(RuntimeError: made for another age\): run 'python -m pip"):
        import_aux("hed")
