"""Shuffle hints: where each pixel comes from, read off a picture whose colours are its coordinates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hint_pictures import ASTRONAUT
from nextcontrol.preprocessors.shuffle import shuffle


def coordinates(height: int, width: int) -> torch.Tensor:
    """Red grows to the right and green downwards, from 0 to 1."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    return torch.stack([columns, rows, torch.zeros_like(rows)], -1)[None]


def cubic(noise: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Enlarge along an axis with the cubic kernel of a = -0.75, pixel centres at halves, edges repeated."""
    place = (np.arange(size) + 0.5) * noise.shape[axis] / size - 0.5
    base = np.floor(place).astype(int)
    total = 0
    for tap in range(-1, 3):
        x = abs(place - base - tap)
        near, far = 1.25 * x**3 - 2.25 * x**2 + 1, -0.75 * x**3 + 3.75 * x**2 - 6 * x + 3
        values = noise.take((base + tap).clip(0, noise.shape[axis] - 1), axis)
        total = total + values * np.expand_dims(np.where(x <= 1, near, far), 1 - axis)
    return total


def expected(height: int, width: int, seed: int) -> list[np.ndarray]:
    """Where red and green come from, as fractions."""
    random, planes = np.random.default_rng(seed), []
    for _ in range(2):
        noise = random.uniform(size=(height // 256 + 2, width // 256 + 2))
        field = cubic(cubic(noise, height + 512, 0), width + 512, 1)[256 : 256 + height, 256 : 256 + width]
        planes.append((field - field.min()) / (field.max() - field.min()))
    return planes


@pytest.mark.parametrize(("height", "width"), [(320, 576), (64, 128)])
def test_pixels_come_from_along_smooth_noise_that_reaches_every_edge(height, width):
    found = shuffle(coordinates(height, width), 0, 7)[0].numpy()
    for plane, place in zip((0, 1), expected(height, width, 7), strict=True):
        # Bytes, and OpenCV's 1/32 of a pixel: the corners of the range are reached within that.
        assert abs(found[..., plane] - place).max() < 1.5 / 255 + 1 / 32 / min(height, width)
        assert found[..., plane].min() == 0
        assert found[..., plane].max() == 1


def test_no_colour_is_added():
    for channel in range(3):
        found, given = shuffle(ASTRONAUT, 0)[..., channel], ASTRONAUT[..., channel]
        assert found.min() >= given.min()
        assert found.max() <= given.max()
