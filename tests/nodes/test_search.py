"""The words that people type find the right nodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from node_search import SHOWN, search

ROOT = Path(__file__).resolve().parents[2]
# What is typed, and the nodes that it must find, by the part of their ids after NextControl.
WORDS = {
    "controlnext": "LoadControlNeXt ApplyControlNeXt TrainControlNeXt",
    "ctrlora": "LoadCtrLoRA LoadCtrLoRABase TrainCtrLoRA",
    "control lora": "LoadCtrLoRA LoadCtrLoRABase TrainCtrLoRA",
    "train controlnet": "TrainControlNeXt TrainCtrLoRA",
    "train controlnext": "TrainControlNeXt",
    "train lora": "TrainCtrLoRA",
    "training data": "MakePairs PairDataset",
    "multi controlnet": "StackControl ApplyStack",
    "stack controlnet": "StackControl ApplyStack",
    "apply controlnet": "ApplyControlNeXt ApplyStack",
    "load controlnet": "LoadControlNeXt",
    "palette": "Palette",
    "color palette": "Palette",
    "reference colors": "Palette",
    "recolor": "Grayscale",
    "colorize": "Grayscale",
    "grayscale": "Grayscale",
    "pixel art": "Pixel",
    "pose": "Pose OpenPose DrawPose AlignPose PoseVideoConditioning",
    "pose video": "PoseVideoConditioning AlignPose",
    "openpose": "OpenPose Pose DrawPose",
    "dwpose": "Pose DrawPose",
    "svd": "PoseVideoConditioning",
    "long video": "VideoWindows",
    "depth map": "Depth",
    "depth": "Depth",
    "normal map": "Normal NormalBae",
    "normalbae": "NormalBae",
    "lineart": "Lineart LineartAnime",
    "line art": "Lineart LineartAnime",
    "sketch": "Sketch",
    "scribble": "Sketch",
    "edge": "Canny HED SoftEdge",
    "edges": "Canny HED SoftEdge",
    "canny": "Canny",
    "soft edge": "SoftEdge HED",
    "softedge": "SoftEdge HED",
    "hed": "HED",
    "pidinet": "SoftEdge",
    "teed": "SoftEdge",
    "mlsd": "Lines",
    "mask": "Inpaint",
    "inpaint": "Inpaint Outpaint",
    "uncrop": "Outpaint",
    "segment": "Segment",
    "segmentation": "Segment",
    "bounding box": "Boxes",
    "bbox": "Boxes",
    "blur": "Blur",
    "jpeg": "Jpeg",
    "illusion": "Illusion",
    "shuffle": "Shuffle",
    "model info": "InspectFile",
    "video decode": "DecodeVideo",
}
# What is found where the page looks at aliases too: for such words a display name has no room.
ALIASES = {
    "preprocessor": "Canny HED Sketch SoftEdge Lineart Lines Depth Normal OpenPose Pose Palette Segment Boxes Inpaint",
    "finetune": "TrainCtrLoRA TrainControlNeXt",
    "captions": "MakePairs",
    "control next": "LoadControlNeXt TrainControlNeXt",
    "edge detection": "Canny",
    "midas": "Depth Normal",
    "depth anything": "Depth",
    "skeleton": "Pose OpenPose DrawPose",
    "keypoints": "Pose OpenPose DrawPose",
    "semantic segmentation": "Segment",
    "mask": "Segment Inpaint",
    "pose video": "AlignPose PoseVideoConditioning VideoWindows DecodeVideo",
    "stable video diffusion": "PoseVideoConditioning VideoWindows DecodeVideo",
    "qr code": "Illusion",
    "pixelate": "Pixel",
    "deblur": "Blur",
    "black and white": "Grayscale",
    "safetensors": "ConvertFile",
}
CHINESE = {
    "边缘": "Canny HED SoftEdge",
    "深度图": "Depth",
    "法线": "Normal NormalBae",
    "姿态": "Pose DrawPose AlignPose PoseVideoConditioning",
    "openpose": "OpenPose Pose DrawPose",
    "线稿": "Lineart LineartAnime",
    "涂鸦": "Sketch",
    "参考颜色": "Palette",
    "训练": "TrainCtrLoRA TrainControlNeXt PairDataset MakePairs",
    "遮罩": "Inpaint",
    "多 controlnet": "StackControl ApplyStack",
    "controlnext": "LoadControlNeXt ApplyControlNeXt TrainControlNeXt",
}


def ids(names: str) -> set[str]:
    return {f"NextControl{name}" for name in names.split()}


@pytest.fixture(scope="module")
def names(pack_nodes: dict[str, Any]) -> dict[str, str]:
    """Ours among those of the host."""
    import nodes

    ours = {node_id: node.GET_SCHEMA().display_name for node_id, node in pack_nodes.items()}
    return {node_id: nodes.NODE_DISPLAY_NAME_MAPPINGS.get(node_id, node_id) for node_id in nodes.NODE_CLASS_MAPPINGS} | ours


@pytest.fixture
def aliases(pack_nodes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """As a host gets them whose schemas know of them."""
    from nextcontrol.nodes import sockets

    class NewSchema:
        def __init__(self, node_id: str, search_aliases: list[str]) -> None:
            self.given = (node_id, search_aliases)

    monkeypatch.setattr(sockets.io, "Schema", NewSchema)
    return dict(node.define_schema().given for node in pack_nodes.values())


@pytest.mark.parametrize("words", WORDS)
def test_the_words_that_people_type_find_the_nodes(words, names):
    ours = [node_id for node_id in search(words, names) if node_id.startswith("NextControl")]
    wanted = ids(WORDS[words])
    assert set(ours[: len(wanted)]) == wanted


@pytest.mark.parametrize("words", CHINESE)
def test_so_do_chinese_words_in_the_chinese_page(words, names):
    chinese = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
    found = search(words, names | {node_id: texts["display_name"] for node_id, texts in chinese.items()})
    assert ids(CHINESE[words]) <= set(found)


@pytest.mark.parametrize("words", ALIASES)
def test_a_host_that_knows_aliases_is_told_more_words(words, aliases):
    assert ids(ALIASES[words]) <= {node_id for node_id, known in aliases.items() if words in known}


def test_every_node_has_aliases_of_its_own(aliases):
    for node_id, known in aliases.items():
        assert len(known) >= 3, node_id
        assert len(set(known)) == len(known), node_id
        assert [word for word in known if word != word.lower() and "_" not in word] == [], node_id


# The page's way of searching, where its own code was asked (frontend 1.32.9, run in Node).


def test_a_slip_of_the_finger_finds_a_node_too():
    names = {"NextControlCanny": "Canny Hint", "NextControlPoseVideoConditioning": "Pose Video Conditioning"}
    assert search("cany", names) == ["NextControlCanny"]
    assert search("pose vidoe", names) == ["NextControlPoseVideoConditioning"]
    assert search("pose wideo clip", names) == []


def test_all_words_must_be_in_one_of_the_names():
    assert search("depth map", {"NextControlDepth": "Depth Hint", "ReadMap": "Depth"}) == []


def test_a_word_far_behind_in_a_name_is_not_found():
    assert search("mask", {"A": "b" * 30 + "mask"}) == ["A"]
    assert search("mask", {"A": "b" * 31 + "mask"}) == []


def test_the_page_shows_a_limited_number():
    assert len(search("node", {f"Node{number}": f"Node {number}" for number in range(100)})) == SHOWN
