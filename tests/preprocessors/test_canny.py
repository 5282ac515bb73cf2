"""Canny hints against the reference's pictures and rules."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hint_pictures import ASTRONAUT, golden_hint
from nextcontrol.preprocessors.canny import canny
from nextcontrol.preprocessors.canvas import hint_size


def test_the_astronaut_is_the_reference_pixel_for_pixel():
    assert torch.equal(canny(ASTRONAUT, 512, 100, 200), golden_hint("astronaut.canny"))


def test_the_median_rule_takes_its_thresholds_from_the_grey_picture():
    frame = cv2.cvtColor(np.uint8(ASTRONAUT[0].numpy() * 255 + 0.5), cv2.COLOR_RGB2GRAY)
    median = float(np.median(frame))
    expected = torch.from_numpy(cv2.Canny(frame, int(0.67 * median), int(1.33 * median))) / 255
    found = canny(ASTRONAUT, 0, 1, 2, "median")
    assert torch.equal(found[0], expected[..., None].expand(-1, -1, 3))
    assert not torch.equal(found, canny(ASTRONAUT, 0, 100, 200))


def test_a_batch_is_its_pictures_one_by_one():
    batch = torch.cat([ASTRONAUT, ASTRONAUT.flip(2), ASTRONAUT**2])
    assert torch.equal(canny(batch, 256), torch.cat([canny(frame[None], 256) for frame in batch]))


@pytest.mark.parametrize(
    ("height", "width", "resolution", "expected"),
    [
        (512, 512, 512, (512, 512)), (500, 700, 512, (512, 704)), (700, 500, 512, (704, 512)), (512, 768, 1024, (1024, 1536)),
        (513, 769, 0, (512, 768)), (9, 8, 0, (8, 8)), (100, 1000, 64, (64, 640)), (1000, 10, 16, (1600, 64)),
    ],
)  # fmt: skip
def test_sides_are_multiples_of_64_or_with_0_of_8(height, width, resolution, expected):
    assert hint_size(height, width, resolution) == expected
    assert canny(torch.zeros(1, height, width, 3), resolution).shape == (1, *expected, 3)


def test_the_node_goes_through_long_clips_in_pieces(pack_nodes):
    clip = torch.rand(37, 64, 64, 3)
    (found,) = pack_nodes["NextControlCanny"].execute(clip, 64, 100, 200).result
    assert torch.equal(found, canny(clip, 64, 100, 200))
