"""A picture with its contents stirred: the colours stay, the shapes go."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .canvas import Picture, draw_each, hint_size, once, seeds_of

DISC = 256
"""Pixels between the random numbers of the noise."""


def shuffle(frames: Tensor, resolution: int = 512, seed: int | Sequence[int] = 0) -> Tensor:
    """Each pixel from another place, along smooth noise.

    Args:
        frames: (B, H, W, 3), RGB in [0, 1].
        resolution: Shorter side of the result in pixels, 0 for the pictures' own size; see `hint_size`.
        seed: 0 or more; one for all frames, or one for each.

    Returns:
        (B, H', W', 3) in [0, 1].

    Raises:
        ValueError: The seeds are too many, too few or negative.

    Source: lllyasviel/ControlNet@ed85cd1 annotator/shuffle, which xyfJASON/ctrlora uses: the noise is uniform, enlarged by a
        cubic filter, and stretched to the whole picture.
    """
    size = hint_size(frames.shape[1], frames.shape[2], resolution)
    seeds = seeds_of(seed, len(frames))
    flow = once(lambda one: _draw_flow(size, one), seeds)

    def draw(picture: Picture, one: int) -> Picture:
        import cv2

        columns, rows = flow(one)
        return np.asarray(cv2.remap(picture, columns, rows, cv2.INTER_LINEAR), dtype=np.uint8)

    return draw_each(frames, size, draw, seeds)


def _draw_flow(size: tuple[int, int], seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Columns and rows that the pixels of a picture come from."""
    random = np.random.default_rng(seed)
    height, width = size
    return _stretched_noise(size, random, width - 1), _stretched_noise(size, random, height - 1)


def _stretched_noise(size: tuple[int, int], random: np.random.Generator, largest: int) -> NDArray[np.float32]:
    """(height, width) from 0 to `largest`, both of which occur."""
    import cv2

    height, width = size
    noise = random.uniform(size=(height // DISC + 2, width // DISC + 2))
    # A margin, so that the picture's edges lie inside the noise.
    enlarged = cv2.resize(noise, (width + 2 * DISC, height + 2 * DISC), interpolation=cv2.INTER_CUBIC)
    field = enlarged[DISC : DISC + height, DISC : DISC + width]
    field = (field - field.min()) / (field.max() - field.min())
    return np.asarray(field * largest, dtype=np.float32)
