"""Pixel hints: size of their pixels, number and choice of their colours."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hint_pictures import ASTRONAUT, noise_picture, to_integers
from nextcontrol.preprocessors.pixel import pixel


def reduced(picture: torch.Tensor, scale: int) -> np.ndarray:
    bytes_ = to_integers(picture)[0].astype(np.uint8)
    size = tuple(max(side // scale, 32) for side in bytes_.shape[1::-1])
    return cv2.resize(bytes_, size, interpolation=cv2.INTER_LANCZOS4).reshape(-1, 3).astype(int)


def squared_error(pixels: np.ndarray, colors: np.ndarray) -> float:
    return float(((pixels[:, None] - colors[None]) ** 2).sum(-1).min(1).mean())


@pytest.mark.parametrize("colors", [8, 16])
def test_the_colours_are_as_good_as_those_of_an_ordinary_k_means(colors):
    found = to_integers(pixel(ASTRONAUT, 512, 8, colors, 3))[0, 4::8, 4::8].reshape(-1, 3)
    small = reduced(ASTRONAUT, 8)
    assert len(np.unique(found, axis=0)) == colors
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 100, 0.01)
    _, _, centers = cv2.kmeans(small.astype(np.float32), colors, None, stop, 10, cv2.KMEANS_PP_CENTERS)
    assert squared_error(small, np.unique(found, axis=0)) < 1.1 * squared_error(small, np.rint(centers))


def test_every_pixel_has_the_nearest_colour():
    found = to_integers(pixel(ASTRONAUT, 512, 8, 12, 0))[0, 4::8, 4::8].reshape(-1, 3)
    small = reduced(ASTRONAUT, 8)
    assert ((small - found) ** 2).sum(-1).mean() == pytest.approx(squared_error(small, np.unique(found, axis=0)))


def test_few_colours_are_kept_as_they_are():
    stripes = torch.tensor([[0.2, 0.4, 0.6], [1, 0, 0], [0, 0, 0]]).repeat_interleave(256, 0)[None, None].expand(1, 512, -1, -1)
    found = to_integers(pixel(stripes, 0, 4, 16))
    assert np.array_equal(found[:, :, 128::256], to_integers(stripes)[:, :, 128::256])
    assert np.array_equal(pixel(torch.ones(1, 64, 64, 3), 0).unique(), [1])


def test_colours_are_rounded_to_the_nearest_byte():
    dark = torch.tensor([0, 1, 1, 1]).repeat(64, 16)[..., None].expand(-1, -1, 3)
    picture = torch.cat([dark, torch.full((64, 64, 3), 255)], 1)[None] / 255
    assert to_integers(pixel(picture, 0, 1, 2).unique()).tolist() == [1, 255]


@pytest.mark.parametrize(("scale", "side"), [(4, 4), (8, 8), (32, 16), (64, 16)])
def test_large_pixels_have_the_size_asked_for_but_no_side_less_than_32_of_them(scale, side):
    hint = pixel(noise_picture(512, 512), 0, scale, 64)
    cells = hint.unfold(1, side, side).unfold(2, side, side)
    assert torch.equal(cells, cells[..., :1, :1].expand_as(cells))
    # Neighbours in a picture of noise differ: the pixels are not larger.
    assert float((cells[:, 1:, :, :, 0, 0] == cells[:, :-1, :, :, 0, 0]).all(-1).float().mean()) < 0.2


def test_the_seed_chooses_the_first_guess_and_nothing_shared_is_used():
    first = pixel(ASTRONAUT, 256, 4, 16, 1)
    cv2.setRNGSeed(5)
    np.random.seed(5)
    states = [cv2.randu(np.zeros(4, np.float32), 0, 1).copy(), np.random.rand()]
    cv2.setRNGSeed(5)
    np.random.seed(5)
    assert torch.equal(pixel(ASTRONAUT, 256, 4, 16, 1), first)
    assert np.array_equal(cv2.randu(np.zeros(4, np.float32), 0, 1), states[0])
    assert np.random.rand() == states[1]
    assert not torch.equal(pixel(ASTRONAUT, 256, 4, 16, 2), first)


@pytest.mark.parametrize(
    ("scale", "colors", "sentence"),
    [(0, 8, r"^scale \(0\) must be from 1 to 64"), (65, 8, "^scale"), (4, 1, r"^colors \(1\) must be from 2 to 256"),
     (4, 257, "^colors")],
)  # fmt: skip
def test_parameters_out_of_range_are_one_sentence(scale, colors, sentence):
    with pytest.raises(ValueError, match=sentence):
        pixel(ASTRONAUT, 64, scale, colors)
