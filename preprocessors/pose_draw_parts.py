"""Body, hands and face as OpenPose for ControlNet and DWPose draw them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from .pose_points import HAND, Points

Color = tuple[int, int, int]

# Source of every number here: xyfJASON/ctrlora@b4422b4 annotator/openpose/util.py and dvlab-research/ControlNeXt@ab4b3ac
# ControlNeXt-SVD-v2/dwpose/util.py, which agree.
LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0), (0, 14),
    (14, 16), (0, 15), (15, 17),
)  # fmt: skip
"""Pairs of body points, each in the colour of its place in this list."""
COLORS: tuple[Color, ...] = (
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0), (0, 255, 85),
    (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255),
    (255, 0, 170), (255, 0, 85),
)  # fmt: skip
BONES = tuple((0 if i % 4 == 0 else i, i + 1) for i in range(HAND - 1))
"""Pairs of hand points, from the wrist along each finger."""
DIM = 0.6
"""Limbs are darker than joints."""
LIMB_HALF_WIDTH, JOINT_RADIUS, BONE_WIDTH, TIP_RADIUS, FACE_RADIUS = 4, 4, 2, 4, 3
SMALLEST = 0.01
"""Points of hands and faces with a pixel coordinate below are left out: this is how the references mark missing ones."""
FARTHEST = 8.0
"""Points further out than that many pictures are left out: OpenCV's integers would overflow."""


def draw_body(canvas: NDArray[np.uint8], bodies: Points, threshold: float, widen: float = 1, is_scored: bool = False) -> None:
    """Draw limbs as dimmed ellipses, then joints as discs in full colour.

    Args:
        canvas: (H, W, 3), drawn on.
        bodies: (N, 18, 3).
        threshold: Points with a score up to this are left out.
        widen: Multiplies widths.
        is_scored: Multiply colours by the scores of their points.
    """
    import cv2

    half_width, radius = thick(LIMB_HALF_WIDTH, widen), thick(JOINT_RADIUS, widen)
    pixels, seen = to_pixels(bodies, canvas), is_seen(bodies, threshold)
    scores = bodies[..., 2] if is_scored else np.ones(bodies.shape[:2])
    for (a, b), color in zip(LIMBS, COLORS, strict=False):
        for person in np.flatnonzero(seen[:, a] & seen[:, b]):
            bright = scaled(color, scores[person, a] * scores[person, b])
            polygon = limb(pixels[person, a], pixels[person, b], half_width)
            cv2.fillConvexPoly(canvas, polygon, scaled(bright, DIM))
    for joint, color in enumerate(COLORS):
        for person in np.flatnonzero(seen[:, joint]):
            x, y = pixels[person, joint]
            cv2.circle(canvas, (int(x), int(y)), radius, scaled(color, scores[person, joint]), thickness=-1)


def draw_hands(canvas: NDArray[np.uint8], hands: Points, threshold: float, widen: float = 1, is_scored: bool = False) -> None:
    """Draw the bones of each hand in the colours of the rainbow, then its points in blue.

    Args:
        canvas: (H, W, 3), drawn on.
        hands: (..., 21, 3).
        threshold: Points with a score up to this are left out, unless `is_scored`: then every one is drawn, the darker the
            less sure it is, as the reference does.
        widen: Multiplies widths.
        is_scored: Multiply colours by the scores of their points.
    """
    import cv2

    width, radius = thick(BONE_WIDTH, widen), thick(TIP_RADIUS, widen)
    for pixels, scores, seen in _extremities(canvas, hands, threshold, is_scored):
        for place, (a, b) in enumerate(BONES):
            if seen[a] and seen[b]:
                light = int(scores[a] * scores[b] * 255)
                color = tuple(channel * light for channel in rainbow(place / len(BONES)))
                cv2.line(canvas, tuple(pixels[a]), tuple(pixels[b]), color, thickness=width)
        for point in np.flatnonzero(seen):
            cv2.circle(canvas, tuple(pixels[point]), radius, (0, 0, int(scores[point] * 255)), thickness=-1)


def draw_faces(canvas: NDArray[np.uint8], faces: Points, threshold: float, widen: float = 1, is_scored: bool = False) -> None:
    """Draw the points of each face in white; arguments as for `draw_hands`."""
    import cv2

    radius = thick(FACE_RADIUS, widen)
    for pixels, scores, seen in _extremities(canvas, faces, threshold, is_scored):
        for point in np.flatnonzero(seen):
            light = int(scores[point] * 255)
            cv2.circle(canvas, tuple(pixels[point]), radius, (light, light, light), thickness=-1)


def limb(a: Points, b: Points, half_width: int) -> NDArray[np.int32]:
    """The outline of an ellipse from a to b, both (x, y) in pixels."""
    import cv2

    center = (int((a[0] + b[0]) / 2), int((a[1] + b[1]) / 2))
    length = ((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) ** 0.5
    angle = math.degrees(math.atan2(a[1] - b[1], a[0] - b[0]))
    outline = cv2.ellipse2Poly(center, (int(length / 2), half_width), int(angle), 0, 360, 1)
    return np.asarray(outline, dtype=np.int32)


def is_seen(points: Points, threshold: float) -> NDArray[np.bool_]:
    """Which points are drawn: score over `threshold` and not absurdly far away. (..., 3) to (...)."""
    return (points[..., 2] > threshold) & (np.abs(points[..., :2]) < FARTHEST).all(-1)


def to_pixels(points: Points, canvas: NDArray[np.uint8]) -> Points:
    """(..., 3) of fractions to (..., 2) of x and y in pixels of the canvas."""
    height, width = canvas.shape[:2]
    return points[..., :2] * (float(width), float(height))


def thick(width: int, widen: float) -> int:
    """A width in whole pixels, 1 or more."""
    return max(1, round(width * widen))


def scaled(color: Color, factor: float) -> Color:
    """A colour times a factor, cut to whole numbers as the references cut."""
    red, green, blue = (int(channel * factor) for channel in color)
    return red, green, blue


def rainbow(hue: float) -> Color | tuple[float, float, float]:
    """The pure colour of a hue in [0, 1), channels in [0, 1]."""
    import colorsys

    return colorsys.hsv_to_rgb(hue, 1.0, 1.0)


def _extremities(
    canvas: NDArray[np.uint8], points: Points, threshold: float, is_scored: bool
) -> Iterator[tuple[NDArray[np.int64], Points, NDArray[np.bool_]]]:
    """Whole pixels, scores and which are drawn, for each hand or face that has a point at all."""
    floor = 0.0 if is_scored else threshold
    for part in points.reshape(-1, *points.shape[-2:]):
        seen = is_seen(part, floor)
        pixels = np.where(seen[:, None], to_pixels(part, canvas), 0).astype(np.int64)
        seen &= (pixels > SMALLEST).all(-1)
        if seen.any():
            yield pixels, part[:, 2] if is_scored else np.ones(len(part)), seen
