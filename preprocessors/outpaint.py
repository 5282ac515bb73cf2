"""A picture with black around it."""

from __future__ import annotations

from typing import Literal

import numpy as np
from torch import Tensor

from .canvas import Picture, check_range, draw_each, hint_size, resize

Mode = Literal["window", "pad"]


def outpaint(
    frames: Tensor, resolution: int = 512, mode: Mode = "window", keep_height: int = 50, keep_width: int = 50
) -> Tensor:
    """The middle of each hint is picture, the rest black.

    Args:
        frames: (B, H, W, 3), RGB in [0, 1].
        resolution: Shorter side of the result in pixels, 0 for the pictures' own size; see `hint_size`.
        mode: "window" blackens the picture around its middle, as in training; "pad" shows the whole picture and puts black
            around it, as the authors' page does.
        keep_height: Percent of the hint's height that is picture, 10 to 100. Trained with 20 to 79; 50 is the authors' page.
        keep_width: The same of the width.

    Returns:
        (B, H', W', 3) in [0, 1].

    Raises:
        ValueError: A percentage is out of range.

    Source: xyfJASON/ctrlora@b4422b4 annotator/outpainting, annotator/pad. Padding there comes before resizing; here the
        picture is resized alone, which takes less memory and differs where the two are blended.
    """
    size, window = outpaint_window(frames.shape[1], frames.shape[2], resolution, mode, keep_height, keep_width)

    def draw(picture: Picture) -> Picture:
        hint = np.zeros((*size, 3), dtype=np.uint8)
        hint[window] = picture if mode == "pad" else picture[window]
        return hint

    def fit(picture: Picture, whole: tuple[int, int]) -> Picture:
        return resize(picture, tuple(span.stop - span.start for span in window) if mode == "pad" else whole)

    return draw_each(frames, size, draw, fit=fit)


def outpaint_window(
    height: int, width: int, resolution: int, mode: Mode, keep_height: int, keep_width: int
) -> tuple[tuple[int, int], tuple[slice, slice]]:
    """Size of a hint, and its rows and columns that are picture; arguments as of `outpaint`.

    Args:
        height: Of the picture, in pixels.
        width: Of the picture, in pixels.
        resolution: See `outpaint`.
        mode: See `outpaint`.
        keep_height: See `outpaint`.
        keep_width: See `outpaint`.

    Returns:
        Height and width, and two slices.

    Raises:
        ValueError: A percentage is out of range.
    """
    check_range("keep_height", keep_height, 10, 100)
    check_range("keep_width", keep_width, 10, 100)
    if mode == "pad":
        height, width = round(height * 100 / keep_height), round(width * 100 / keep_width)
    size = hint_size(height, width, resolution)
    spans = []
    for side, percent in zip(size, (keep_height, keep_width), strict=True):
        kept = max(int(side / 100.0 * percent), 1)
        spans.append(slice((side - kept) // 2, (side - kept) // 2 + kept))
    return size, (spans[0], spans[1])
