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
