"""Colour prompts: where the dots are, how many, and of which colour."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hint_pictures import ASTRONAUT, noise_picture, to_integers
from nextcontrol.preprocessors import color_prompt as module
from nextcontrol.preprocessors.color_prompt import color_prompt


def dots_of(seed: int, size: tuple[int, int] = (512, 512)) -> list[tuple[int, int, int]]:
    return module._draw_dots(size, np.random.default_rng(seed))


def expected(picture: torch.Tensor, page: np.ndarray, dots: list[tuple[int, int, int]]) -> np.ndarray:
    """The dots one after another, each with the mean of the whole disc, cut to bytes."""
    rows, columns = np.ogrid[: page.shape[0], : page.shape[1]]
    result, source = page.copy(), to_integers(picture)[0]
    for row, column, radius in dots:
        disc = (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
        result[disc] = np.floor(source[disc].mean(0))
    return result


@pytest.mark.parametrize("seed", [0, 5])
def test_a_dot_has_the_mean_colour_of_what_lies_below_it(seed):
    lines = noise_picture(512, 512).round()
    found = to_integers(color_prompt(ASTRONAUT, 512, lines, seed))[0]
    assert np.array_equal(found, expected(ASTRONAUT, to_integers(lines)[0], dots_of(seed)))


def test_there_are_5_dots_and_then_as_many_as_a_chance_of_nine_tenths_gives():
    counts = [len(dots_of(seed)) for seed in range(2000)]
    assert min(counts) == 5
    assert np.mean(np.array(counts) == 5) == pytest.approx(0.1, abs=0.02)
    assert np.mean(counts) == pytest.approx(14, abs=0.6)


def test_radii_are_2_to_4_percent_of_the_shorter_side_and_centres_anywhere():
    dots = np.array([dot for seed in range(200) for dot in dots_of(seed, (500, 800))])
    assert sorted(set(dots[:, 2])) == list(range(10, 21))
    assert dots[:, 0].min() < 10
    assert dots[:, 0].max() > 490
    assert dots[:, 1].min() < 10
    assert dots[:, 1].max() > 790


def test_a_picture_without_colours_gives_the_lines_and_is_named():
    tinted = (noise_picture(64, 64)[..., :1].expand(-1, -1, -1, 3) * 0.9 + torch.tensor([0.0, 0.01, 0.02])).contiguous()
    batch = torch.cat([tinted, noise_picture(64, 64), tinted])
    grey: list[int] = []
    hints = color_prompt(batch, 0, None, 1, grey.append)
    assert sorted(grey) == [0, 2]
    assert (hints[[0, 2]] == 1).all()
    assert (hints[1] < 1).any()


def test_each_frame_has_its_lines_resized_to_the_hint():
    lines = torch.stack([torch.full((32, 32, 3), value) for value in (0.2, 1.0)])
    hints = color_prompt(torch.cat([ASTRONAUT, ASTRONAUT]), 128, lines, 3)
    assert hints.shape == (2, 128, 128, 3)
    assert (hints[0] == 0.2).all(-1).float().mean() > 0.5
    assert (hints[1] == 1.0).all(-1).float().mean() > 0.5
    dots = (hints[1] != 1.0).any(-1)
    assert torch.equal(hints[0][dots], hints[1][dots])
