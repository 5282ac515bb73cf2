"""Palette hints against the reference's picture and against its filter written out in integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hint_pictures import ASTRONAUT, golden_hint, noise_picture, to_integers
from nextcontrol.preprocessors.palette import palette


def cell_colors(picture: np.ndarray, cell: int) -> np.ndarray:
    """OpenCV's cubic filter at a cell's centre, in its fixed point of 11 bits: only the middle 4 x 4 pixels count."""
    weights, start = np.array([-192, 1216, 1216, -192]), cell // 2 - 2
    rows = sum(weight * picture[start + i :: cell] for i, weight in enumerate(weights))
    sums = sum(weight * rows[:, start + i :: cell] for i, weight in enumerate(weights))
    return np.clip((sums + (1 << 21)) >> 22, 0, 255)


def test_the_astronaut_is_the_reference_pixel_for_pixel():
    assert torch.equal(palette(ASTRONAUT, 512), golden_hint("astronaut.palette"))


@pytest.mark.parametrize("cell", [64, 32])
def test_a_cell_is_the_cubic_stencil_at_its_centre(cell):
    picture = noise_picture(256, 384)
    found = to_integers(palette(picture, 0, cell))
    expected = cell_colors(to_integers(picture)[0], cell)
    assert np.array_equal(found[0], expected.repeat(cell, 0).repeat(cell, 1))
    means = to_integers(picture)[0].reshape(256 // cell, cell, 384 // cell, cell, 3).mean((1, 3))
    assert abs(means - expected).max() > 20


def test_a_picture_smaller_than_a_cell_has_one_colour():
    assert len(palette(noise_picture(40, 24), 0).unique(dim=0).flatten(0, 2).unique(dim=0)) == 1
    assert palette(noise_picture(40, 24), 0).shape == (1, 40, 24, 3)


@pytest.mark.parametrize("cell", [0, 7, 513])
def test_a_cell_out_of_range_is_one_sentence(cell):
    with pytest.raises(ValueError, match=rf"^cell \({cell}\) must be from 8 to 512\.$"):
        palette(ASTRONAUT, 64, cell)
