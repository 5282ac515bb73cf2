"""Line drawings: of photographs in general, and in the manner of anime."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .annotator import Annotator
from .aux_maps import black_on_white, detect_maps
from .canvas import HintFor

ANIME_MULTIPLE = 256


def lineart(frames: Tensor, resolution: int, detector: Annotator, hint_for: HintFor = "ctrlora") -> Tensor:
    """A line drawing of each picture.

    Args:
        frames: (B, H, W, 3), RGB in [0, 1].
        resolution: Shorter side of the result in pixels, 0 for the pictures' own size; see `hint_size`.
        detector: The network "lineart", or "lineart_coarse" for fewer and thicker lines.
        hint_for: "ctrlora" gives black on white, the others white on black.

    Returns:
        (B, H', W', 3) in [0, 1].

    Source: xyfJASON/ctrlora@b4422b4 annotator/lineart, which does not invert; controlnet-aux 0.0.10 lineart/__init__.py
        inverts.
    """
    return black_on_white(detect_maps(frames, resolution, detector, lambda pixels: detector.network(pixels / 255)), hint_for)


def lineart_anime(frames: Tensor, resolution: int, detector: Annotator, hint_for: HintFor = "ctrlora") -> Tensor:
    """A line drawing of each picture in the manner of anime.

    Args:
        frames: (B, H, W, 3), RGB in [0, 1].
        resolution: Shorter side of the result in pixels, 0 for the pictures' own size; see `hint_size`.
        detector: The network "lineart_anime". It reads pictures whose sides are multiples of 256: they are enlarged for it.
        hint_for: "ctrlora" gives black on white, the others white on black.

    Returns:
        (B, H', W', 3) in [0, 1].

    Source: xyfJASON/ctrlora@b4422b4 annotator/lineart_anime; controlnet-aux 0.0.10 lineart_anime/__init__.py inverts.
    """

    def compute(pixels: Tensor) -> Tensor:
        size = pixels.shape[-2:]
        room = tuple(side + -side % ANIME_MULTIPLE for side in size)
        # On the package's bytes OpenCV's cubic rounds; torch's has the same weights.
        enlarged = _cubic(pixels, room).round().clamp(0, 255) / 127.5 - 1
        lines: Tensor = detector.network(enlarged) * 127.5 + 127.5
        return _cubic(lines, tuple(size)) / 255

    return black_on_white(detect_maps(frames, resolution, detector, compute), hint_for)


def _cubic(pixels: Tensor, size: tuple[int, ...]) -> Tensor:
    if tuple(pixels.shape[-2:]) == size:
        return pixels
    return torch.as_tensor(F.interpolate(pixels, size, mode="bicubic", align_corners=False))
