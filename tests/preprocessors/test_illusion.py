"""Illusion hints against the reference's picture and against morphology by another library."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hint_pictures import ASTRONAUT, golden_hint, to_integers
from nextcontrol.preprocessors.illusion import illusion
from scipy.ndimage import maximum_filter, minimum_filter


def ellipse(side: int) -> np.ndarray:
    """Rows of a filled ellipse, rounded to whole pixels."""
    radius = side // 2
    half = np.rint(radius * np.sqrt(1 - (np.arange(side) - radius) ** 2 / radius**2))
    return abs(np.arange(side) - radius) <= half[:, None]


def expected(values: np.ndarray) -> np.ndarray:
    levels = np.where(values < 85, 0, np.where(values <= 170, 127, 255))
    grow = lambda picture, side: maximum_filter(picture, footprint=ellipse(side), mode="constant", cval=0)  # noqa: E731
    shrink = lambda picture, side: minimum_filter(picture, footprint=ellipse(side), mode="constant", cval=255)  # noqa: E731
    return grow(shrink(shrink(grow(levels, 11), 11), 3), 3)


def smooth_picture() -> torch.Tensor:
    """Every value of every channel, in areas of some size."""
    rows, columns = torch.meshgrid(torch.arange(192), torch.arange(256), indexing="ij")
    waves = [torch.sin(rows / a + columns / b) for a, b in ((9, 23), (31, 7), (17, 13))]
    return torch.stack([(wave * 127.5 + 127.5).round() / 255 for wave in waves], -1)[None]


def test_the_astronaut_is_the_reference_pixel_for_pixel():
    assert torch.equal(illusion(ASTRONAUT, 512), golden_hint("astronaut.illusion"))


@pytest.mark.parametrize("picture", [ASTRONAUT.flip(2).contiguous(), smooth_picture()], ids=["astronaut", "waves"])
def test_areas_are_three_levels_closed_and_opened(picture):
    values = to_integers(picture)[0]
    for channel, plane in (("blue", values[..., 2]), ("value", values.max(-1))):
        found = to_integers(illusion(picture, 0, channel))[0]
        assert np.array_equal(found, expected(plane)[..., None].repeat(3, -1))
    assert not torch.equal(illusion(picture, 0, "blue"), illusion(picture, 0, "value"))


def test_the_levels_change_at_85_and_171():
    steps = torch.tensor([84, 85, 170, 171]).repeat_interleave(64)[None, None, :, None].expand(1, 64, -1, 3) / 255
    assert to_integers(illusion(steps, 0))[0, 32, 32::64, 0].tolist() == [0, 127, 127, 255]
