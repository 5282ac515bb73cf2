"""Surface normals as NormalBae estimates them."""

from __future__ import annotations

import torch
from torch import Tensor

from .annotator import Annotator
from .aux_maps import detect_maps

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MULTIPLE = 32


def normal_bae(frames: Tensor, resolution: int, detector: Annotator) -> Tensor:
    """Surface normals of each picture.

    Args:
        frames: (B, H, W, 3), RGB in [0, 1].
        resolution: Shorter side of the result in pixels, 0 for the pictures' own size; see `hint_size`.
        detector: The network "normal_bae".

    Returns:
        (B, H', W', 3) in [0, 1]: x, y and z of the unit normal as red, green and blue, -1 to 1 as 0 to 1.

    Source: controlnet-aux 0.0.10 normalbae/__init__.py.
    """
    mean, deviation = (torch.tensor(values, device=detector.device)[:, None, None] for values in (MEAN, DEVIATION))

    def compute(pixels: Tensor) -> Tensor:
        scales, _, _ = detector.network((pixels / 255 - mean) / deviation)
        return torch.as_tensor((scales[-1][:, :3] + 1) / 2)

    return detect_maps(frames, resolution, detector, compute, MULTIPLE)
