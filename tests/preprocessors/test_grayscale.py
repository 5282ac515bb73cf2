"""Grayscale hints against the reference's picture and BT.601."""

from __future__ import annotations

import numpy as np
import torch
from hint_pictures import ASTRONAUT, golden_hint, noise_picture, to_integers
from nextcontrol.preprocessors.grayscale import grayscale


def test_the_astronaut_is_the_reference_pixel_for_pixel():
    assert torch.equal(grayscale(ASTRONAUT, 512), golden_hint("astronaut.grayscale"))


def test_the_brightness_is_that_of_bt_601_in_all_channels():
    picture = noise_picture(64, 96)
    found = to_integers(grayscale(picture, 0))
    exact = to_integers(picture) @ np.array([0.299, 0.587, 0.114])
    assert abs(found - exact[..., None]).max() < 0.51
    assert np.array_equal(found, found[..., :1].repeat(3, -1))
