"""How several controls become one: weights, resolution weighting and the cap on their sum."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

BALANCES = ("sum", "mean", "cap")
# Source: lllyasviel/ControlNet, gradio_canny2image.py, `control_scales` with guess_mode.
GUESS_DECAY = 0.825


def weights_of(strengths: Sequence[float], balance: str) -> list[float]:
    """What each control is multiplied by.

    Args:
        strengths: Of the controls that act, 0 or more, not all 0.
        balance: One of `BALANCES`; `mean` divides by the sum.

    Returns:
        One weight for each.
    """
    total = sum(strengths)
    return [strength / total for strength in strengths] if balance == "mean" else list(strengths)


def norm(x: Tensor) -> Tensor:
    """Euclidean norm of each sample, (N, ...) to (N, 1, 1, 1) in fp32."""
    return torch.linalg.vector_norm(x.float().flatten(1), dim=1)[:, None, None, None]


def cap_factor(total: Tensor, largest: Tensor) -> Tensor:
    """What has to be left of a sum of residuals so that, sample by sample, its norm is at most that of its largest term.

    Args:
        total: (N, C, H, W), the weighted sum, masks in it.
        largest: (N, 1, 1, 1), the norm of the largest term of each sample.

    Returns:
        (N, 1, 1, 1) in fp32: min(1, largest / |total|).
    """
    return (largest / norm(total).clamp_min(torch.finfo(torch.float32).tiny)).clamp(max=1)


def level_of(latent_height: int, height: int) -> int:
    """How many times smaller than the latent a block's feature is: 1, 2, 4, 8, also where an odd side was rounded up."""
    return 2 ** round(math.log2(latent_height / height))


def resolution_weight(latent_height: int, height: int) -> float:
    """CFG resolution weighting: the factor of a connection to a block of this height.

    Args:
        latent_height: Of the latent; 64 for a picture of 512 pixels.
        height: Of the residual.

    Returns:
        64 / h for a picture of 512 pixels: 1, 2, 4 and 8 on the levels of SD1.5, and the same for every other size.

    Source: arXiv:2302.05543, section 3.4.
    """
    return float(level_of(latent_height, height))


def guess_weight(index: int, count: int) -> float:
    """The factor of guess mode: 1 for the deepest connection, falling towards the shallow ones.

    Args:
        index: 0 is the shallowest.
        count: Connections, the middle one included; 13 in SD1.5.

    Returns:
        0.825 ** (count - 1 - index).
    """
    return GUESS_DECAY ** (count - 1 - index)
