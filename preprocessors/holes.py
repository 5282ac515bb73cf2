"""Where a picture is to be painted anew: a rectangle, or the strokes of a brush."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .canvas import seeds_of

Shape = Literal["brush", "rectangle"]
Hole = NDArray[np.uint8]
"""(H, W): 255 in the hole, else 0."""

PERCENT = (20, 80)
"""Of the picture's side: where 68 % of the rectangle's extents lie."""
STROKES, VERTICES = (5, 9), (4, 18)
WIDTHS = (0.02, 0.1)
"""Of a stroke, in shorter sides of the picture."""
TURN, TURN_RANGE = 2 * math.pi / 5, 2 * math.pi / 15


def draw_holes(size: tuple[int, int], count: int, shape: Shape = "brush", seed: int | Sequence[int] = 0) -> Tensor:
    """A hole for each picture.

    Args:
        size: Height and width.
        count: Of pictures.
        shape: What the hole looks like.
        seed: 0 or more; one for all pictures, or one for each.

    Returns:
        (count, height, width) of 1 in the hole and 0.

    Raises:
        ValueError: The seeds are too many, too few or negative.

    Source: xyfJASON/ctrlora@b4422b4 annotator/inpainting and annotator/inpainting_brush. A rectangle that would leave the
        picture, or have no pixels, ends at its edge, or has one.
    """
    draw = _rectangle if shape == "rectangle" else _brush
    seeds = seeds_of(seed, count)
    drawn: dict[int, Hole] = {}
    holes = torch.empty((count, *size))
    for hole, one in zip(holes, seeds, strict=True):
        if one not in drawn:
            drawn = {one: draw(size, np.random.default_rng(one))}
        hole[:] = torch.from_numpy(drawn[one]).bool()
    return holes


def _rectangle(size: tuple[int, int], random: np.random.Generator) -> Hole:
    """From `a` percent of the side before the middle to `b` percent behind it, halved."""
    hole = np.zeros(size, dtype=np.uint8)
    spans = []
    for side in size:
        low, high = PERCENT
        percents = np.trunc((0.5 * random.standard_normal(2) + 0.5) * (high - low)) + low
        before, behind = (int(side * percent / 100) for percent in sorted(percents.clip(1, 100)))
        start = (side - before) // 2
        spans.append(slice(start, max((side + behind) // 2, start + 1)))
    hole[tuple(spans)] = 255
    return hole


def _brush(size: tuple[int, int], random: np.random.Generator) -> Hole:
    hole = np.zeros(size, dtype=np.uint8)
    for _ in range(random.integers(*STROKES, endpoint=True)):
        _stroke(hole, random)
        hole = _flip(hole, random)
    return _flip(hole, random)


def _stroke(hole: Hole, random: np.random.Generator) -> None:
    """A broken line whose turns go left and right."""
    import cv2

    height, width = hole.shape
    thinnest, thickest = (int(ratio * min(hole.shape)) for ratio in WIDTHS)
    vertices = random.integers(*VERTICES, endpoint=True)
    thickness = max(int(random.integers(thinnest, thickest, endpoint=True)), 1)
    low, high = TURN - random.uniform() * TURN_RANGE, TURN + random.uniform() * TURN_RANGE
    mean = math.hypot(height, width) / 8
    points = [np.array((random.integers(width), random.integers(height)), dtype=np.float64)]
    for index in range(vertices):
        angle = random.uniform(low, high)
        angle = 2 * math.pi - angle if index % 2 == 0 else angle
        length = np.clip(random.normal(mean, mean // 2), 0, 2 * mean)
        points.append(np.clip(points[-1] + length * np.array((math.cos(angle), math.sin(angle))), 0, (width, height)))
    # OpenCV's thick lines have round ends, and so round joints.
    cv2.polylines(hole, [np.rint(points).astype(np.int32)], False, 255, thickness)


def _flip(hole: Hole, random: np.random.Generator) -> Hole:
    """Left to right, top to bottom, both or neither."""
    columns, rows = (int(step) for step in random.choice((1, -1), 2))
    return np.ascontiguousarray(hole[::rows, ::columns])
