"""The nodes whose hints a network makes, on the host."""

from __future__ import annotations

import json
import shutil

import comfy.model_management as management
import pytest
import tiny_annotators as tiny
import torch
from hint_pictures import ASTRONAUT
from nextcontrol.nodes.host.annotators import FRAMES_PER_PIECE
from nextcontrol.preprocessors.annotator import load_annotator
from nextcontrol.preprocessors.boxes import boxes
from nextcontrol.preprocessors.depth import depth
from nextcontrol.preprocessors.normal import normal, normal_from_depth
from nextcontrol.preprocessors.segment import segment

pytestmark = pytest.mark.usefixtures("one_thread")

SAVERS = {
    "NextControlDepth": ("depth", tiny.save_depth_anything), "NextControlNormal": ("depth", tiny.save_depth_anything),
    "NextControlSegment": ("segmentation", tiny.save_segformer), "NextControlBoxes": ("detection", tiny.save_yolos),
}  # fmt: skip
OPTIONS = {"NextControlDepth": ("ctrlora",), "NextControlNormal": (0.02, 1.0), "NextControlBoxes": (0.05, 0.5)}
CLIP = torch.cat([ASTRONAUT, 1 - ASTRONAUT, ASTRONAUT.flip(1)])[[0, 1, 2, 0, 2, 1], :150, :200]
node_ids = pytest.mark.parametrize("node_id", SAVERS)


@pytest.fixture(scope="module", autouse=True)
def place(base_folder):
    """models/annotators with a folder of each kind, named after its task."""
    folder = base_folder / "models" / "annotators"
    shutil.rmtree(folder, ignore_errors=True)
    for task, saver in set(SAVERS.values()):
        saver(folder / task)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def run(pack_nodes):
    """Execute a node with its defaults."""

    def run(node_id: str, image: torch.Tensor = CLIP, model: str | None = None, resolution: int = 64, **more: object):
        options = OPTIONS.get(node_id, ())
        return pack_nodes[node_id].execute(image, resolution, model or SAVERS[node_id][0], *options, **more)

    return run


def test_every_node_gives_its_preprocessors_hints(run, place):
    networks = {task: load_annotator(place / task, task) for task, _ in SAVERS.values()}
    expected = {
        "NextControlDepth": lambda clip: depth(clip, 64, networks["depth"]),
        "NextControlNormal": lambda clip: normal(clip, 64, networks["depth"]),
        "NextControlSegment": lambda clip: segment(clip, 64, networks["segmentation"]),
        "NextControlBoxes": lambda clip: boxes(clip, 64, networks["detection"], 0.05, 0.5),
    }
    assert len(CLIP) > FRAMES_PER_PIECE
    for node_id, make in expected.items():
        pieces = [make(CLIP[start : start + FRAMES_PER_PIECE]) for start in range(0, len(CLIP), FRAMES_PER_PIECE)]
        found = run(node_id).result[0]
        assert torch.equal(found, torch.cat(pieces)), node_id
        assert found.std() > 0.02, node_id


@node_ids
def test_a_hint_is_on_the_cpu_in_range_and_shown(run, node_id):
    output = run(node_id, CLIP[:2])
    hint = output.result[0]
    assert hint.shape == (2, 64, 64, 3)
    assert hint.dtype == torch.float32
    assert hint.device.type == "cpu"
    assert hint.min() >= 0
    assert hint.max() <= 1
    assert len(output.ui.as_dict()["images"]) == 2


@node_ids
def test_the_list_shows_the_folders_and_the_known_networks(pack_nodes, node_id):
    task = SAVERS[node_id][0]
    (options,) = (spec.options for spec in pack_nodes[node_id].define_schema().inputs if spec.id == "model")
    assert options[0] == task
    assert len(options) > 1


@node_ids
def test_a_network_that_is_missing_is_a_sentence_with_the_command(run, pack_nodes, node_id):
    (options,) = (spec.options for spec in pack_nodes[node_id].define_schema().inputs if spec.id == "model")
    with pytest.raises(FileNotFoundError, match=rf"{options[-1]} --local-dir models/annotators/{options[-1]}' in ComfyUI's"):
        run(node_id, model=options[-1])


