"""A blurred picture."""

from __future__ import annotations

from typing import Literal

import numpy as np
from torch import Tensor

from .canvas import Picture, check_range, draw_each, hint_size

Sigma = Literal["fixed", "kernel"]
SIGMA = 4.0
"""The reference passes the number of a border mode where the standard deviation goes, and was trained so."""
REACH = 33
"""Kernel beyond which a standard deviation of 4 gives nothing more: OpenCV's weights for bytes are 0 there."""


def blur(frames: Tensor, resolution: int = 512, kernel: int = 55, sigma: Sigma = "fixed") -> Tensor:
    """Each picture through a Gaussian filter.

    Args:
        frames: (B, H, W, 3), RGB in [0, 1].
        resolution: Shorter side of the result in pixels, 0 for the pictures' own size; see `hint_size`.
        kernel: Pixels that the filter spans, odd, 1 to 255. Trained with 11 to 101; 55 is the middle.
        sigma: The filter's standard deviation: "fixed" is `SIGMA`, as trained; "kernel" is
            0.3 ((kernel - 1) / 2 - 1) + 0.8, what the reference meant.

    Returns:
        (B, H', W', 3) in [0, 1].

    Raises:
        ValueError: `kernel` is even or out of range.

    Source: xyfJASON/ctrlora@b4422b4 annotator/blur, scripts/tool_make_cond_images.py.
    """
    check_range("kernel", kernel, 1, 255)
    if kernel % 2 == 0:
        raise ValueError(f"kernel ({kernel}) must be odd: use {kernel - 1} or {kernel + 1}.")

    # With 0 OpenCV takes the standard deviation from the kernel, by the formula above.
    side, deviation = (min(kernel, REACH), SIGMA) if sigma == "fixed" else (kernel, 0.0)

    def draw(picture: Picture) -> Picture:
        import cv2

        return np.asarray(cv2.GaussianBlur(picture, (side, side), deviation), dtype=np.uint8)

    return draw_each(frames, hint_size(frames.shape[1], frames.shape[2], resolution), draw)
