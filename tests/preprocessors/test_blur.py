"""Blur hints against a Gaussian filter of another library."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hint_pictures import ASTRONAUT, noise_picture, to_integers
from nextcontrol.preprocessors.blur import blur
from scipy.ndimage import gaussian_filter1d

ROUNDING = 1.6
"""Of 255: OpenCV filters bytes with weights of 8 bits, once along each side."""


def filtered(picture: np.ndarray, kernel: int, sigma: float) -> np.ndarray:
    for axis in (1, 2):
        picture = gaussian_filter1d(picture.astype(float), sigma, axis, mode="mirror", radius=kernel // 2)
    return picture


@pytest.mark.parametrize("kernel", [1, 5, 55, 101])
def test_the_standard_deviation_is_4_whatever_the_kernel(kernel):
    found = to_integers(blur(ASTRONAUT, 128, kernel))
    plain = to_integers(blur(ASTRONAUT, 128, 1))
    assert abs(found - filtered(plain, kernel, 4.0)).max() < ROUNDING


@pytest.mark.parametrize("kernel", [35, 55, 101, 255])
def test_a_large_kernel_is_opencvs_own_pixel_for_pixel(kernel):
    """Though a smaller one with the same weights is used."""
    picture = noise_picture(96, 160)
    expected = cv2.GaussianBlur(to_integers(picture)[0].astype(np.uint8), (kernel, kernel), 4)
    assert np.array_equal(to_integers(blur(picture, 0, kernel))[0], expected)


def test_the_standard_deviation_can_follow_the_kernel():
    plain = to_integers(blur(ASTRONAUT, 128, 1))
    found = to_integers(blur(ASTRONAUT, 128, 55, "kernel"))
    assert abs(found - filtered(plain, 55, 8.6)).max() < ROUNDING
    assert abs(found - to_integers(blur(ASTRONAUT, 128, 55))).max() > 20


def test_a_kernel_may_be_larger_than_the_picture():
    assert blur(noise_picture(8, 16), 0, 255).shape == (1, 8, 16, 3)


@pytest.mark.parametrize(
    ("kernel", "sentence"),
    [(54, r"^kernel \(54\) must be odd: use 53 or 55\.$"), (-3, r"^kernel \(-3\) must be from 1 to 255\.$"), (257, "kernel")],
)
def test_a_kernel_that_cannot_be_is_one_sentence(kernel, sentence):
    with pytest.raises(ValueError, match=sentence):
        blur(ASTRONAUT, 64, kernel)
