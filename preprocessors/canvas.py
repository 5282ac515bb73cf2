"""What every preprocessor shares: the size of its pictures, and the way from floats to the bytes of the references."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SIDE_MULTIPLE = 64
"""Sides of a resized hint, so that every UNet level divides evenly."""
KEPT_MULTIPLE = 8
"""Sides of a hint at the picture's own size: pixels of a latent cell."""


def hint_size(height: int, width: int, resolution: int) -> tuple[int, int]:
    """Height and width of a hint.

    Args:
        height: Of the picture, in pixels.
        width: Of the picture, in pixels.
        resolution: Shorter side of the hint in pixels, or 0 for the picture's own size.

    Returns:
        Multiples of 64 near the asked-for size; with 0, the picture's sides rounded down to multiples of 8.

    Source: xyfJASON/ctrlora@b4422b4 annotator/util.py, `resize_image`.
    """
    if resolution == 0:
        return max(height // KEPT_MULTIPLE, 1) * KEPT_MULTIPLE, max(width // KEPT_MULTIPLE, 1) * KEPT_MULTIPLE
    scale = resolution / min(height, width)
    return tuple(max(round(side * scale / SIDE_MULTIPLE), 1) * SIDE_MULTIPLE for side in (height, width))  # type: ignore[return-value]


def to_bytes(frames: Tensor) -> NDArray[np.uint8]:
    """(B, H, W, 3) in [0, 1] to bytes, rounded to nearest."""
    return (frames.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def resize(picture: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize bytes (H, W, 3) to (height, width): Lanczos when enlarging, area when reducing, as CtrLoRA's annotators do."""
    import cv2

    height, width = picture.shape[:2]
    if (height, width) == size:
        return picture
    method = cv2.INTER_LANCZOS4 if size[0] > height else cv2.INTER_AREA
    return np.asarray(cv2.resize(picture, (size[1], size[0]), interpolation=method), dtype=np.uint8)
