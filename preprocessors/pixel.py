"""A picture as pixel art: large pixels, few colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .canvas import Picture, check_range, draw_each, hint_size, seeds_of

SMALLEST_SIDE = 32
"""In large pixels."""
ITERATIONS = 100
"""OpenCV's limit; scikit-learn's is 300."""
TOLERANCE = 1e-4
"""Of a centre's squared movement, in variances of the colours, as in scikit-learn."""
SAMPLED = 65536
"""Pixels that the colours are found from, at most; the reference's pictures have 16384."""


def pixel(frames: Tensor, resolution: int = 512, scale: int = 6, colors: int = 12, seed: int | Sequence[int] = 0) -> Tensor:
    """Each picture reduced, limited to its main colours by k-means, and enlarged again.

    Args:
        frames: (B, H, W, 3), RGB in [0, 1].
        resolution: Shorter side of the result in pixels, 0 for the pictures' own size; see `hint_size`.
        scale: Pixels of the hint to a large one, 1 to 64, but no side has less than `SMALLEST_SIDE` large ones. Trained with
            4 to 8; 6 is the middle.
        colors: 2 to 256. Trained with 8 to 16; 12 is the middle. A picture with fewer keeps its own.
        seed: 0 or more, for the first guess of the colours; one for all frames, or one for each.

    Returns:
        (B, H', W', 3) in [0, 1].

    Raises:
        ValueError: A parameter is out of range, or the seeds are too many, too few or negative.

    Source: xyfJASON/ctrlora@b4422b4 annotator/pixel, scripts/tool_make_cond_images.py. The reference's k-means is
        scikit-learn's; here OpenCV computes it from a first guess of our own, so the colours may end in another optimum.
    """
    check_range("scale", scale, 1, 64)
    check_range("colors", colors, 2, 256)
    size = hint_size(frames.shape[1], frames.shape[2], resolution)
    small = max(size[1] // scale, SMALLEST_SIDE), max(size[0] // scale, SMALLEST_SIDE)

    def draw(picture: Picture, one: int) -> Picture:
        import cv2

        # Lanczos without a filter against aliasing, as in training: some detail is lost and some invented.
        reduced = cv2.resize(picture, small, interpolation=cv2.INTER_LANCZOS4)
        pixels = np.asarray(reduced, dtype=np.float32).reshape(-1, 3)
        limited = _nearest(pixels, _main_colors(pixels, colors, np.random.default_rng(one))).reshape(reduced.shape)
        return np.asarray(cv2.resize(limited, size[::-1], interpolation=cv2.INTER_NEAREST), dtype=np.uint8)

    return draw_each(frames, size, draw, seeds_of(seed, len(frames)))


def _main_colors(pixels: NDArray[np.float32], count: int, random: np.random.Generator) -> NDArray[np.float32]:
    """Up to `count` centres of (N, 3) pixels, rounded."""
    import cv2

    if len(pixels) > SAMPLED:
        pixels = pixels[random.choice(len(pixels), SAMPLED, replace=False)]
    guess = _first_guess(pixels, count, random)
    labels = _distances(pixels, guess).argmin(1).astype(np.int32)
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, ITERATIONS, float(np.sqrt(TOLERANCE * pixels.var(0).mean())))
    # From given labels and in one attempt OpenCV draws no random number of its own, whose state all threads share.
    _, _, centers = cv2.kmeans(pixels, len(guess), labels[:, None], stop, 1, cv2.KMEANS_USE_INITIAL_LABELS)
    return np.rint(centers).astype(np.float32)


def _first_guess(pixels: NDArray[np.float32], count: int, random: np.random.Generator) -> NDArray[np.float32]:
    """Up to `count` different pixels far from each other: k-means++ with the 2 + ln k draws that scikit-learn makes."""
    chosen = [pixels[random.integers(len(pixels))]]
    nearest = _distances(pixels, chosen[0][None])[:, 0]
    while len(chosen) < count and nearest.any():
        ends = np.cumsum(nearest, dtype=np.float64)
        places = np.searchsorted(ends, random.uniform(0, ends[-1], 2 + int(np.log(count))), side="right").clip(
            max=len(ends) - 1
        )
        candidates = np.minimum(nearest[:, None], _distances(pixels, pixels[places]))
        best = int(candidates.sum(0, dtype=np.float64).argmin())
        chosen.append(pixels[places[best]])
        nearest = candidates[:, best]
    return np.stack(chosen)


def _distances(pixels: NDArray[np.float32], colors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Squared, of (N, 3) pixels from (K, 3) colours: (N, K). Exact for bytes, whose squares a float holds."""
    squares = np.einsum("nc,nc->n", pixels, pixels)[:, None] + np.einsum("kc,kc->k", colors, colors)
    return np.asarray(squares - 2 * pixels @ colors.T, dtype=np.float32)


def _nearest(pixels: NDArray[np.float32], colors: NDArray[np.float32]) -> NDArray[np.uint8]:
    """For each of (N, 3) pixels the nearest of a few colours."""
    pieces = [_distances(piece, colors).argmin(1) for piece in np.split(pixels, range(SAMPLED, len(pixels), SAMPLED))]
    return colors.astype(np.uint8)[np.concatenate(pieces)]
