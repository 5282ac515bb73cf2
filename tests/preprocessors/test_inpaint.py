"""Inpainting hints: the random holes, and what is blackened."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hint_pictures import ASTRONAUT
from nextcontrol.preprocessors.holes import draw_holes
from nextcontrol.preprocessors.inpaint import inpaint

SEEDS = range(200)


def extents(hole: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns that a hole reaches."""
    spans = []
    for axis in (1, 0):
        (places,) = hole.any(axis).nonzero()
        spans.append(slice(int(places[0]), int(places[-1]) + 1))
    return spans[0], spans[1]


@pytest.mark.parametrize("shape", ["rectangle", "brush"])
def test_the_hole_is_black_and_the_rest_is_the_picture(shape):
    (hole,) = draw_holes((512, 512), 1, shape, 4)
    hint = inpaint(ASTRONAUT, 512, shape, 4)
    assert torch.equal(hint, ASTRONAUT * (1 - hole[None, ..., None]))
    assert 0.02 < hole.mean() < 0.9


def test_a_hole_of_ones_own_takes_the_place_of_the_random_one():
    holes = torch.zeros(2, 512, 512)
    holes[0, 100:200, 300:] = 1
    holes[1] = 0.5
    hints = inpaint(torch.cat([ASTRONAUT, ASTRONAUT]), 512, holes=holes)
    assert torch.equal(hints[0], ASTRONAUT[0] * (1 - holes[0, ..., None]))
    assert torch.equal(hints[1], ASTRONAUT[0])


def test_rectangles_lie_around_the_middle_with_extents_normal_about_half_the_side():
    height, width = 160, 240
    halves = []
    for hole in draw_holes((height, width), len(SEEDS), "rectangle", SEEDS).bool().numpy():
        rows, columns = extents(hole)
        assert hole[rows, columns].all()  # nothing but the rectangle
        for span, side in ((rows, height), (columns, width)):
            halves += [(side - 2 * span.start) / side, (2 * span.stop - side) / side]
            assert halves[-2] <= halves[-1] + 2.5 / side  # the nearer edge is the upper or left one
    # Four percentages each, of 50 +- 30 cut at 1 and 100.
    assert np.mean(halves) == pytest.approx(0.5, abs=0.03)
    assert np.std(halves) == pytest.approx(0.28, abs=0.03)
    assert min(halves) >= 0
    assert max(halves) == 1


def test_a_rectangle_has_a_pixel_in_the_smallest_picture():
    assert (draw_holes((8, 8), len(SEEDS), "rectangle", SEEDS).sum((1, 2)) > 0).all()


def test_brushes_cover_a_share_that_varies_and_go_everywhere():
    holes = draw_holes((128, 192), len(SEEDS), "brush", SEEDS)
    shares = holes.mean((1, 2))
    assert set(holes.unique().tolist()) == {0, 1}
    assert 0.1 < shares.mean() < 0.6
    assert shares.min() > 0.005
    assert shares.max() < 0.95
    assert holes.mean(0).min() > 0.03


def test_strokes_are_those_of_the_reference(monkeypatch):
    import cv2

    strokes: list[tuple[np.ndarray, int]] = []
    counts = []
    monkeypatch.setattr(cv2, "polylines", lambda *given: strokes.append((given[1][0], given[4])))
    for seed in range(100):
        before = len(strokes)
        draw_holes((500, 1000), 1, "brush", seed)
        counts.append(len(strokes) - before)
    assert set(counts) == {5, 6, 7, 8, 9}
    assert {len(points) - 1 for points, _ in strokes} == set(range(4, 19))
    assert {width for _, width in strokes} == set(range(10, 51))
    points = np.concatenate([points for points, _ in strokes])
    assert points.min(0).tolist() == [0, 0]
    assert points.max(0).tolist() == [1000, 500]
    # Where no edge cuts a segment: its angle and its length, 72 +- 24 degrees up and down in turn.
    segments = [(np.diff(points, axis=0), points) for points, _ in strokes]
    steps = np.array([
        (step[0], step[1] * (1 if index % 2 else -1))
        for differences, points in segments
        for index, step in enumerate(differences)
        if points[index + 1][0] not in {0, 1000} and points[index + 1][1] not in {0, 500} and abs(step).max() > 20
    ])  # fmt: skip
    angles = np.degrees(np.arctan2(steps[:, 1], steps[:, 0]))
    assert angles.min() > 44
    assert angles.max() < 100
    assert np.mean(angles) == pytest.approx(72, abs=3)
    lengths = np.hypot(*steps.T)
    assert lengths.max() < 2 * np.hypot(500, 1000) / 8 + 2
    assert np.mean(lengths) == pytest.approx(np.hypot(500, 1000) / 8, rel=0.15)


def test_frames_may_have_seeds_of_their_own():
    same = draw_holes((64, 64), 3, "brush", 7)
    assert torch.equal(same[0], same[2])
    other = draw_holes((64, 64), 3, "brush", [7, 8, 7])
    assert torch.equal(other[[0, 2]], same[[0, 2]])
    assert not torch.equal(other[1], same[1])
