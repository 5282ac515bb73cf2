"""Soft edges of PiDiNet, TEED and Anyline: white on black."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .annotator import Annotator
from .aux_maps import detect_maps, fuse, quantize

SIGMA, FAINT, WEAKEST, GAIN = 2.0, 3, 16, 127
SMALLEST_SPOT = 12
"""Pixels that touch; fewer are dust. The source counts 36 in three equal channels that touch too."""


def pidinet(frames: Tensor, resolution: int, detector: Annotator, safe: bool = False) -> Tensor:
    """Soft edges as PiDiNet finds them.

    Args:
        frames: (B, H, W, 3), RGB in [0, 1].
        resolution: Shorter side of the result in pixels, 0 for the pictures' own size; see `hint_size`.
        detector: The network "pidinet".
        safe: Three levels only.

    Returns:
        (B, H', W', 3) in [0, 1].

    Source: controlnet-aux 0.0.10 pidi/__init__.py. The network reads blue, green, red.
    """

    def compute(pixels: Tensor) -> Tensor:
        edges: Tensor = detector.network(pixels.flip(1) / 255)[-1]
        return quantize(edges) if safe else edges

    return detect_maps(frames, resolution, detector, compute)


def teed(frames: Tensor, resolution: int, detector: Annotator, safe: bool = False) -> Tensor:
    """Soft edges as TEED finds them.

    Args:
        frames: (B, H, W, 3), RGB in [0, 1].
        resolution: Shorter side of the result in pixels, 0 for the pictures' own size; see `hint_size`.
        detector: The network "teed".
        safe: Three levels only.

    Returns:
        (B, H', W', 3) in [0, 1].

    Source: controlnet-aux 0.0.10 teed/__init__.py.
    """

    def compute(pixels: Tensor) -> Tensor:
        edges = fuse(detector.network(pixels), pixels)
        return quantize(edges) if safe else edges

    return detect_maps(frames, resolution, detector, compute)


def anyline(frames: Tensor, resolution: int, detector: Annotator) -> Tensor:
    """TEED's edges in three levels, and over them the fine dark lines of the picture itself.

    Args:
        frames: (B, H, W, 3), RGB in [0, 1].
        resolution: Shorter side of the result in pixels, 0 for the pictures' own size; see `hint_size`.
        detector: The network "teed".

    Returns:
        (B, H', W', 3) in [0, 1].

    Source: TheMistoAI/ComfyUI-Anyline@017019e anyline.py. controlnet-aux computes its blend in bytes, which overflow into
        speckles; here it is done in [0, 1] as in the source.
    """

    def compute(pixels: Tensor) -> Tensor:
        edges = quantize(fuse(detector.network(pixels), pixels)).clamp(0, 1)
        pictures = pixels.movedim(1, -1).cpu().numpy()
        strokes = torch.from_numpy(np.stack([dark_strokes(picture) for picture in pictures])).to(edges)[:, None] / 255
        return 1 - (1 - strokes) * (1 - edges)

    return detect_maps(frames, resolution, detector, compute)


def dark_strokes(picture: NDArray[np.float32]) -> NDArray[np.uint8]:
    """How much darker than their surroundings pixels are, without dust.

    Args:
        picture: (H, W, 3) from 0 to 255.

    Returns:
        (H, W), 0 where a pixel is not darker.

    Source: controlnet-aux 0.0.10 anyline/__init__.py.
    """
    import cv2

    depth = (cv2.GaussianBlur(picture, (0, 0), SIGMA) - picture).min(axis=2).clip(0, 255)
    seen = depth[depth > FAINT]
    strength = max(WEAKEST, float(np.median(seen))) if seen.size else WEAKEST
    strokes = (depth / strength * GAIN).clip(0, 255).astype(np.uint8)
    _, labels, statistics, _ = cv2.connectedComponentsWithStats((strokes > 0).astype(np.uint8), connectivity=4)
    is_kept = statistics[:, cv2.CC_STAT_AREA] >= SMALLEST_SPOT
    return np.asarray(strokes * is_kept[labels], dtype=np.uint8)
