"""The detector nodes with files in models/annotators: found, refused, kept, shown, cancelled."""

from __future__ import annotations

import logging
import pickle
import re
import shutil

import aux_weights
import comfy.model_management
import pytest
import torch
from hint_pictures import ASTRONAUT
from nextcontrol.nodes.host import aux_detectors
from nextcontrol.preprocessors.aux_detector import DETECTORS

PICTURES = ASTRONAUT[:, ::8, ::8].contiguous()
HUB = "hf download lllyasviel/Annotators"
# Node, its inputs beside the picture, the detectors it reads, and the command for the first that is missing.
NODES = {
    "NextControlHED": ({"resolution": 64}, ("hed",), f"{HUB} ControlNetHED.pth"),
    "NextControlSketch": (
        {"resolution": 64, "threshold": 135, "threshold_from": "random", "seed": 3, "hint_for": "ctrlora"},
        ("hed",),
        f"{HUB} ControlNetHED.pth",
    ),
    "NextControlSoftEdge": ({"resolution": 64, "detector": "pidinet"}, ("pidinet",), f"{HUB} table5_pidinet.pth"),
    "NextControlSoftEdge teed": (
        {"resolution": 64, "detector": "teed"}, ("teed",), "hf download TheMistoAI/MistoLine Anyline/MTEED.pth",
    ),
    "NextControlSoftEdge anyline": (
        {"resolution": 64, "detector": "anyline"}, ("teed",), "hf download TheMistoAI/MistoLine Anyline/MTEED.pth",
    ),
    "NextControlLineart": ({"resolution": 64, "detail": "fine", "hint_for": "ctrlora"}, ("lineart",), f"{HUB} sk_model.pth"),
    "NextControlLineart coarse": (
        {"resolution": 64, "detail": "coarse", "hint_for": "plain"}, ("lineart_coarse",), f"{HUB} sk_model2.pth",
    ),
    "NextControlLineartAnime": ({"resolution": 64, "hint_for": "ctrlora"}, ("lineart_anime",), f"{HUB} netG.pth"),
    "NextControlLines": (
        {"resolution": 64, "score_threshold": 0.1, "distance_threshold": 0.1}, ("mlsd",), f"{HUB} mlsd_large_512_fp32.pth",
    ),
    "NextControlNormalBae": ({"resolution": 64}, ("normal_bae",), f"{HUB} scannet.pt"),
    "NextControlOpenPose": (
        {"resolution": 64, "hands": True, "face": True},
        ("openpose", "openpose_hand", "openpose_face"),
        f"{HUB} body_pose_model.pth",
    ),
}  # fmt: skip
cases = pytest.mark.parametrize("case", NODES)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(base_folder, monkeypatch):
    """An empty models/annotators."""
    path = base_folder / "models" / "annotators"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    aux_detectors._read.cache_clear()
    yield path
    shutil.rmtree(path)


def run(pack_nodes, case: str, image: torch.Tensor = PICTURES, **more):
    return pack_nodes[case.split(maxsplit=1)[0]].execute(image, **{**NODES[case][0], **more})


@cases
def test_a_missing_file_is_one_sentence_with_its_command(case, folder, pack_nodes):
    expected = re.escape(f"{NODES[case][2]} --local-dir models/annotators' in ComfyUI's folder.")
    with pytest.raises(FileNotFoundError, match=rf"^models/annotators/\S+ is not there: fetch it with '{expected}$"):
        run(pack_nodes, case)


@cases
def test_a_node_reads_its_files_and_shows_its_hint(case, folder, pack_nodes):
    names = NODES[case][1]
    for name in names:
        # As `hf download` leaves them: most at the top, MTEED.pth in a folder.
        aux_weights.write_weights(folder / "Anyline" if name == "teed" else folder, name, is_zero=name.startswith("openpose"))
    output = run(pack_nodes, case)
    hint = output.result[0]
    assert hint.shape == (1, 64, 64, 3)
    assert hint.dtype == torch.float32
    assert hint.min() >= 0
    assert hint.max() <= 1
    assert hint.any() == (case != "NextControlOpenPose"), "weights of zeros find nobody"
    assert len(output.ui.as_dict()["images"]) == 1
    held = {id(module) for loaded in comfy.model_management.current_loaded_models for module in loaded.model.model.children()}
    before = aux_detectors._read.cache_info().misses
    networks = [detector.network for detector in aux_detectors.open_detectors(names)]
    assert aux_detectors._read.cache_info().misses == before, "read once"
    assert {id(network) for network in networks} <= held, "the host owns their memory"
    assert not any(parameter.requires_grad for network in networks for parameter in network.parameters())


