"""Skeletons as OpenPose's own networks find them."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .annotator import Annotator
from .aux_detector import import_aux
from .canvas import hint_size, resize, to_bytes
from .pose_draw_parts import draw_body, draw_faces, draw_hands
from .pose_points import BODY, HAND, Points

FACE_MAPS = 71
"""Points of the face network: 68 of the face, two pupils, and its background, which the package draws as well."""
logger = logging.getLogger("nextcontrol")


def openpose(
    frames: Tensor,
    resolution: int,
    body: Annotator,
    hand: Annotator | None = None,
    face: Annotator | None = None,
    has_body: bool = True,
) -> Tensor:
    """Draw the skeletons of the people in each picture, in colours on black.

    Args:
        frames: (B, H, W, 3), RGB in [0, 1].
        resolution: Shorter side of the result in pixels, 0 for the pictures' own size; see `hint_size`.
        body: The network "openpose".
        hand: The network "openpose_hand"; without it no hands are looked for.
        face: The network "openpose_face"; without it no faces are looked for.
        has_body: Draw the body. It is looked for in any case: hands and face are found from it.

    Returns:
        (B, H', W', 3) in [0, 1]; a picture without people is black, and the log says so.

    Source: controlnet-aux 0.0.10 open_pose/__init__.py, whose search for people is used; drawn as CtrLoRA draws.
    """
    package = import_aux("open_pose")
    detector = package.OpenposeDetector(
        _estimator(package.Body, body), hand and _estimator(package.Hand, hand), face and _estimator(package.Face, face)
    )
    height, width = hint_size(frames.shape[1], frames.shape[2], resolution)
    hints = torch.zeros((len(frames), height, width, 3))
    empty = 0
    for hint, frame in zip(hints, frames, strict=True):
        picture = resize(to_bytes(frame), (height, width))
        people = detector.detect_poses(picture, include_hand=hand is not None, include_face=face is not None)
        canvas = np.zeros((height, width, 3), np.uint8)
        if has_body:
            draw_body(canvas, _points([person.body.keypoints for person in people], BODY), 0)
        draw_hands(canvas, _points([side for person in people for side in (person.left_hand, person.right_hand)], HAND), 0)
        draw_faces(canvas, _points([person.face for person in people], FACE_MAPS), 0)
        hint[:] = torch.from_numpy(canvas) / 255
        empty += not people
    if empty:
        logger.warning("No person in %d of %d pictures: their hints are black.", empty, len(frames))
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
