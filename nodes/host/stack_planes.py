"""Hints and masks of a stack's members as the channels of one picture, which other nodes cut into tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class Pictured(Protocol):
    """A member of a stack."""

    control: Any
    """Of the host, with its hint (N, 3, H, W)."""
    masks: Tensor | None
    """(M, H, W)."""


def to_planes(members: Sequence[Pictured]) -> Tensor:
    """Hints, and masks where there are some, at the size of the first hint.

    Args:
        members: With hints.

    Returns:
        (N, C, H, W); fewer hints or masks than others are repeated, as they are for a latent batch.
    """
    pictures = [picture for member in members for picture in _pictures_of(member)]
    height, width = pictures[0].shape[-2:]
    rows = max(len(picture) for picture in pictures)
    fitted = [_fit(picture.float(), (height, width)) for picture in pictures]
    return torch.cat([picture[torch.arange(rows) % len(picture)] for picture in fitted], dim=1)


def from_planes(members: Sequence[Pictured], planes: Tensor) -> None:
    """Give members the hints and masks that `to_planes` made one picture of, after it was cut.

    Args:
        members: The same, or copies of them.
        planes: (N, C, H, W).
    """
    place = 0
    for member in members:
        channels = member.control.cond_hint_original.shape[1]
        member.control.cond_hint_original = planes[:, place : place + channels]
        member.control.cond_hint = None
        place += channels
        if member.masks is not None:
            member.masks = planes[:, place].clamp(0, 1)
            place += 1


def _pictures_of(member: Pictured) -> Iterator[Tensor]:
    yield member.control.cond_hint_original
    if member.masks is not None:
        yield member.masks[:, None]


def _fit(picture: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(picture.shape[-2:]) == size:
        return picture
    return F.interpolate(picture, size, mode="bicubic", antialias=True).clamp(0, 1)
