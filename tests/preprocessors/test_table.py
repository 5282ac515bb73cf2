"""What holds for every type of hint, weightless ones through and through."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hint_pictures import ASTRONAUT, noise_picture
from nextcontrol.preprocessors.canvas import hint_size, to_bytes, to_pictures
from nextcontrol.preprocessors.table import PREPROCESSORS

WEIGHTLESS = [name for name, row in PREPROCESSORS.items() if not row.task]


@pytest.mark.parametrize("name", WEIGHTLESS)
def test_every_weightless_hint_keeps_shape_range_and_type(name):
    frames = torch.cat([ASTRONAUT, torch.zeros_like(ASTRONAUT), torch.ones_like(ASTRONAUT)])[:, :300, :400]
    hints = PREPROCESSORS[name].make(frames, 128)
    assert hints.shape == (3, 128, 192, 3)
    assert hints.dtype == torch.float32
    assert hints.min() >= 0
    assert hints.max() <= 1
    assert torch.equal(hints, PREPROCESSORS[name].make(frames, 128))


@pytest.mark.parametrize("name", WEIGHTLESS)
def test_a_batch_is_its_pictures_one_by_one(name):
    make = PREPROCESSORS[name].make
    batch = torch.cat([noise_picture(72, 90), ASTRONAUT[:, :72, :90], torch.zeros(1, 72, 90, 3), ASTRONAUT[:, 200:272, :90]])
    assert torch.equal(make(batch, 64), torch.cat([make(frame[None], 64) for frame in batch]))


@pytest.mark.parametrize("name", WEIGHTLESS)
def test_what_lies_outside_0_to_1_is_clamped_and_the_input_is_left_alone(name):
    make = PREPROCESSORS[name].make
    wild = ASTRONAUT[:, 100:200, 100:300] * 3 - 1
    given = wild.clone()
    assert torch.equal(make(wild, 64), make(wild.clamp(0, 1), 64))
    assert torch.equal(wild, given)


@pytest.mark.parametrize("name", WEIGHTLESS)
def test_type_and_layout_of_the_input_do_not_matter(name):
    make, frames = PREPROCESSORS[name].make, ASTRONAUT[:, ::8, ::8].contiguous()
    expected = make(frames, 64)
    assert torch.equal(make(frames.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1), 64), expected)
    assert torch.equal(make(frames.double(), 64), expected)
    assert torch.equal(make(frames.half(), 64), expected)


@pytest.mark.parametrize("name", [name for name in WEIGHTLESS if PREPROCESSORS[name].is_random])
def test_the_seed_makes_the_difference(name):
    make, frames = PREPROCESSORS[name].make, torch.cat([ASTRONAUT[:, ::4, ::4]] * 2)
    first = make(frames, 128, seed=1)
    assert torch.equal(first[0], first[1])
    assert torch.equal(first, make(frames, 128, seed=1))
    assert not torch.equal(first, make(frames, 128, seed=2))
    apart = make(frames, 128, seed=[1, 2])
    assert torch.equal(apart[0], first[0])
    assert not torch.equal(apart[1], first[1])
    with pytest.raises(ValueError, match=r"^There are 3 seeds for 2 pictures"):
        make(frames, 128, seed=[1, 2, 3])
    with pytest.raises(ValueError, match=r"^seed \(-1\) must be 0 or more\.$"):
        make(frames, 128, seed=-1)


@pytest.mark.parametrize("name", WEIGHTLESS)
def test_a_resolution_that_cannot_be_is_one_sentence(name):
    with pytest.raises(ValueError, match=r"^resolution \(-64\) must be 0 or more: 0 keeps the picture's size\.$"):
        PREPROCESSORS[name].make(ASTRONAUT, -64)
    with pytest.raises(
        ValueError, match=r"^A picture of 8x900 pixels gives a hint of 512x57600 at the resolution 512, and 16384"
    ):
        PREPROCESSORS[name].make(torch.zeros(1, 900, 8, 3), 512)


@pytest.mark.parametrize(
    ("height", "width", "method"), [(500, 520, cv2.INTER_LANCZOS4), (520, 500, cv2.INTER_LANCZOS4), (520, 700, cv2.INTER_AREA)]
)
def test_the_shorter_side_decides_between_lanczos_and_area(height, width, method):
    """As in CtrLoRA's `resize_image`, also where rounding makes the longer side smaller."""
    picture = noise_picture(height, width)
    tall, wide = hint_size(height, width, 512)
    expected = cv2.resize(to_bytes(picture)[0], (wide, tall), interpolation=method)
    assert np.array_equal(to_pictures(picture, (tall, wide))[0], expected)
