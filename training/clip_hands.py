"""Hands count more in the loss: boxes around them, from a file beside the frames.

`hands.json` in the folder of a clip's targets maps the name of a frame's file to a list of hands:

    {"0001.png": [{"box": [0.41, 0.52, 0.47, 0.60], "score": 0.9}]}

Corners are left, top, right, bottom as parts of the picture's sides; the score is the mean of the hand's keypoints.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.foreign import first_line, shown
from .inside import open_real
from .pictures import Size
from .texts import LARGEST_ROWS, parse_text, read_text

FILE = "hands.json"
# Source: dvlab-research/ControlNeXt@ab4b3ac ControlNeXt-SVD-v2-Training/train_svd.py and its dataset.
LEAST_SCORE = 0.5
MARGIN = 10
"""Pixels around a box."""
CELL = 8
"""Pixels, side of a cell of the latent."""
CORNERS = 4
Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def read_hands(folder: Path, name: str) -> dict[str, list[Box]]:
    """The hands of a clip that are to be seen.

    Args:
        folder: Of its targets, without links.
        name: Of the clip, for the error.

    Returns:
        Boxes by the name of a frame's file; empty without a file of hands.

    Raises:
        ValueError: The file is there and not as it should be.
    """
    path = folder / FILE
    try:
        if not os.path.lexists(path):
            return {}
        with open_real(path, FILE) as stream:
            read = parse_text(read_text(stream, FILE, LARGEST_ROWS), FILE)
        if not isinstance(read, dict):
            raise ValueError("it is not a JSON object")
        return {frame: _boxes(hands) for frame, hands in read.items()}
    except (ValueError, OSError) as error:
        raise ValueError(
            f"'{FILE}' of the clip '{shown(name)}' cannot be read ({first_line(error)}): give each frame's name a list of "
            "hands with box and score, or delete the file."
        ) from error


def _boxes(hands: object) -> list[Box]:
    if not isinstance(hands, list) or not all(isinstance(hand, dict) for hand in hands):
        raise ValueError("a frame has no list of hands")
    if not all(isinstance(hand.get("score"), (int, float)) for hand in hands):
        raise ValueError("a hand has no score")
    return [_box(hand.get("box")) for hand in hands if hand["score"] > LEAST_SCORE]


def _box(corners: object) -> Box:
    if not isinstance(corners, list) or len(corners) != CORNERS or not all(map(_is_part, corners)):
        raise ValueError(f"box {shown(corners, 40)} is not four numbers from 0 to 1")
    left, top, right, bottom = map(float, corners)
    return left, top, right, bottom


def _is_part(number: object) -> bool:
    return isinstance(number, (int, float)) and 0 <= number <= 1


def fit_box(box: Box, picture: Size, size: Size) -> Box:
    """Where a box is after `fit_picture`.

    Args:
        box: In parts of the picture's sides.
        picture: Its size.
        size: That it is brought to.

    Returns:
        In pixels, with the margin; beyond the border where the box was cut.
    """
    scale = max(size[0] / picture[0], size[1] / picture[1])
    cut = [(picture[i] * scale - size[i]) / 2 for i in (0, 1)]
    left, top, right, bottom = (box[i] * picture[i % 2] * scale - cut[i % 2] for i in range(CORNERS))
    return left - MARGIN, top - MARGIN, right + MARGIN, bottom + MARGIN


def weights_of(boxes: Sequence[Box], size: Size, weight: float, is_mirrored: bool) -> Tensor:
    """How much each cell of a frame's latent counts.

    Args:
        boxes: In pixels.
        size: Of the frame.
        weight: Inside of a box; 1 outside.
        is_mirrored: Whether the frame is.

    Returns:
        (1, h, w), means over the cells.
    """
    width, height = size
    pixels = torch.ones(1, height, width)
    for left, top, right, bottom in boxes:
        rows, columns = slice(max(round(top), 0), max(round(bottom), 0)), slice(max(round(left), 0), max(round(right), 0))
        pixels[:, rows, columns] = weight
    return F.avg_pool2d(pixels.flip(-1) if is_mirrored else pixels, CELL)
