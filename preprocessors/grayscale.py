"""A picture without its colours."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from .canvas import Picture, draw_each, hint_size


def grayscale(frames: Tensor, resolution: int = 512) -> Tensor:
    """The brightness of each picture: 0.299 R + 0.587 G + 0.114 B.

    Args:
        frames: (B, H, W, 3), RGB in [0, 1].
        resolution: Shorter side of the result in pixels, 0 for the pictures' own size; see `hint_size`.

    Returns:
        (B, H', W', 3) in [0, 1], three equal channels.

    Source: xyfJASON/ctrlora@b4422b4 annotator/grayscale.
    """
    return draw_each(frames, hint_size(frames.shape[1], frames.shape[2], resolution), _draw)


def _draw(picture: Picture) -> Picture:
    import cv2

    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
