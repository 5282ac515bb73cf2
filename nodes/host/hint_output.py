"""What every hint node does around its preprocessor: check, go through the clip in pieces, show."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from comfy_api.latest import io, ui
from torch import Tensor
from torch.nn import functional as F

from ...models.foreign import first_line
from .hints import check_image, to_masks
from .progress import FRAMES_PER_CHUNK, in_chunks

logger = logging.getLogger("nextcontrol")

SHOWN = 8
"""Pictures of a clip that the node shows; writing all of 500 would take longer than making them."""
SAME_PROPORTIONS = 0.02
"""Relative difference of two aspect ratios that comes from rounding sides."""


def make_hints(image: Tensor, make: Callable[..., Tensor], size: int = FRAMES_PER_CHUNK, *beside: Any) -> Tensor:
    """Turn pictures into hints, with progress and cancel.

    Args:
        image: From an `IMAGE` socket.
        make: A preprocessor with its options bound; maps (b, H, W, 3), and b rows of each `beside`, to (b, H', W', 3).
        size: Frames in a piece.
        beside: Sequences or tensors with a row for each picture, such as seeds.

    Returns:
        (B, H', W', 3) in [0, 1].

    Raises:
        ValueError: `image` is no batch of RGB pictures; see `check_image`.
    """
    check_image(image, "image")
    return in_chunks(image, make, size, *beside)


def seeds_for(image: Tensor, seed: int, is_per_frame: bool) -> list[int]:
    """The seed of each picture: the same, so that a clip does not flicker, or one more each."""
    return [seed + index * is_per_frame for index in range(len(image))]


def check_company(rows: Tensor, name: str, image: Tensor) -> None:
    """Refuse pictures or masks that do not belong to `image`.

    Args:
        rows: (N, h, w, ...).
        name: Of the input, for the error.
        image: (B, H, W, 3).

    Raises:
        ValueError: There are neither one nor as many as pictures, or their proportions are others.
    """
    if len(rows) not in {1, len(image)}:
        raise ValueError(f"{name} has {len(rows)} frames and image has {len(image)}: give one, or as many.")
    height, width, rows_height, rows_width = *image.shape[1:3], *rows.shape[1:3]
    if abs(rows_width * height / (rows_height * width) - 1) > SAME_PROPORTIONS:
        raise ValueError(
            f"{name} is {rows_width}x{rows_height} and image is {width}x{height}: connect one made from the same picture, or "
            "crop one to the other's proportions."
        )


def fit_holes(mask: Tensor, image: Tensor, size: tuple[int, int]) -> Tensor:
    """The user's mask as holes for the hints of `image`.

    Args:
        mask: From a `MASK` socket.
        image: (B, H, W, 3).
        size: Height and width of the hints.

    Returns:
        (B, height, width) of 1 in the hole and 0.

    Raises:
        ValueError: The mask cannot be read, or does not belong to `image`.
    """
    masks = to_masks(mask, "mask")
    check_company(masks, "mask", image)
    holes = (F.adaptive_avg_pool2d(masks[:, None], size)[:, 0] > 0.5).float()
    if not holes.any():
        logger.warning("The mask is empty, so nothing is blackened.")
    return holes.expand(len(image), -1, -1).contiguous()


def note_black(hints: Tensor, what: str) -> Tensor:
    """Say once for a clip how many of its hints are black, and return them. `what` begins the sentence: "No person"."""
    if black := sum(not hint.any() for hint in hints):
        logger.warning("%s in %d of %d pictures: their hints are black.", what, black, len(hints))
    return hints


def show(images: Tensor, *more: object) -> io.NodeOutput:
    """A node's output that also appears on the node: up to `SHOWN` pictures, spread evenly over a clip.

    Args:
        images: The node's first output, (B, H, W, 3) in [0, 1].
        more: Its other outputs.

    Returns:
        All of them, with the preview.
    """
    count = min(len(images), SHOWN)
    places = torch.linspace(0, len(images) - 1, count).round().long()
    return io.NodeOutput(images, *more, ui=preview(images[places.to(images.device)]))


def preview(images: Tensor) -> Any:
    """Pictures for the node on the page; None where they cannot be written, which is said and ends no run."""
    try:
        return ui.PreviewImage(images)
    except OSError as error:
        logger.warning("The node's preview cannot be written (%s): its outputs are complete.", first_line(error))
        return None
