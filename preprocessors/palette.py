"""The palette of a picture: flat cells of colour."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from .canvas import Picture, check_range, draw_each, hint_size

CELL = 64


def palette(frames: Tensor, resolution: int = 512, cell: int = CELL) -> Tensor:
    """One colour for each cell of a picture.

    Args:
        frames: (B, H, W, 3), RGB in [0, 1].
        resolution: Shorter side of the result in pixels, 0 for the pictures' own size; see `hint_size`.
        cell: Side of a cell in pixels, 8 to 512.

    Returns:
        (B, H', W', 3) in [0, 1]. A cell has the value of OpenCV's cubic filter at its centre, which reads 4 x 4 pixels: it is
        not the mean of the cell.

    Raises:
        ValueError: `cell` is out of range.

    Source: xyfJASON/ctrlora@b4422b4 annotator/palette.
    """
    check_range("cell", cell, 8, 512)
    size = hint_size(frames.shape[1], frames.shape[2], resolution)

    def draw(picture: Picture) -> Picture:
        import cv2

        cells = cv2.resize(picture, (max(size[1] // cell, 1), max(size[0] // cell, 1)), interpolation=cv2.INTER_CUBIC)
        return np.asarray(cv2.resize(cells, size[::-1], interpolation=cv2.INTER_NEAREST), dtype=np.uint8)

    return draw_each(frames, size, draw)
