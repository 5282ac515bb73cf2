"""JPEG hints against another library's encoder."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hint_pictures import ASTRONAUT, to_integers
from nextcontrol.preprocessors.jpeg import jpeg
from PIL import Image


@pytest.mark.parametrize("quality", [10, 30])
def test_the_picture_is_what_jpeg_makes_of_it(quality):
    file = io.BytesIO()
    Image.fromarray(to_integers(ASTRONAUT)[0].astype(np.uint8)).save(file, "jpeg", quality=quality)
    expected = np.asarray(Image.open(file)).astype(int)
    found = to_integers(jpeg(ASTRONAUT, 512, quality))[0]
    # Two builds of one encoder: they may round differently, while another quality or order of channels is far away.
    assert abs(found - expected).mean() < 0.5
    assert abs(to_integers(jpeg(ASTRONAUT, 512, quality + 10))[0] - expected).mean() > 1
    assert abs(found[..., ::-1] - expected).mean() > 10


def test_less_quality_does_more_damage():
    damage = [float((jpeg(ASTRONAUT, 512, quality) - ASTRONAUT).abs().mean()) for quality in (100, 50, 20, 5)]
    assert damage == sorted(damage)
    assert damage[0] < 0.01 < damage[2]


@pytest.mark.parametrize("quality", [0, 101])
def test_a_quality_out_of_range_is_one_sentence(quality):
    with pytest.raises(ValueError, match=rf"^quality \({quality}\) must be from 1 to 100\.$"):
        jpeg(ASTRONAUT, 64, quality)
