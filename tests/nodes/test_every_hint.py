"""What holds for every hint node and type, whatever makes the hint: bad pictures above all."""

from __future__ import annotations

import inspect

import aux_weights
import pytest
import tiny_annotators as tiny
import torch
from hint_pictures import ASTRONAUT
from nextcontrol.nodes.extension import NODES
from nextcontrol.nodes.hint_holes import Outpaint
from nextcontrol.nodes.hint_pose import DrawPose
from nextcontrol.nodes.host import aux_detectors, hint_output
from nextcontrol.nodes.host.make_hints import hint_maker, read_options
from nextcontrol.preprocessors.aux_detector import DETECTORS
from nextcontrol.preprocessors.table import PREPROCESSORS, options_of

pytestmark = pytest.mark.usefixtures("one_thread")

HINT_NODES = [node for node in NODES if node.__module__.rpartition(".")[2].startswith("hint_")]
FROM_PICTURES = [node for node in HINT_NODES if node is not DrawPose]
NETWORKS = {"depth": tiny.save_depth_anything, "segmentation": tiny.save_segformer, "detection": tiny.save_yolos}
# Types that have no node of their own name.
NODE_OF = {"pidinet": "SoftEdge", "teed": "SoftEdge", "anyline": "SoftEdge", "lineart_coarse": "Lineart"}


@pytest.fixture(scope="module", autouse=True)
def networks(base_folder, pack_nodes):
    """models/annotators with one of each kind, small ones; detectors of controlnet-aux with random weights."""
    folder = base_folder / "models" / "annotators"
    for task, saver in NETWORKS.items():
        saver(folder / f"bad-{task}")
    tiny.save_vitpose(folder / "bad-pose")
    files = [aux_weights.write_weights(folder, name) for name in DETECTORS if name not in {"openpose_hand", "openpose_face"}]
    yield
    for file in files:
        file.unlink()
    aux_detectors._read.cache_clear()


@pytest.fixture(scope="module", params=FROM_PICTURES, ids=lambda node: node.__name__)
def node(request):
    """Each in turn. The module's scope makes all tests of a node follow each other, and its network is read once."""
    return request.param


@pytest.fixture
def run(monkeypatch):
    """Calls a node with its defaults, and what differs from them."""
    monkeypatch.setattr(hint_output.ui, "PreviewImage", len)

    def call(node: type, image: torch.Tensor, **changes: object):
        given = {"image": image, "resolution": 64}
        for spec in node.define_schema().inputs[2:]:
            if spec.id == "lines":
                given["lines"] = torch.ones(1, *image.shape[1:])
            elif getattr(spec, "default", None) is not None:
                given[spec.id] = spec.default
            elif hasattr(spec, "options"):
                given[spec.id] = next(name for name in spec.options if name.startswith("bad-"))
        return node.execute(**{**given, **changes}).result

    return call


def test_every_hint_node_begins_alike():
    for node in HINT_NODES:
        schema = node.define_schema()
        assert schema.category.rpartition("/")[0] == "NextControl/hints"
        assert [spec.id for spec in schema.inputs[:2]] == ["keypoints" if node is DrawPose else "image", "resolution"]
        assert schema.outputs[0].io_type == "IMAGE"
        assert schema.outputs[0].display_name == "hint"
        assert schema.display_name.partition(" (")[0].endswith(" Hint")


def test_every_type_has_a_node_that_takes_its_options_by_name():
    nodes = {node.__name__.lower(): node for node in FROM_PICTURES}
    for name, row in PREPROCESSORS.items():
        node = nodes[NODE_OF.get(name, name).replace("_", "").lower()]
        assert set(options_of(name)) <= {spec.id for spec in node.define_schema().inputs}, name
        assert row.is_random == ("seed" in inspect.signature(row.make).parameters), name


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (torch.zeros(0, 64, 96, 3), r"^image has no frames \(0, 64, 96, 3\)"),
        (torch.zeros(1, 1, 1, 3), r"^image is 1x1 pixels and each side needs 8 or more"),
        (torch.zeros(1, 64, 96, 4), r"^image has 4 channels \(RGB with alpha\)"),
        (torch.zeros(1, 64, 96, 1), r"^image has 1 channels \(grayscale\)"),
        (torch.full((2, 64, 96, 3), float("nan")), r"^image has NaN or infinite pixels"),
        (torch.full((1, 64, 96, 3), float("inf")), r"^image has NaN or infinite pixels"),
        (torch.zeros(64, 96, 3), r"^image has the shape \(64, 96, 3\)"),
        (torch.full((1, 64, 96, 3), float("inf")).half(), r"^image has NaN or infinite pixels"),
        (torch.full((1, 64, 96, 3), 1e300, dtype=torch.float64), r"^image has NaN or infinite pixels"),
        (torch.zeros(1, 64, 96, 3, dtype=torch.uint8), r"^image has values of the type uint8 and floats .*: divide it by 255"),
        (torch.zeros(1, 64, 96, 3, dtype=torch.int64), r"^image has values of the type int64 and floats from 0 to 1 are"),
        (torch.zeros(1, 64, 96, 3, dtype=torch.bool), r"^image has values of the type bool and floats from 0 to 1 are"),
    ],
    ids=["empty", "one pixel", "alpha", "grayscale", "NaN", "infinity", "no batch", "half", "double", "bytes", "ints", "bool"],
)
def test_a_picture_that_cannot_be_read_is_one_sentence_before_any_network_is_opened(node, image, sentence, run, monkeypatch):
    for place in ("annotators.open_annotator", "pose.open_annotator", "aux_detectors.open_detectors"):
        monkeypatch.setattr(f"nextcontrol.nodes.host.{place}", lambda *_: pytest.fail("opened"))
    with pytest.raises(ValueError, match=sentence) as error:
        run(node, image)
    assert "\n" not in str(error.value)


