"""Hints and masks on their way to the network: batch, crop and size, as the host's own ControlNet does it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .layout import Size

LOGGER = logging.getLogger("nextcontrol")
LATENT_SCALE = 8
"""Pixels per latent cell in every family that ControlNeXt exists for."""
SMALLEST_SIDE = 8


def check_image(image: Tensor, name: str) -> None:
    """Refuse a hint that no control network can read.

    Args:
        image: Anything that came through an `IMAGE` socket.
        name: Of the input, for the error.

    Raises:
        ValueError: It is not (B, H, W, 3) with B of 1 or more, sides of 8 or more and finite values.
    """
    shape = tuple(image.shape)
    if image.ndim != 4:
        raise ValueError(f"{name} has the shape {shape}: a batch of pictures (B, H, W, 3) is expected, connect an IMAGE.")
    if shape[0] == 0:
        raise ValueError(f"{name} has no frames {shape}: connect at least one picture.")
    if shape[3] != 3:
        kind = {1: "grayscale", 4: "RGB with alpha"}.get(shape[3], "not RGB")
        cure = {1: "repeat it to three channels", 4: "drop the alpha with 'Split Image with Alpha'"}.get(
            shape[3], "make it RGB"
        )
        raise ValueError(f"{name} has {shape[3]} channels ({kind}) and RGB is expected: {cure}.")
    if min(shape[1:3]) < SMALLEST_SIDE:
        raise ValueError(
            f"{name} is {shape[2]}x{shape[1]} pixels and each side needs {SMALLEST_SIDE} or more: use a larger one."
        )
    if not torch.isfinite(image.sum()):
        raise ValueError(f"{name} has NaN or infinite pixels: repair the node that made it.")


def center_crop(x: Tensor, size: Size) -> Tensor:
    """Cut (N, C, H, W) to the aspect ratio of `size`, keeping the centre."""
    height, width = x.shape[-2:]
    if width * size.height > height * size.width:
        margin = round((width - height * size.width / size.height) / 2)
        return x[..., margin : width - margin]
    margin = round((height - width * size.height / size.width) / 2)
    return x[..., margin : height - margin, :]


def fit_hint(frames: Tensor, size: Size, is_area: bool = False) -> Tensor:
    """Bring pictures to the pixel size of a latent.

    Args:
        frames: (N, H, W, 3) in [0, 1].
        size: Of the latent.
        is_area: Reduce by area, as CtrLoRA's tools do, in place of the bicubic filter.

    Returns:
        (N, 3, 8 * size.height, 8 * size.width): unchanged where the size is right, else cut in the centre and resized with an
        antialiased bicubic filter, as the reference resizes.
    """
    pixels = frames.movedim(-1, 1)  # BHWC -> BCHW
    target = (size.height * LATENT_SCALE, size.width * LATENT_SCALE)
    if tuple(pixels.shape[-2:]) == target:
        return pixels
    pixels = center_crop(pixels, size)
    if is_area and pixels.shape[-2] >= target[0]:
        return F.adaptive_avg_pool2d(pixels, target)
    return F.interpolate(pixels, target, mode="bicubic", antialias=True).clamp(0, 1)


def fit_mask(masks: Tensor, size: Size) -> Tensor:
    """Bring masks (N, H, W) to (N, 1, size.height, size.width) by area, cut as `fit_hint` cuts its pictures."""
    return F.adaptive_avg_pool2d(center_crop(masks[:, None], size), (size.height, size.width))


def to_masks(mask: Tensor, name: str) -> Tensor:
    """A mask from its socket as (N, H, W) in [0, 1].

    Args:
        mask: (H, W) or (N, H, W) or (N, 1, H, W).
        name: Of the input, for the error.

    Returns:
        A view, clamped.

    Raises:
        ValueError: It has another shape, no pixels or NaN.
    """
    shape = tuple(mask.shape)
    masks = mask[None] if mask.ndim == 2 else mask[:, 0] if mask.ndim == 4 and mask.shape[1] == 1 else mask
    if masks.ndim != 3 or masks.numel() == 0:
        raise ValueError(f"{name} has the shape {shape}: a mask (B, H, W) is expected, connect a MASK.")
    if not torch.isfinite(masks.sum()):
        raise ValueError(f"{name} has NaN or infinite values: repair the node that made it.")
    return masks.clamp(0, 1)


def note_unused_frames(hints: int, batch: int, frames: list[int] | None) -> None:
    """Say once a run that a clip of hints is longer than the latent batch; the rest of it is not used."""
    if frames is None and hints > batch:
        LOGGER.warning("The hint has %d frames and the latent batch %d: the last %d are not used.", hints, batch, hints - batch)


def window_of(options: Mapping[str, Any]) -> list[int] | None:
    """Places of the batch's rows in the whole clip, where a part of it is evaluated; `options` are `transformer_options`."""
    return getattr(options.get("context_window"), "index_list", None)


def rows_of(batch: int, hints: int, frames: list[int] | None) -> list[int]:
    """Which hint each row of a latent batch gets: repeated when there are fewer, cut when there are more.

    Args:
        batch: Rows of one prompt's latent.
        hints: How many hints there are.
        frames: Places of the rows in the whole clip, where the host evaluates a window of it.

    Returns:
        A hint's index for each row.
    """
    places = frames if frames is not None and len(frames) == batch else range(batch)
    return [place % hints for place in places]
