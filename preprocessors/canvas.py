"""What every preprocessor shares: the size of its pictures, and the way from floats to the bytes of the references."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Picture = NDArray[np.uint8]
"""(H, W, 3), RGB bytes; a grey one is (H, W)."""
HintFor = Literal["ctrlora", "controlnext", "plain"]
"""Whose range, colours or polarity a hint has, where families differ."""
HINT_FOR: tuple[HintFor, ...] = get_args(HintFor)

SIDE_MULTIPLE = 64
"""Sides of a resized hint, so that every UNet level divides evenly."""
KEPT_MULTIPLE = 8
"""Sides of a hint at the picture's own size: pixels of a latent cell."""
LARGEST_SIDE = 16384
"""Of a hint, in pixels; OpenCV's own limits lie at twice that."""
THREADS = 8
"""Pictures drawn at a time, at most."""


def hint_size(height: int, width: int, resolution: int) -> tuple[int, int]:
    """Height and width of a hint.

    Args:
        height: Of the picture, in pixels.
        width: Of the picture, in pixels.
        resolution: Shorter side of the hint in pixels, or 0 for the picture's own size.

    Returns:
        Multiples of 64 near the asked-for size; with 0, the picture's sides rounded down to multiples of 8.

    Raises:
        ValueError: `resolution` is negative, or a side would exceed `LARGEST_SIDE`.

    Source: xyfJASON/ctrlora@b4422b4 annotator/util.py, `resize_image`.
    """
    if resolution < 0:
        raise ValueError(f"resolution ({resolution}) must be 0 or more: 0 keeps the picture's size.")
    multiple, scale = (SIDE_MULTIPLE, resolution / min(height, width)) if resolution else (KEPT_MULTIPLE, 1.0)
    fit = round if resolution else int
    tall, wide = (max(fit(side * scale / multiple), 1) * multiple for side in (height, width))
    if max(tall, wide) > LARGEST_SIDE:
        raise ValueError(
            f"A picture of {width}x{height} pixels gives a hint of {wide}x{tall} at the resolution {resolution}, and "
            f"{LARGEST_SIDE} is the longest side: choose a smaller resolution above 0, or crop the picture."
        )
    return tall, wide


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Refuse a parameter that is out of its range.

    Args:
        name: Of the parameter.
        value: Of the parameter.
        low: Smallest that works.
        high: Largest that works.

    Raises:
        ValueError: It is not between them.
    """
    if not low <= value <= high:
        raise ValueError(f"{name} ({value:g}) must be from {low:g} to {high:g}.")


def seeds_of(seed: int | Sequence[int], count: int) -> list[int]:
    """A seed for each frame.

    Args:
        seed: One for all, or one for each.
        count: Of frames.

    Returns:
        `count` seeds.

    Raises:
        ValueError: There are more or fewer, or one is negative.
    """
    seeds = [seed] * count if isinstance(seed, int) else list(seed)
    if len(seeds) != count:
        raise ValueError(f"There are {len(seeds)} seeds for {count} pictures: give one, or one for each.")
    if min(seeds, default=0) < 0:
        raise ValueError(f"seed ({min(seeds)}) must be 0 or more.")
    return seeds


def once(draw: Callable[[int], Any], seeds: Sequence[int]) -> Callable[[int], Any]:
    """`draw` as it is, or evaluated beforehand where all seeds are the same, as for the frames of a clip."""
    if len(set(seeds)) != 1:
        return draw
    drawn = draw(seeds[0])
    return lambda _: drawn


def to_bytes(frames: Tensor) -> NDArray[np.uint8]:
    """(…, 3) in [0, 1] to bytes, rounded to nearest; what lies outside is clamped."""
    return _to_bytes(_to_array(frames))


def resize(picture: Picture, size: tuple[int, int]) -> Picture:
    """Resize bytes to (height, width): Lanczos where the shorter side grows, else area, as CtrLoRA's annotators do."""
    import cv2

    if picture.shape[:2] == size:
        return picture
    method = cv2.INTER_LANCZOS4 if min(size) > min(picture.shape[:2]) else cv2.INTER_AREA
    return np.asarray(cv2.resize(picture, (size[1], size[0]), interpolation=method), dtype=np.uint8)


def to_pictures(frames: Tensor, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Frames (B, H, W, 3) as the bytes that a network is shown: (B, *size, 3)."""
    return np.stack([resize(picture, size) for picture in to_bytes(frames)])


def draw_each(
    frames: Tensor,
    size: tuple[int, int],
    draw: Callable[..., Picture],
    *beside: Sequence[Any] | NDArray[Any],
    fit: Callable[[Picture, tuple[int, int]], Picture] = resize,
) -> Tensor:
    """Bring each picture to the size of its hint and draw the hint, several at a time.

    Args:
        frames: (B, H, W, 3), RGB in [0, 1]; what lies outside is clamped.
        size: Height and width of the hints.
        draw: Maps bytes (height, width, 3), which it may overwrite, and one of each `beside` to bytes of that size, RGB or
            grey. It runs in several threads and so without torch.
        beside: Rows of B more arguments.
        fit: Resizes a picture.

    Returns:
        (B, height, width, 3) in [0, 1], on the CPU.
    """
    pictures = _to_array(frames)
    hints = torch.empty((len(pictures), *size, 3))
    targets = hints.numpy()

    def work(index: int) -> None:
        _put(draw(fit(_to_bytes(pictures[index]), size), *(row[index] for row in beside)), targets[index])

    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        list(pool.map(work, range(len(pictures))))
    return hints


def _to_array(frames: Tensor) -> NDArray[np.float32]:
    return frames.detach().to("cpu", torch.float32).contiguous().numpy()


def _to_bytes(floats: NDArray[np.float32]) -> NDArray[np.uint8]:
    """In one pass: OpenCV rounds to nearest and clamps by itself."""
    import cv2

    flat = floats.reshape(len(floats), -1)
    return np.asarray(cv2.addWeighted(flat, 255.0, flat, 0.0, 0.0, dtype=cv2.CV_8U), dtype=np.uint8).reshape(floats.shape)


def _put(picture: Picture, hint: NDArray[np.float32]) -> None:
    """Write bytes, RGB or grey, into floats in [0, 1]: exactly byte / 255."""
    import cv2

    table = np.arange(256, dtype=np.float32) / np.float32(255)
    if picture.ndim == hint.ndim:
        cv2.LUT(picture, table, dst=hint)
    else:
        cv2.cvtColor(cv2.LUT(picture, table), cv2.COLOR_GRAY2RGB, dst=hint)
