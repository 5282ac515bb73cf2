"""A picture with a hole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .canvas import Picture, draw_each, hint_size
from .holes import Shape, draw_holes


def inpaint(
    frames: Tensor, resolution: int = 512, shape: Shape = "brush", seed: int | Sequence[int] = 0, holes: Tensor | None = None
) -> Tensor:
    """Each picture, black where it is to be painted.

    Args:
        frames: (B, H, W, 3), RGB in [0, 1].
        resolution: Shorter side of the result in pixels, 0 for the pictures' own size; see `hint_size`.
        shape: Of a random hole; see `draw_holes`.
        seed: 0 or more; one for all frames, or one for each.
        holes: (B, H', W') of the result's size, black above 0.5, in place of random ones.

    Returns:
        (B, H', W', 3) in [0, 1].

    Raises:
        ValueError: The seeds are too many, too few or negative.
    """
    size = hint_size(frames.shape[1], frames.shape[2], resolution)
    chosen = draw_holes(size, len(frames), shape, seed) if holes is None else holes
    return draw_each(frames, size, _blacken, (chosen <= 0.5).to("cpu", torch.uint8).numpy())


def _blacken(picture: Picture, kept: NDArray[np.uint8]) -> Picture:
    import cv2

    return np.asarray(cv2.copyTo(picture, kept), dtype=np.uint8)
