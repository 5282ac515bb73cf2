"""The key points of the people in a picture: the one form that detectors, drawings and JSON share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""(..., 3): x as a fraction of the width, y as a fraction of the height, score. A point that is missing is all zeros."""

BODY, HAND, FACE, FEET = 18, 21, 68, 6
"""How many points each part has."""
NECK, RIGHT_HIP, LEFT_HIP = 1, 8, 11
"""Places in a body."""
VISIBLE = 0.3
"""Scores above are seen. Source: dvlab-research/ControlNeXt@ab4b3ac ControlNeXt-SVD-v2/dwpose/dwpose_detector.py."""


@dataclass(frozen=True)
class People:
    """The people of one picture, any number of them."""

    bodies: Points
    """(N, 18, 3): nose, neck, right shoulder, elbow, wrist, left ones, right hip, knee, ankle, left ones, right and left
    eye, right and left ear: OpenPose's order for COCO."""
    hands: Points
    """(N, 2, 21, 3), left and right: wrist, then four points from the root to the tip of each finger, thumb first."""
    faces: Points
    """(N, 68, 3), the order of 300-W and of COCO-WholeBody."""
    feet: Points
    """(N, 6, 3): left big toe, small toe and heel, then right ones."""
    height: int
    """Of the picture, in pixels."""
    width: int

    def __len__(self) -> int:
        return len(self.bodies)


def to_people(
    bodies: Points,
    height: int,
    width: int,
    hands: Points | None = None,
    faces: Points | None = None,
    feet: Points | None = None,
) -> People:
    """`People` from the parts that are known; the others are missing. Shapes as in `People`."""
    count = len(bodies)
    return People(
        np.asarray(bodies, np.float64).reshape(count, BODY, 3),
        np.zeros((count, 2, HAND, 3)) if hands is None else np.asarray(hands, np.float64),
        np.zeros((count, FACE, 3)) if faces is None else np.asarray(faces, np.float64),
        np.zeros((count, FEET, 3)) if feet is None else np.asarray(feet, np.float64),
        height,
        width,
    )


def nobody(height: int, width: int) -> People:
    """A picture without people."""
    return to_people(np.zeros((0, BODY, 3)), height, width)


# COCO's 17 points and the neck behind them, in OpenPose's order.
# Source: dvlab-research/ControlNeXt@ab4b3ac ControlNeXt-SVD-v2/dwpose/wholebody.py.
COCO_ORDER = (0, 17, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
COCO, WHOLE_BODY = 17, 133
"""How many points a network for each data set finds."""
LEFT_SHOULDER, RIGHT_SHOULDER = 5, 6


def to_openpose(points: Points) -> Points:
    """Bodies from a network's points.

    Args:
        points: (N, 17, 3) in COCO's order.

    Returns:
        (N, 18, 3). The neck is the middle of the shoulders; its score is 1 if both are over `VISIBLE`, else 0, as in the
        reference.
    """
    shoulders = points[:, [LEFT_SHOULDER, RIGHT_SHOULDER]]
    neck = shoulders.mean(axis=1, keepdims=True)
    neck[..., 2] = (shoulders[..., 2] > VISIBLE).all(axis=1, keepdims=True)
    return np.concatenate([points, neck], axis=1)[:, COCO_ORDER]


def from_coco(points: Points, height: int, width: int) -> People:
    """People from a network's points.

    Args:
        points: (N, 17, 3) in the order of COCO, or (N, 133, 3) in that of COCO-WholeBody: body, feet, face, left and right
            hand.
        height: Of the picture, in pixels.
        width: Of the picture, in pixels.

    Returns:
        All parts that are there.

    Raises:
        ValueError: There are neither 17 nor 133 points.
    """
    if points.shape[1] not in {COCO, WHOLE_BODY}:
        raise ValueError(
            f"The pose network finds {points.shape[1]} points and {COCO} (COCO) or {WHOLE_BODY} (COCO-WholeBody) are "
            f"understood: choose another one."
        )
    bodies = to_openpose(points[:, :COCO])
    if points.shape[1] == COCO:
        return to_people(bodies, height, width)
    feet, faces, hands = np.split(points[:, COCO:], [FEET, FEET + FACE], axis=1)
    return to_people(bodies, height, width, hands.reshape(len(points), 2, HAND, 3), faces, feet)