@pytest.mark.parametrize("node_id", [node_id for node_id in SAVERS if node_id != "NextControlNormal"])
def test_a_wrong_or_missing_network_is_named_before_anything_runs(pack_nodes, node_id):
    node = pack_nodes[node_id]
    assert node.validate_inputs(SAVERS[node_id][0]) is True
    assert "is not there: " in node.validate_inputs("x")
    other = "depth" if SAVERS[node_id][0] != "depth" else "detection"
    assert "choose another folder" in node.validate_inputs(other)


@node_ids
def test_a_network_for_another_task_is_named(run, node_id):
    other = "depth" if SAVERS[node_id][0] != "depth" else "detection"
    with pytest.raises(ValueError, match=f"'{other}' is a network for .* and one for .* is needed: choose another folder"):
        run(node_id, model=other)


@node_ids
def test_a_changed_file_runs_the_node_again(pack_nodes, place, node_id):
    task, saver = SAVERS[node_id]
    stamp = pack_nodes[node_id].fingerprint_inputs(model=task, resolution=512)
    assert stamp == pack_nodes[node_id].fingerprint_inputs(model=task, resolution=512)
    saver(place / task, seed=1)
    assert pack_nodes[node_id].fingerprint_inputs(model=task, resolution=512) != stamp
    saver(place / task)


@node_ids
def test_a_clip_can_be_cancelled_in_its_middle(run, cancel_at, node_id):
    told = cancel_at(12, 24)
    with pytest.raises(management.InterruptProcessingException):
        run(node_id, CLIP.repeat(4, 1, 1, 1))
    assert 12 <= told[-1] < 12 + FRAMES_PER_PIECE


def test_an_unknown_choice_is_a_sentence(pack_nodes):
    with pytest.raises(ValueError, match="hint_for"):
        pack_nodes["NextControlDepth"].execute(CLIP, 64, "depth", "video")


def test_depth_takes_its_options(run, pack_nodes, place):
    network = load_annotator(place / "depth", "depth")
    found = pack_nodes["NextControlDepth"].execute(CLIP[:2], 64, "depth", "controlnext", True).result[0]
    assert torch.equal(found, depth(CLIP[:2], 64, network, "controlnext", True))


def test_a_depth_picture_makes_normals_without_a_network(run, monkeypatch):
    monkeypatch.setattr("nextcontrol.nodes.host.annotators.load_annotator", lambda *_: pytest.fail("read"))
    monkeypatch.setattr("nextcontrol.nodes.host.annotators.find_annotator", lambda *_: pytest.fail("looked for"))
    (found,) = run("NextControlNormal", ASTRONAUT, model="not there", depth=CLIP).result
    assert found.shape == (6, 64, 64, 3)
    assert torch.equal(found, normal_from_depth(CLIP, 64, 0.02, 1.0))


def test_a_depth_picture_that_cannot_be_read_is_named(run):
    with pytest.raises(ValueError, match="depth has 4 channels"):
        run("NextControlNormal", depth=torch.zeros(1, 64, 64, 4))


def test_boxes_come_as_text_too(run):
    hints, text = run("NextControlBoxes").result
    found = json.loads(text)
    assert [len(picture) > 0 for picture in found] == [True] * 6
    for hint, picture in zip(hints, found, strict=True):
        for thing in picture:
            assert set(thing) == {"label", "score", "box"}
            left, top, right, bottom = thing["box"]
            assert 0 <= left <= right <= 64
            assert 0 <= top <= bottom <= 64
            assert 0.05 < thing["score"] <= 1
        left, top, right, bottom = picture[0]["box"]
        assert hint[top:bottom, left:right].sum() > 0
    nothing = run("NextControlBoxes", CLIP[:1])
    assert nothing.result[1] == json.dumps(found[:1])
