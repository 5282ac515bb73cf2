"""Surface normals from depth, as CtrLoRA colours them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .annotator import Annotator
from .canvas import hint_size
from .depth import estimate_nearness, is_midas, stretch

FORWARD = 0.2 * np.pi
"""The part of a normal that points at the camera. Source: xyfJASON/ctrlora@b4422b4 annotator/midas/__init__.py:16."""
BACKGROUND = 0.02
"""Nearness below which a pixel counts as background, of the nearest pixel's. Source: as above."""
MIDAS_SPAN = 26.642
"""Largest less smallest value of DPT-Large on a photograph: 29.304 - 2.662.

`FORWARD` belongs to slopes of that scale, so depth from anywhere else is brought to it. Source: huggingface/transformers
tests/pipelines/test_pipelines_depth_estimation.py, the picture of two cats.
"""


def normal(
    frames: Tensor, resolution: int, annotator: Annotator, background: float = BACKGROUND, strength: float = 1.0
) -> Tensor:
    """Which way every surface faces.

    Args:
        frames: (B, H, W, 3), RGB in [0, 1].
        resolution: Shorter side of the result in pixels, 0 for the pictures' own size; see `hint_size`.
        annotator: For "depth".
        background: 0 to 1; what is farther than this faces the camera.
        strength: Multiplies the slopes; 1 is the reference's, 0 is a flat wall.

    Returns:
        (B, H', W', 3) in [0, 1]: red is the slope to the right, green the slope down, blue points at the camera.
    """
    nearness = estimate_nearness(frames, resolution, annotator)
    return normals_of(nearness if is_midas(annotator) else MIDAS_SPAN * stretch(nearness), background, strength)


def normal_from_depth(pictures: Tensor, resolution: int, background: float = BACKGROUND, strength: float = 1.0) -> Tensor:
    """`normal` of depth pictures that are there already.

    Args:
        pictures: (B, H, W, 3) in [0, 1], grey, near = bright.
        resolution: As for `normal`.
        background: As for `normal`.
        strength: As for `normal`.

    Returns:
        As `normal`.
    """
    size = hint_size(pictures.shape[1], pictures.shape[2], resolution)
    nearness = pictures.float().mean(dim=-1)
    if tuple(nearness.shape[1:]) != size:
        nearness = F.interpolate(nearness[:, None], size, mode="bicubic", antialias=True)[:, 0]
    return normals_of(MIDAS_SPAN * stretch(nearness), background, strength)


def normals_of(nearness: Tensor, background: float = BACKGROUND, strength: float = 1.0) -> Tensor:
    """Normals of surfaces.

    Args:
        nearness: (B, H, W), the larger the nearer, on the scale of DPT-Large.
        background: As for `normal`.
        strength: As for `normal`.

    Returns:
        (B, H, W, 3) in [0, 1], in steps of 1/255: (dx, dy, z) / |(dx, dy, z)| from [-1, 1], with Sobel's 3x3 slopes.

    Source: xyfJASON/ctrlora@b4422b4 annotator/midas/__init__.py:31-41.
    """
    import cv2

    is_far = (stretch(nearness) < background).cpu().numpy()
    result = torch.empty((*nearness.shape, 3))
    for hint, surface, far in zip(result, nearness.float().cpu().numpy(), is_far, strict=True):
        vectors = np.empty((*surface.shape, 3), dtype=np.float32)
        vectors[..., 0] = cv2.Sobel(surface, cv2.CV_32F, 1, 0, ksize=3)
        vectors[..., 1] = cv2.Sobel(surface, cv2.CV_32F, 0, 1, ksize=3)
        vectors[..., :2] *= strength
        vectors[far, :2] = 0
        vectors[..., 2] = FORWARD
        vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
        # Cut off, not rounded, as the reference turns floats into bytes.
        hint[:] = torch.from_numpy(np.floor(vectors * 127.5 + 127.5)) / 255
    return result
