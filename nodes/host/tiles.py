"""Where the parts lie that another node cuts out of the latent: found by their numbers, as no node says it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SAME = 1e-3
"""Largest relative difference between two numbers that are the same; noise differs by 1."""
MOST_PLACES = 64
"""Where a tile fits in more places than these, as in a latent without noise, it is not looked for any further."""


class Tile(NamedTuple):
    """The rows of one prompt that show one part."""

    top: int
    left: int
    prompt: int
    """Its place among the prompts of the call."""


def find_tiles(part: Tensor, whole: Tensor, prompts: int) -> list[Tile] | None:
    """Find out which parts of a latent a batch shows.

    Nodes for tiled diffusion cut what the sampler evaluates into tiles behind the place where the host knows of areas, put
    several of them and all prompts into one batch, and tell nobody.

    Args:
        part: (R, C or more, h, w), rows of the batch: those of a tile and prompt follow each other.
        whole: (B, C, H, W), what the tiles were cut from, in the same scale.
        prompts: In the batch; each shows all of the tiles.

    Returns:
        A tile for each B rows; None where they are no tiles, cannot be told apart, or have another order.
    """
    rows, (height, width) = len(whole), part.shape[-2:]
    part = part[:, : whole.shape[1]].to(whole)
    if len(part) % rows or part.shape[1] != whole.shape[1] or height > whole.shape[-2] or width > whole.shape[-1]:
        return None
    scale = SAME * whole.abs().amax()
    places: list[tuple[int, int]] = []
    for start in range(0, len(part), rows):
        place = _place_of(part[start : start + rows], whole, scale)
        if place is None:
            return None
        places.append(place)
    if any(places.count(place) != prompts for place in places):
        return None
    return [Tile(*place, places[:index].count(place)) for index, place in enumerate(places)]


def _place_of(tile: Tensor, whole: Tensor, scale: Tensor) -> tuple[int, int] | None:
    """The one place (top, left) where a tile (B, C, h, w) has the numbers of the whole."""
    height, width = tile.shape[-2:]
    corners = whole[..., : whole.shape[-2] - height + 1, : whole.shape[-1] - width + 1]
    fits = ((corners - tile[..., :1, :1]).abs() <= scale).all(dim=1).all(dim=0)
    candidates = fits.nonzero().tolist()
    if len(candidates) > MOST_PLACES:
        return None
    same = [
        (top, left)
        for top, left in candidates
        if bool(((whole[..., top : top + height, left : left + width] - tile).abs() <= scale).all())
    ]
    return same[0] if len(same) == 1 else None


def span_of(places: list[int]) -> tuple[int, int] | None:
    """First place and number of places of a window, None where they do not follow each other."""
    return (places[0], len(places)) if places and places == list(range(places[0], places[0] + len(places))) else None


def scaled_input(model_sampling: object, sigma: Tensor, latent: Tensor) -> Tensor:
    """What the network is given for a latent: the host's own scaling, number by number."""
    scaled: Tensor = model_sampling.calculate_input(sigma, latent)  # type: ignore[attr-defined]
    return torch.as_tensor(scaled)
