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
NO_MASK = (64, 64)
"""Size of the zeros that stand for no mask. Source: ComfyUI nodes.py, `LoadImage`."""


def check_image(image: Tensor, name: str) -> None:
    """Refuse a hint that no control network can read.

    Args:
        image: Anything that came through an `IMAGE` socket.
        name: Of the input, for the error.

    Raises:
        ValueError: It is not (B, H, W, 3) of floats with B of 1 or more, sides of 8 or more and finite values.
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
    _check_type(image, name)
    if not _is_finite(image):
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
        (N, 3, 8 * size.height, 8 * size.width) in fp32: unchanged where the size is right, else cut in the centre and resized
        with an antialiased bicubic filter, as the reference resizes.
    """
    # On a CPU torch has that filter for fp32 and fp64 alone.
    pixels = frames.movedim(-1, 1).float()  # BHWC -> BCHW
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
        In fp32, clamped.

    Raises:
        ValueError: It has another shape, no pixels, no floats or NaN.
    """
    shape = tuple(mask.shape)
    masks = mask[None] if mask.ndim == 2 else mask[:, 0] if mask.ndim == 4 and mask.shape[1] == 1 else mask
    if masks.ndim != 3 or masks.numel() == 0:
        raise ValueError(f"{name} has the shape {shape}: a mask (B, H, W) is expected, connect a MASK.")
    _check_type(mask, name)
    if not _is_finite(masks):
        raise ValueError(f"{name} has NaN or infinite values: repair the node that made it.")
    return masks.float().clamp(0, 1)


def real_mask(mask: Tensor | None, image: Tensor, name: str = "mask") -> Tensor | None:
    """The mask that the user means, or None for what ComfyUI's loaders give where there is none.

    They give 64x64 zeros for a picture without transparency, whatever its size. All other masks of zeros are masks.

    Args:
        mask: From a `MASK` socket.
        image: (B, H, W, 3), the picture that it belongs to.
        name: Of the input, for the log.

    Returns:
        `mask` or None.
    """
    if mask is None or not is_no_mask(mask, image):
        return mask
    height, width = image.shape[1:3]
    LOGGER.warning(
        "%s is empty and 64x64 and the picture is %dx%d: this is what Load Image gives for a picture without transparency, so "
        "it is taken as no mask. For a mask that is empty on purpose use one of the picture's size.",
        name,
        width,
        height,
    )
    return None


def is_no_mask(mask: Tensor, image: Tensor) -> bool:
    """Whether a mask stands for none; see `real_mask`."""
    return tuple(mask.shape[-2:]) == NO_MASK and tuple(image.shape[1:3]) != NO_MASK and not bool(mask.any())


def _check_type(values: Tensor, name: str) -> None:
    if not values.is_floating_point():
        kind = str(values.dtype).removeprefix("torch.")
        cure = "divide it by 255" if values.dtype == torch.uint8 else "convert it"
        raise ValueError(f"{name} has values of the type {kind} and floats from 0 to 1 are expected: {cure}.")


def _is_finite(values: Tensor) -> bool:
    """Whether all values are finite in fp32: picture by picture, so that a long clip is not copied, and without a sum."""
    ends = [end for picture in values for end in picture.float().aminmax()]
    return bool(torch.stack(ends).isfinite().all())


class Unused:
    """Says once a run how much of a clip of hints no row of the latent asks for."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Start of a run."""
        self._is_told, self._seen = False, 0

    def note(self, batch: int, options: Mapping[str, Any], hints: int, masks: int = 0) -> None:
        """Take note of a call.

        Args:
            batch: Rows of one prompt's latent.
            options: The host's `transformer_options`.
            hints: How many there are.
            masks: The same.
        """
        places = window_of(options)
        whole = batch if places is None else getattr(options["context_window"], "total_frames", 0)
        if not whole:  # the host's windows of older versions: the run's last window shows how long the clip is
            self._seen = max(self._seen, *(place + 1 for place in places or ()))
        else:
            self._tell(whole, hints, masks)

    def end(self, hints: int, masks: int = 0) -> None:
        """End of a run."""
        if self._seen:
            self._tell(self._seen, hints, masks)

    def _tell(self, batch: int, hints: int, masks: int) -> None:
        for name, count in (("hint", hints), ("mask", masks)):
            if count > batch and not self._is_told:
                LOGGER.warning(
                    "The %s has %d frames and the latent batch %d: the last %d are not used.", name, count, batch, count - batch
                )
        self._is_told = True


def window_of(options: Mapping[str, Any]) -> list[int] | None:
    """Places of the batch's rows in the whole clip, where a part of it is evaluated; `options` are `transformer_options`."""
    window = options.get("context_window")
    # The host's windows may cut the sides of pictures as well.
    return getattr(window, "index_list", None) if getattr(window, "dim", 0) == 0 else None


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