def test_the_file_that_lies_least_deep_is_taken(folder):
    deep = aux_weights.write_weights(folder / "a" / "b", "teed")
    assert aux_detectors.find_weights("teed") == deep
    top = aux_weights.write_weights(folder, "teed")
    assert aux_detectors.find_weights("teed") == top


def test_a_file_that_is_replaced_is_read_again(folder, pack_nodes):
    aux_weights.write_weights(folder, "teed")
    first = run(pack_nodes, "NextControlSoftEdge teed").result[0]
    aux_weights.write_weights(folder, "teed", is_zero=True)
    assert not torch.equal(first, run(pack_nodes, "NextControlSoftEdge teed").result[0])


def test_a_wrong_or_damaged_file_is_one_sentence(folder, pack_nodes):
    case, path = "NextControlSoftEdge teed", folder / DETECTORS["teed"].file
    aux_weights.write_weights(folder, "pidinet").rename(path)
    with pytest.raises(ValueError, match=r"^'MTEED\.pth' does not hold the weights of MTEED\.pth: 36 tensors are missing"):
        run(pack_nodes, case)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"^'MTEED\.pth' \(2000 bytes\) cannot be read .* download it again\.$"):
        run(pack_nodes, case)
    path.write_bytes(pickle.dumps({"weight": pytest.raises}))
    with pytest.raises(ValueError, match=r"^'MTEED\.pth' "):
        run(pack_nodes, case)
    tensors = torch.load(aux_weights.write_weights(folder, "teed"), weights_only=True)
    torch.save({key: value * float("nan") for key, value in tensors.items()}, path)
    with pytest.raises(ValueError, match=r"^'MTEED\.pth' has NaN or infinite values in"):
        run(pack_nodes, case)


def test_bad_choices_are_refused_before_anything_is_read(folder, pack_nodes):
    with pytest.raises(ValueError, match=r"detector is 'dexined' and must be one of"):
        run(pack_nodes, "NextControlSoftEdge", detector="dexined")
    with pytest.raises(ValueError, match=r"hint_for is 'sdxl' and must be one of"):
        run(pack_nodes, "NextControlLineart", hint_for="sdxl")
    with pytest.raises(ValueError, match=r"body, hands and face are all off"):
        run(pack_nodes, "NextControlOpenPose", body=False, hands=False, face=False)


def test_a_clip_goes_through_in_pieces_and_can_be_cancelled(folder, pack_nodes, monkeypatch, cancel_at):
    aux_weights.write_weights(folder, "teed")
    monkeypatch.setattr(aux_detectors, "BATCH_PIXELS", 2 * 64 * 64)
    clip = torch.cat([PICTURES.roll(shift, 2) for shift in range(5)])
    whole = run(pack_nodes, "NextControlSoftEdge teed", clip).result[0]
    single = torch.cat([run(pack_nodes, "NextControlSoftEdge teed", frame[None]).result[0] for frame in clip])
    assert (whole - single).abs().max() <= 1 / 255 + 1e-6
    told = cancel_at(1, len(clip))
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(pack_nodes, "NextControlSoftEdge teed", clip)
    assert told == [2]


def test_black_hints_of_a_clip_are_named_once_in_the_log(folder, pack_nodes, monkeypatch, caplog):
    for name in ("openpose", "mlsd"):
        aux_weights.write_weights(folder, name, is_zero=True)
    monkeypatch.setattr(aux_detectors, "BATCH_PIXELS", 64 * 64)
    with caplog.at_level(logging.WARNING, "nextcontrol"):
        assert (
            not run(pack_nodes, "NextControlOpenPose", PICTURES.expand(2, -1, -1, -1), hands=False, face=False).result[0].any()
        )
        assert not run(pack_nodes, "NextControlLines", PICTURES.expand(2, -1, -1, -1), score_threshold=1.0).result[0].any()
    assert [record.message for record in caplog.records] == [
        "No person in 2 of 2 pictures: their hints are black.",
        "No straight line in 2 of 2 pictures: their hints are black.",
    ]


def test_a_random_sketch_of_a_clip_has_one_threshold_or_one_for_each_frame(folder, pack_nodes):
    aux_weights.write_weights(folder, "hed")
    clip = PICTURES.expand(3, -1, -1, -1)
    same = run(pack_nodes, "NextControlSketch", clip).result[0]
    assert torch.equal(same[0], same[1])
    each = run(pack_nodes, "NextControlSketch", clip, per_frame=True).result[0]
    assert torch.equal(each[0], same[0])
    assert any(not torch.equal(each[0], frame) for frame in each[1:])
