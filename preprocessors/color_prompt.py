"""A line drawing with dots of colour."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .canvas import Picture, draw_each, hint_size, once, resize, seeds_of, to_bytes

FEWEST = 5
MORE = 0.9
"""Chance of another dot, each time."""
RADII = (0.02, 0.04)
"""In shorter sides of the hint."""
GREY_SPREAD, GREY_SHARE = 5, 0.95
"""Standard deviation of a pixel's three bytes below which it is grey, and the share of such pixels in a grey picture."""

Dots = list[tuple[int, int, int]]
"""Row, column and radius of each."""


def color_prompt(
    frames: Tensor,
    resolution: int = 512,
    lines: Tensor | None = None,
    seed: int | Sequence[int] = 0,
    on_grey: Callable[[int], object] = bool,
) -> Tensor:
    """A line drawing, and on it discs in the colours of a picture.

    Args:
        frames: (B, H, W, 3), RGB in [0, 1]: the colours.
        resolution: Shorter side of the result in pixels, 0 for the pictures' own size; see `hint_size`.
        lines: (B or 1, h, w, 3), RGB in [0, 1]: the drawing, resized to the result; None for a white page.
        seed: 0 or more; one for all frames, or one for each.
        on_grey: Called with the index of each grey picture: it gives no dots.

    Returns:
        (B, H', W', 3) in [0, 1].

    Raises:
        ValueError: The seeds are too many, too few or negative.

    Source: xyfJASON/ctrlora@b4422b4 annotator/lineart_anime_with_color_prompt, which skips grey pictures.
    """
    size = hint_size(frames.shape[1], frames.shape[2], resolution)
    seeds = seeds_of(seed, len(frames))
    dots = once(lambda one: _draw_dots(size, np.random.default_rng(one)), seeds)
    pages = np.full((1, *size, 3), 255, dtype=np.uint8) if lines is None else to_bytes(lines)

    def draw(picture: Picture, index: int) -> Picture:
        page = resize(pages[index % len(pages)], size).copy()
        if _is_grey(picture):
            on_grey(index)
            return page
        for dot in dots(seeds[index]):
            _paint(page, picture, *dot)
        return page

    return draw_each(frames, size, draw, range(len(frames)))


def _draw_dots(size: tuple[int, int], random: np.random.Generator) -> Dots:
    smallest, largest = (int(ratio * min(size)) for ratio in RADII)
    dots: Dots = []
    while random.uniform() < MORE or len(dots) < FEWEST:
        radius = int(random.integers(smallest, largest, endpoint=True))
        dots.append((int(random.integers(size[0])), int(random.integers(size[1])), radius))
    return dots


def _is_grey(picture: Picture) -> bool:
    red, green, blue = np.moveaxis(picture.astype(np.int32), 2, 0)
    # Nine times the variance of three numbers, without a mean.
    spread = (red - green) ** 2 + (green - blue) ** 2 + (blue - red) ** 2
    return bool(np.mean(spread < 9 * GREY_SPREAD**2) > GREY_SHARE)


def _paint(page: Picture, picture: Picture, row: int, column: int, radius: int) -> None:
    """A disc in the mean colour of what lies below it, cut off at the edges."""
    rows, columns = (slice(max(center - radius, 0), center + radius + 1) for center in (row, column))
    part = picture[rows, columns]
    disc = _disc(rows.start - row, columns.start - column, part.shape[:2], radius)
    page[rows, columns][disc] = part[disc].mean(axis=0).astype(np.uint8)


def _disc(top: int, left: int, size: tuple[int, ...], radius: int) -> NDArray[np.bool_]:
    rows, columns = np.arange(top, top + size[0])[:, None], np.arange(left, left + size[1])
    return np.asarray(rows**2 + columns**2 <= radius**2)
