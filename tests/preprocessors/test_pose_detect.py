"""Finding people and their points: real processors, networks that answer what the test wants or have random weights."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from nextcontrol.preprocessors.annotator import Annotator, load_annotator
from nextcontrol.preprocessors.pose_detect import detect_people, detect_points, pose, whole_pictures
from tiny_annotators import save_vitpose, save_yolos
from torch import nn

HEIGHT, WIDTH = 120, 200
PICTURES = np.random.default_rng(0).integers(0, 256, (3, HEIGHT, WIDTH, 3), dtype=np.uint8)
NAMES = {0: "cat", 1: "person", 2: "dog"}


class Says(nn.Module):
    """A network whose answer is made by the test; keeps what it was asked."""

    def __init__(self, answer, **config):
        super().__init__()
        self.answer, self.config, self.asked = answer, SimpleNamespace(**config), []

    def forward(self, **inputs):
        """Keep what was asked and answer."""
        self.asked.append(inputs)
        return self.answer(inputs)


def detector_that_finds(*things: tuple[int, float, tuple[float, float, float, float]], names=NAMES) -> Annotator:
    """Things are a class, a score and a box: left, top, right and bottom as fractions."""

    def answer(inputs):
        count = len(inputs["pixel_values"])
        logits, boxes = (
            torch.full((count, max(len(things), 1), len(names) + 1), -1e4),
            torch.zeros(count, max(len(things), 1), 4),
        )
        logits[..., -1] = 0.0
        for i, (label, score, (left, top, right, bottom)) in enumerate(things):
            logits[:, i, label] = np.log(score / (1 - score))
            boxes[:, i] = torch.tensor([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top])
        return SimpleNamespace(logits=logits, pred_boxes=boxes)

    processor = transformers.YolosImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    return Annotator("some detector", Says(answer, id2label=names), processor)


def estimator_with_peak(x: int, y: int, height: float = 0.8, points: int = 17, experts: int = 1) -> Annotator:
    """Every heat map (16 x 12) has its peak at one place."""

    def answer(inputs):
        rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(12.0), indexing="ij")
        bump = height * torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 8)
        return SimpleNamespace(heatmaps=bump.expand(len(inputs["pixel_values"]), points, 16, 12).clone())

    processor = transformers.VitPoseImageProcessor(size={"height": 64, "width": 48})
    config = {"backbone_config": SimpleNamespace(num_experts=experts), "num_labels": points}
    return Annotator("some pose", Says(answer, **config), processor)


def test_only_persons_are_found_the_surest_first():
    detector = detector_that_finds(
        (1, 0.5, (0.0, 0.0, 0.25, 0.5)), (0, 0.99, (0.3, 0.3, 0.6, 0.6)), (1, 0.9, (0.5, 0.5, 1.0, 1.0)), (1, 0.2, (0, 0, 1, 1))
    )
    found = detect_people(PICTURES, detector)
    assert len(found) == 3
    for boxes in found:
        np.testing.assert_allclose(boxes, [[100, 60, 200, 120], [0, 0, 50, 60]], atol=1e-3)


def test_the_threshold_and_the_most_people_are_kept_to():
    things = [(1, score, (i / 4, 0.1, i / 4 + 0.2, 0.9)) for i, score in enumerate((0.4, 0.8, 0.6))]
    detector = detector_that_finds(*things)
    assert [len(boxes) for boxes in detect_people(PICTURES, detector, 0.5)] == [2, 2, 2]
    (boxes, *_) = detect_people(PICTURES, detector, 0.1, most=1)
    np.testing.assert_allclose(boxes, [[50, 12, 90, 108]], atol=1e-3)


def test_a_double_of_a_person_is_dropped_and_a_neighbour_is_not():
    box = (0.1, 0.1, 0.5, 0.9)
    double, neighbour = (0.1, 0.15, 0.5, 0.95), (0.3, 0.1, 0.7, 0.9)
    (boxes, *_) = detect_people(PICTURES, detector_that_finds((1, 0.9, box), (1, 0.8, double), (1, 0.7, neighbour)))
    np.testing.assert_allclose(boxes[:, 0], [20, 60], atol=1e-3)


def test_boxes_stay_in_the_picture_and_empty_ones_are_dropped():
    outside, thin = (-0.2, -0.5, 0.5, 1.5), (0.7, 0.2, 0.701, 0.8)
    (boxes, *_) = detect_people(PICTURES, detector_that_finds((1, 0.9, outside), (1, 0.8, thin)))
    np.testing.assert_allclose(boxes, [[0, 0, 100, 120]], atol=1e-3)


def test_nobody_there_is_no_box():
    assert [boxes.shape for boxes in detect_people(PICTURES, detector_that_finds())] == [(0, 4)] * 3


@pytest.mark.parametrize("names", [{0: "Person", 1: "dog"}, {0: "LABEL_0"}])
def test_the_class_is_known_by_its_name_or_by_being_the_only_one(names):
    assert len(detect_people(PICTURES, detector_that_finds((0, 0.9, (0.1, 0.1, 0.9, 0.9)), names=names))[0]) == 1


def test_a_detector_without_persons_is_refused():
    with pytest.raises(ValueError, match="The detector 'some detector' has no class 'person' among 2: choose another one"):
        detect_people(PICTURES, detector_that_finds(names={0: "car", 1: "bus"}))


@pytest.mark.parametrize(
    ("x", "y", "across", "down"), [(5.5, 7.5, 0.0, 0.0), (2, 3, 2 / 11 - 0.5, -0.3), (9, 12, 9 / 11 - 0.5, 0.3)]
)
def test_a_peak_of_the_heat_map_is_a_place_in_the_widened_box(x, y, across, down):
    """Widened to 3:4 and then by a quarter, as ViTPose was trained; the middles of the outer cells are its border."""
    left, top, right, bottom = 60, 20, 90, 100
    people = detect_points(PICTURES[:1], [np.float32([[left, top, right, bottom]])], estimator_with_peak(x, y))[0]
    width, height = 1.25 * 80 * 3 / 4, 1.25 * 80
    nose = people.bodies[0, 0]
    assert nose[0] * WIDTH == pytest.approx(75 + across * width, abs=0.5)
    assert nose[1] * HEIGHT == pytest.approx(60 + down * height, abs=0.5)
    assert nose[2] == pytest.approx(0.8, abs=0.1)


def test_people_come_back_to_their_pictures_in_order():
    estimator = estimator_with_peak(5, 7)
    lefts = [[10, 90], [], [50]]
    boxes = [np.float32([[left, 10, left + 40, 110] for left in row]).reshape(-1, 4) for row in lefts]
    clip = detect_points(PICTURES, boxes, estimator)
    assert [len(people) for people in clip] == [2, 0, 1]
    noses = [[round(float(x) * WIDTH) for x in people.bodies[:, 0, 0]] for people in clip]
    shift = noses[2][0] - 50
    assert noses == [[10 + shift, 90 + shift], [], [50 + shift]]
    assert len(estimator.network.asked) == 1, "all in one batch"


def test_many_people_go_in_batches():
    estimator = estimator_with_peak(5, 7)
    boxes = np.float32([[left, 10, left + 40, 110] for left in range(70)])
    (people,) = detect_points(PICTURES[:1], [boxes], estimator)
    assert len(people) == 70
    assert [len(inputs["pixel_values"]) for inputs in estimator.network.asked] == [32, 32, 6]
    assert (np.diff(people.bodies[:, 0, 0]) > 0).all()


def test_a_flat_heat_map_is_a_missing_point():
    (people,) = detect_points(PICTURES[:1], [np.float32([[0, 0, 50, 100]])], estimator_with_peak(5, 7, height=0.0))
    assert not people.bodies.any()


def test_scores_are_at_most_one():
    (people,) = detect_points(PICTURES[:1], [np.float32([[0, 0, 50, 100]])], estimator_with_peak(5, 7, height=3.0))
    assert people.bodies[..., 2].max() == 1


@pytest.mark.parametrize(("points", "expert"), [(17, 0), (133, 5)])
def test_a_mixture_of_experts_is_told_which_one(points, expert):
    plain, mixed = estimator_with_peak(5, 7, points=points), estimator_with_peak(5, 7, points=points, experts=6)
    for estimator in (plain, mixed):
        detect_points(PICTURES[:1], [np.float32([[0, 0, 50, 100]] * 2)], estimator)
    assert "dataset_index" not in plain.network.asked[0]
    assert mixed.network.asked[0]["dataset_index"].tolist() == [expert] * 2


@pytest.mark.parametrize(("points", "experts"), [(17, 1), (133, 1), (17, 6)])
def test_real_classes_run_from_a_folder(tmp_path, points, experts):
    estimator = load_annotator(save_vitpose(tmp_path / "pose", points=points, experts=experts), "pose")
    detector = load_annotator(save_yolos(tmp_path / "yolos", names=dict.fromkeys(range(4), "person")), "detection")
    boxes = detect_people(PICTURES, detector, 0.05)
    assert all(len(found) for found in boxes)
    clip = detect_points(PICTURES, boxes, estimator)
    assert [len(people) for people in clip] == [len(found) for found in boxes]
    assert all(people.bodies[..., 2].any() for people in clip)
    assert all(people.faces.any() == (points == 133) for people in clip)


def test_the_preprocessor_takes_the_whole_picture_where_there_is_no_detector():
    frames = torch.rand(2, HEIGHT, WIDTH, 3)
    estimator = estimator_with_peak(5, 7)
    hints = pose(frames, 64, estimator)
    assert hints.shape == (2, 64, 128, 3)
    assert hints.max() > 0.5
    assert [box.tolist() for box in whole_pictures(frames)] == [[[0, 0, WIDTH, HEIGHT]]] * 2
    whole = detector_that_finds((1, 0.9, (0, 0, 1, 1)))
    torch.testing.assert_close(pose(frames, 64, estimator, whole, "openpose"), hints)
