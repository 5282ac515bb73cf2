"""Outpainting hints: how much is kept, and where."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hint_pictures import ASTRONAUT, noise_picture, to_integers
from nextcontrol.preprocessors.outpaint import outpaint, outpaint_window


@pytest.mark.parametrize(("height", "width"), [(50, 50), (20, 79), (33, 67)])
def test_a_window_keeps_its_percentages_around_the_middle(height, width):
    picture = noise_picture(192, 320)
    hint = outpaint(picture, 0, "window", height, width)
    tall, wide = 192 * height // 100, 320 * width // 100
    top, left = (192 - tall) // 2, (320 - wide) // 2
    expected = torch.zeros_like(picture)
    expected[:, top : top + tall, left : left + wide] = picture[:, top : top + tall, left : left + wide]
    assert torch.equal(hint, expected)


def test_padding_by_half_is_padding_first_and_resizing_then():
    bytes_ = to_integers(ASTRONAUT)[0].astype(np.uint8)
    padded = cv2.copyMakeBorder(bytes_, 256, 256, 256, 256, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    expected = cv2.resize(padded, (512, 512), interpolation=cv2.INTER_AREA)
    assert np.array_equal(to_integers(outpaint(ASTRONAUT, 512, "pad"))[0], expected)


def test_padding_one_way_makes_the_hint_longer():
    hint = outpaint(ASTRONAUT, 512, "pad", 100, 50)
    assert hint.shape == (1, 512, 1024, 3)
    assert torch.equal(hint[:, :, 256:768], ASTRONAUT)
    assert not hint[:, :, :256].any()
    assert not hint[:, :, 768:].any()


@pytest.mark.parametrize("mode", ["window", "pad"])
def test_all_of_it_is_the_picture(mode):
    assert torch.equal(outpaint(ASTRONAUT, 512, mode, 100, 100), ASTRONAUT)


@pytest.mark.parametrize("mode", ["window", "pad"])
def test_the_window_is_where_the_picture_is(mode):
    white = torch.ones(1, 99, 150, 3)
    size, window = outpaint_window(99, 150, 192, mode, 40, 70)
    expected = torch.zeros(1, *size, 3)
    expected[(0, *window)] = 1
    assert torch.equal(outpaint(white, 192, mode, 40, 70), expected)


@pytest.mark.parametrize("name", ["keep_height", "keep_width"])
def test_percentages_out_of_range_are_one_sentence(name):
    for value in (9, 101):
        with pytest.raises(ValueError, match=rf"^{name} \({value}\) must be from 10 to 100\.$"):
            outpaint(ASTRONAUT, 64, **{name: value})


def test_a_picture_that_padding_makes_too_long_is_one_sentence():
    with pytest.raises(ValueError, match=r"gives a hint of 64x20000 .*, and 16384 is the longest side"):
        outpaint(torch.zeros(1, 2000, 8, 3), 0, "pad", 10, 12)
