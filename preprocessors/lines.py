"""Straight lines as M-LSD finds them: white on black, one pixel wide."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .annotator import Annotator
from .aux_detector import import_aux
from .canvas import Picture, check_range, hint_size, to_pictures

MULTIPLE = 32
"""Sides that the network needs; smaller ones would also have too few cells for the package's 200 candidates."""


def lines(
    frames: Tensor, resolution: int, detector: Annotator, score_threshold: float = 0.1, distance_threshold: float = 0.1
) -> Tensor:
    """Straight lines of each picture.

    Args:
        frames: (B, H, W, 3), RGB in [0, 1].
        resolution: Shorter side of the result in pixels, 0 for the pictures' own size; see `hint_size`.
        detector: The network "mlsd".
        score_threshold: 0 to 1, how sure the network has to be. CtrLoRA's data drew it from 0.1 to 2, which leaves most
            pictures black, since scores end at 1; the network's authors use 0.1.
        distance_threshold: Pixels of half the picture's size; shorter lines are left out.

    Returns:
        (B, H', W', 3) of 0 and 1; a picture without lines is black.

    Raises:
        ValueError: A threshold is out of range.

    Source: controlnet-aux 0.0.10 mlsd/__init__.py.
    """
    import cv2

    check_range("score_threshold", score_threshold, 0, 1)
    check_range("distance_threshold", distance_threshold, 0, 20)
    height, width = hint_size(frames.shape[1], frames.shape[2], resolution)
    hints = torch.zeros((len(frames), height, width, 3))
    for hint, picture in zip(hints, to_pictures(frames, (height, width)), strict=True):
        canvas = np.zeros((height, width), np.uint8)
        found = find_lines(picture, detector, score_threshold, distance_threshold)
        for x1, y1, x2, y2 in found.astype(int).tolist():
            cv2.line(canvas, (x1, y1), (x2, y2), 255, 1)
        hint[:] = torch.from_numpy(canvas)[..., None] / 255
    return hints


def find_lines(picture: Picture, detector: Annotator, score_threshold: float, distance_threshold: float) -> NDArray[np.float64]:
    """Straight lines of a picture (H, W, 3): (N, 4) of x1, y1, x2, y2 in pixels, N may be 0."""
    height, width = picture.shape[:2]
    # The network reads a picture of this size; lines come back in the picture's own pixels.
    room = [side + -side % MULTIPLE for side in (height, width)]
    pred_lines = import_aux("mlsd.utils").pred_lines
    try:
        found = pred_lines(picture, detector.network, room, score_threshold, distance_threshold)
    except IndexError:  # its answer to a picture without lines
        return np.zeros((0, 4))
    found = np.asarray(found, np.float64)
    # Far outside OpenCV's integers overflow.
    return found[np.isfinite(found).all(1) & (np.abs(found) < 2**15).all(1)]
