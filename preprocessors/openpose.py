"""Skeletons as OpenPose's own networks find them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .annotator import Annotator
from .aux_detector import import_aux
from .canvas import hint_size, to_pictures
from .pose_draw_parts import draw_body, draw_faces, draw_hands
from .pose_points import BODY, HAND, Points

FACE_MAPS = 71
"""Points of the face network: 68 of the face, two pupils, and its background, which the package draws as well."""


def openpose(
    frames: Tensor,
    resolution: int,
    annotator: Annotator,
    hand_annotator: Annotator | None = None,
    face_annotator: Annotator | None = None,
    body: bool = True,
) -> Tensor:
    """Draw the skeletons of the people in each picture, in colours on black.

    Args:
        frames: (B, H, W, 3), RGB in [0, 1].
        resolution: Shorter side of the result in pixels, 0 for the pictures' own size; see `hint_size`.
        annotator: The network "openpose".
        hand_annotator: The network "openpose_hand"; without it no hands are looked for.
        face_annotator: The network "openpose_face"; without it no faces are looked for.
        body: Draw the body. It is looked for in any case: hands and face are found from it.

    Returns:
        (B, H', W', 3) in [0, 1]; a picture without people is black.

    Source: controlnet-aux 0.0.10 open_pose/__init__.py, whose search for people is used; drawn as CtrLoRA draws.
    """
    package = import_aux("open_pose")
    detector = package.OpenposeDetector(
        _estimator(package.Body, annotator),
        hand_annotator and _estimator(package.Hand, hand_annotator),
        face_annotator and _estimator(package.Face, face_annotator),
    )
    size = hint_size(frames.shape[1], frames.shape[2], resolution)
    has_hands, has_face = hand_annotator is not None, face_annotator is not None
    hints = torch.zeros((len(frames), *size, 3))
    for hint, picture in zip(hints, to_pictures(frames, size), strict=True):
        people = detector.detect_poses(picture, include_hand=has_hands, include_face=has_face)
        canvas = np.zeros((*size, 3), np.uint8)
        if body:
            draw_body(canvas, _points([person.body.keypoints for person in people], BODY), 0)
        draw_hands(canvas, _points([side for person in people for side in (person.left_hand, person.right_hand)], HAND), 0)
        draw_faces(canvas, _points([person.face for person in people], FACE_MAPS), 0)
        hint[:] = torch.from_numpy(canvas) / 255
    return hints


def _estimator(kind: Any, annotator: Annotator) -> Any:
    """The package's reader of a network's output. Its constructor would read the file again, and not safely."""
    estimator = object.__new__(kind)
    estimator.model = annotator.network
    return estimator


def _points(parts: list[Any], count: int) -> Points:
    """Lists of key points, or None, to (N, count, 3) with a score of 1; those that are missing are zeros."""
    points = np.zeros((len(parts), count, 3))
    for row, part in zip(points, parts, strict=True):
        for place, point in enumerate(part or ()):
            if point is not None and point.x >= 0 and point.y >= 0:
                row[place] = point.x, point.y, 1
    return points
