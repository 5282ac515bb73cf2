"""Pictures through a network of controlnet-aux, many at once, at exactly the size that was asked for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .annotator import Annotator
from .canvas import HintFor, hint_size, to_pictures

CELL = 8
"""Sides that the networks divide; a side below is filled up with the picture's edge."""


def detect_maps(
    frames: Tensor, resolution: int, detector: Annotator, compute: Callable[[Tensor], Tensor], multiple: int = CELL
) -> Tensor:
    """Run a network on pictures.

    The package's own detectors take one picture at a time, round its sides to multiples of 64 whatever is asked for, and
    resize the result once more; so its networks are used and not its detectors.

    Args:
        frames: (B, H, W, 3), RGB in [0, 1].
        resolution: Shorter side of the result in pixels, 0 for the pictures' own size; see `hint_size`.
        detector: Where the network computes.
        compute: (B, 3, H', W') of whole numbers from 0 to 255, sides multiples of `multiple`, to (B, C, H', W') in [0, 1].
        multiple: What the network needs.

    Returns:
        (B, H', W', 3) on the CPU: whole 255ths, cut and not rounded, as the detectors cut theirs.
    """
    height, width = hint_size(frames.shape[1], frames.shape[2], resolution)
    pictures = to_pictures(frames, (height, width))
    pixels = torch.from_numpy(pictures).to(detector.device).movedim(-1, 1).float()  # BHWC -> BCHW
    pixels = F.pad(pixels, (0, -width % multiple, 0, -height % multiple), mode="replicate")
    maps = compute(pixels)[..., :height, :width]
    hints = (maps * 255).clamp(0, 255).floor().div(255).movedim(1, -1)  # BCHW -> BHWC
    return hints.expand(*hints.shape[:3], 3).contiguous().cpu()


def fuse(sides: list[Tensor], pixels: Tensor) -> Tensor:
    """Bring the side outputs of an edge network together.

    Args:
        sides: (B, 1, h, w) each.
        pixels: (B, 3, H, W), the network's input.

    Returns:
        (B, 1, H, W) in [0, 1].

    Source: controlnet-aux 0.0.10 hed/__init__.py and teed/__init__.py.
    """
    size = pixels.shape[-2:]
    resized = [F.interpolate(side, size, mode="bilinear", align_corners=False) for side in sides]
    return torch.sigmoid(torch.stack(resized).mean(0))


def quantize(edges: Tensor, levels: int = 2) -> Tensor:
    """Soft edges in [0, 1] to `levels` + 1 steps. Source: controlnet-aux 0.0.10 util.py, `safe_step`."""
    return (edges * (levels + 1)).floor() / levels


def black_on_white(hints: Tensor, hint_for: HintFor) -> Tensor:
    """Lines that are drawn black on white, as the family expects them: so for CtrLoRA, white on black for the others."""
    return hints if hint_for == "ctrlora" else 1 - hints
