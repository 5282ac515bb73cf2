"""Canny edges: white lines on black."""

from __future__ import annotations

from typing import Literal

import numpy as np
from torch import Tensor

from .canvas import Picture, check_range, draw_each, hint_size

Thresholds = Literal["fixed", "median"]


def canny(
    frames: Tensor, resolution: int = 512, low_threshold: int = 100, high_threshold: int = 200, thresholds: Thresholds = "fixed"
) -> Tensor:
    """Edges of each picture.

    Args:
        frames: (B, H, W, 3), RGB in [0, 1].
        resolution: Shorter side of the result in pixels, 0 for the pictures' own size; see `hint_size`.
        low_threshold: 0 to 255, where a line that has begun may go on. Exchanged with the other if larger.
        high_threshold: 0 to 255, where a line begins.
        thresholds: "fixed" takes the two values and looks at the colour picture (CtrLoRA). "median" takes 0.67 and 1.33
            times the median of the grey picture instead (ControlNeXt SDXL).

    Returns:
        (B, H', W', 3) of 0 and 1.

    Raises:
        ValueError: A threshold is out of range.

    Source: xyfJASON/ctrlora@b4422b4 annotator/canny; dvlab-research/ControlNeXt@ab4b3ac ControlNeXt-SDXL/utils/preprocess.py.
    """
    check_range("low_threshold", low_threshold, 0, 255)
    check_range("high_threshold", high_threshold, 0, 255)
    draw = _median_edges if thresholds == "median" else lambda picture: _edges(picture, low_threshold, high_threshold)
    return draw_each(frames, hint_size(frames.shape[1], frames.shape[2], resolution), draw)


def _edges(picture: Picture, low: int, high: int) -> Picture:
    import cv2

    return np.asarray(cv2.Canny(picture, low, high), dtype=np.uint8)


def _median_edges(picture: Picture) -> Picture:
    import cv2

    grey = np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
    median = float(np.median(grey))
    return _edges(grey, int(max(0, 0.67 * median)), int(min(255, 1.33 * median)))