def test_floats_outside_0_to_1_are_cut_off_and_the_picture_is_left_alone(node, run):
    wild = ASTRONAUT[:, 100:180, 100:180] * 3 - 1
    given = wild.clone()
    hint = run(node, wild)[0]
    assert torch.equal(hint, run(node, wild.clamp(0, 1))[0])
    assert torch.equal(wild, given)
    assert hint.shape[0] == 1
    assert hint.dtype == torch.float32
    assert 0 <= hint.min() <= hint.max() <= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_type_gives_the_hint_of_its_values(node, dtype, run):
    """One hint for the picture as it comes and as fp32, pictures and masks in all inputs, and with the needed ones alone."""
    picture = ASTRONAUT[:, 100:180, 100:180].to(dtype)
    sockets = [spec for spec in node.define_schema().inputs[1:] if spec.get_io_type() in ("IMAGE", "MASK")]
    for is_full in [False, True][: 1 + any(spec.optional for spec in sockets)]:
        names = [spec for spec in sockets if is_full or not spec.optional]
        more = {spec.id: picture if spec.get_io_type() == "IMAGE" else picture[..., 0] for spec in names}
        hint, *rest = run(node, picture, **more)
        expected, *others = run(node, picture.float(), **{name: value.float() for name, value in more.items()})
        assert hint.dtype == torch.float32
        assert torch.equal(hint, expected)
        assert all(torch.equal(a, b) for a, b in zip(rest, others, strict=True) if isinstance(a, torch.Tensor))


def test_the_smallest_picture_gives_a_hint(node, run):
    side = 16 if node is Outpaint else 8  # by default half of its hint is picture
    assert run(node, ASTRONAUT[:, 200:208, 200:208], resolution=0)[0].shape == (1, side, side, 3)


def test_a_network_that_comes_through_a_link_is_not_judged_beforehand(node):
    own = {name: inspect.signature(method.__func__).parameters for name, method in vars(node).items() if "_inputs" in name}
    for name, parameters in own.items():
        links = {key: None for key in parameters if key in {"model", "detector"}}
        assert name == "fingerprint_inputs" or links.keys() == parameters.keys() - {"cls"}
        assert getattr(node, name)(**links) is True or name == "fingerprint_inputs"


# For a dataset


@pytest.mark.parametrize("name", PREPROCESSORS)
def test_every_type_can_be_made_for_a_dataset(name):
    hint = hint_maker(name, {}, "")(ASTRONAUT[:, ::8, ::8], 3)
    assert hint.shape == (1, 64, 64, 3)
    assert 0 <= hint.min() <= hint.max() <= 1


def test_a_color_prompt_of_a_dataset_is_drawn_on_anime_lines():
    hint, lines = (hint_maker(name, {}, "")(ASTRONAUT[:, ::8, ::8], 3) for name in ("color_prompt", "lineart_anime"))
    assert 0.5 < (hint == lines).all(-1).float().mean() < 1


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("canny", '{"low_threshold": "50"}', r"^options' low_threshold is \"50\" and must be a whole number"),
        ("canny", '{"low_threshold": 50.5}', r"^options' low_threshold is 50.5 and must be a whole number"),
        ("canny", '{"thresholds": "auto"}', r"^options' thresholds is 'auto' and must be one of fixed, median"),
        ("hed", '{"safe": 1}', r"^options' safe is 1 and must be true or false"),
        ("boxes", '{"confidence": null}', r"^options' confidence is null and must be a number"),
        ("color_prompt", '{"lines": 1}', r"^options has 'lines' and color_prompt has none"),
        ("pixel", '{"seed": 1}', r"^options has 'seed' and pixel has scale, colors: use one of these"),
    ],
)
def test_options_of_a_wrong_kind_are_one_sentence(name, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_options(name, text)


def test_options_that_fit_are_taken():
    assert read_options("pose", '{"style": "dwpose", "face": false, "max_people": 2, "person_threshold": 1}') == {
        "style": "dwpose", "face": False, "max_people": 2, "person_threshold": 1,
    }  # fmt: skip
