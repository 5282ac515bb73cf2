"""Soft edges as HED finds them, and the sketches that CtrLoRA derives from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from .annotator import Annotator
from .aux_maps import black_on_white, detect_maps, fuse, quantize
from .canvas import HintFor, Picture, check_range, draw_each, seeds_of

ThresholdFrom = Literal["fixed", "random"]
LOWEST, HIGHEST = 110, 159
"""Thresholds that CtrLoRA's sketches were drawn with."""
ATTEMPTS = 5
DARK, DARK_SHARE = 5, 0.005
"""A sketch is kept if the values under the first, over all three channels, are more than this share of its pixels."""
SMALLEST = 16


def hed(frames: Tensor, resolution: int, detector: Annotator, safe: bool = False) -> Tensor:
    """Soft edges of each picture, white on black.

    Args:
        frames: (B, H, W, 3), RGB in [0, 1].
        resolution: Shorter side of the result in pixels, 0 for the pictures' own size; see `hint_size`.
        detector: The network "hed".
        safe: Three levels only. CtrLoRA was trained without.

    Returns:
        (B, H', W', 3) in [0, 1].

    Source: xyfJASON/ctrlora@b4422b4 annotator/hed; the network is controlnet-aux's.
    """

    def compute(pixels: Tensor) -> Tensor:
        edges = fuse(detector.network(pixels), pixels)
        return quantize(edges) if safe else edges

    return detect_maps(frames, resolution, detector, compute, SMALLEST)


def sketch(
    frames: Tensor,
    resolution: int,
    detector: Annotator,
    threshold: int = (LOWEST + HIGHEST + 1) // 2,
    threshold_from: ThresholdFrom = "fixed",
    seed: int | Sequence[int] = 0,
    hint_for: HintFor = "ctrlora",
) -> Tensor:
    """A hand-drawn look: HED's edges cut at a threshold and blurred a little.

    Args:
        frames: (B, H, W, 3), RGB in [0, 1].
        resolution: Shorter side of the result in pixels, 0 for the pictures' own size; see `hint_size`.
        detector: The network "hed".
        threshold: 0 to 254, edges above become lines.
        threshold_from: "fixed" takes `threshold`; "random" draws one from `LOWEST` to `HIGHEST`, again while the sketch is
            nearly empty, `ATTEMPTS` times in all.
        seed: For "random": one for all pictures, which share a threshold then where they can, or one for each.
        hint_for: "ctrlora" gives black on white, the others white on black.

    Returns:
        (B, H', W', 3) in [0, 1].

    Raises:
        ValueError: `threshold` or a seed is out of range.

    Source: xyfJASON/ctrlora@b4422b4, hedsketch. There a second attempt starts from the first one's inverted sketch, which
        turns the polarity around; here each starts from the edges.
    """
    return sketch_of(hed(frames, resolution, detector), threshold, threshold_from, seed, hint_for)


def sketch_of(
    edges: Tensor,
    threshold: int,
    threshold_from: ThresholdFrom = "fixed",
    seed: int | Sequence[int] = 0,
    hint_for: HintFor = "ctrlora",
) -> Tensor:
    """The second half of `sketch`, from hints of `hed` on; arguments and errors are the same.

    Returns:
        (B, H, W, 3), as `edges`.
    """
    check_range("threshold", threshold, 0, 254)
    size = (edges.shape[1], edges.shape[2])
    if threshold_from == "random":
        hints = draw_each(edges, size, _random_sketch, seeds_of(seed, len(edges)))
    else:
        hints = draw_each(edges, size, lambda picture: _cut(picture, threshold))
    return black_on_white(hints, hint_for)


def _random_sketch(edges: Picture, seed: int) -> Picture:
    generator = np.random.default_rng(seed)
    for _ in range(ATTEMPTS):
        lines = _cut(edges, int(generator.integers(LOWEST, HIGHEST + 1)))
        if np.count_nonzero(lines < DARK) > DARK_SHARE * edges.shape[0] * edges.shape[1]:
            break
    return lines


def _cut(edges: Picture, threshold: int) -> Picture:
    import cv2

    lines = np.where(edges > threshold, 0, 255).astype(np.uint8)
    return np.asarray(cv2.GaussianBlur(lines, (3, 3), 0), dtype=np.uint8)
