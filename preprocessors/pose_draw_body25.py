"""Bodies in OpenPose's own manner for its 25 points: with a mid-hip and feet, everything translucent."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .pose_draw_parts import is_seen, to_pixels
from .pose_points import LEFT_HIP, RIGHT_HIP, People, Points

MID_HIP = 8
LIMBS = (
    (1, 8), (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (8, 9), (9, 10), (10, 11), (8, 12), (12, 13), (13, 14), (1, 0),
    (0, 15), (15, 17), (0, 16), (16, 18), (14, 19), (19, 20), (14, 21), (11, 22), (22, 23), (11, 24),
)  # fmt: skip
"""Pairs of points, each in the colour of its second one. Source: OpenPose's documentation of BODY_25."""
COLORS = (
    (255, 0, 85), (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0),
    (255, 0, 0), (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (255, 0, 170),
    (170, 0, 255), (255, 0, 255), (85, 0, 255), (0, 0, 255), (0, 0, 255), (0, 0, 255), (0, 255, 255), (0, 255, 255),
    (0, 255, 255),
)  # fmt: skip
ALPHA = 0.6
"""Of limbs and joints: a limb on black is 0.6 of its colour, (153, 51, 0) from neck to right shoulder."""
LIMBS_PER_SIDE, JOINTS_PER_SIDE = 120, 100
"""Half width of a limb and radius of a joint, as parts of the shorter side."""


def to_body25(people: People) -> Points:
    """(N, 18, 3) bodies and feet to (N, 25, 3); the mid-hip is halfway between the hips and as sure as the less sure one."""
    bodies = people.bodies
    hips = bodies[:, [RIGHT_HIP, LEFT_HIP]]
    middle = hips.mean(axis=1)
    middle[:, 2] = hips[..., 2].min(axis=1)
    middle[middle[:, 2] <= 0] = 0
    return np.concatenate([bodies[:, :MID_HIP], middle[:, None], bodies[:, MID_HIP:], people.feet], axis=1)


def draw_body25(canvas: NDArray[np.uint8], people: People, threshold: float, widen: float = 1) -> None:
    """Draw bodies and feet. Widths follow the picture by themselves; `widen` is not used for them.

    Args:
        canvas: (H, W, 3), drawn on.
        people: Hands and faces are passed over.
        threshold: Points with a score up to this are left out.
        widen: Accepted as every style does.
    """
    del widen
    short = min(canvas.shape[:2])
    points = to_body25(people)
    pixels, seen = to_pixels(points, canvas), is_seen(points, threshold)
    for person in range(len(points)):
        for a, b in LIMBS:
            if seen[person, a] and seen[person, b]:
                _blend_ellipse(canvas, pixels[person, a], pixels[person, b], short / LIMBS_PER_SIDE, COLORS[b])
        for joint in np.flatnonzero(seen[person]):
            _blend_disc(canvas, pixels[person, joint], short / JOINTS_PER_SIDE, COLORS[joint])


def _blend_ellipse(canvas: NDArray[np.uint8], a: Points, b: Points, half_width: float, color: tuple[int, int, int]) -> None:
    middle, along = (a + b) / 2, (b - a) / 2
    half_length = max(float(np.hypot(*along)), 1e-6)
    x, y, area = _grid(canvas, middle, np.abs(along) + half_width)
    cosine, sine = along / half_length
    lengthwise, across = (x - middle[0]) * cosine + (y - middle[1]) * sine, (x - middle[0]) * sine - (y - middle[1]) * cosine
    _blend(area, (lengthwise / half_length) ** 2 + (across / half_width) ** 2 <= 1, color)


def _blend_disc(canvas: NDArray[np.uint8], center: Points, radius: float, color: tuple[int, int, int]) -> None:
    x, y, area = _grid(canvas, center, np.full(2, radius))
    _blend(area, (x - center[0]) ** 2 + (y - center[1]) ** 2 <= radius**2, color)


def _grid(canvas: NDArray[np.uint8], center: Points, reach: Points) -> tuple[Points, Points, NDArray[np.uint8]]:
    """Coordinates of the pixels within `reach`, (across, down), of `center`, and a view of them."""
    limits = canvas.shape[1::-1]
    left, top = np.clip(np.floor(center - reach), 0, limits).astype(int)
    right, bottom = np.clip(np.ceil(center + reach) + 1, 0, limits).astype(int)
    return np.arange(left, right)[None], np.arange(top, bottom)[:, None], canvas[top:bottom, left:right]


def _blend(area: NDArray[np.uint8], inside: NDArray[np.bool_], color: tuple[int, int, int]) -> None:
    area[inside] = np.rint(area[inside] * (1 - ALPHA) + np.array(color) * ALPHA).astype(np.uint8)
