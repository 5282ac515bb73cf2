"""Pictures on their way to the VAE: read, oriented, cut and resized, hint and target alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE_MULTIPLE = 64
"""Sides of a bucket, so that every UNet level divides evenly."""
SLIMMEST = 0.5
"""Smallest ratio of sides of a bucket."""
_ORIENTATION, _QUARTER_TURNS = 0x0112, (5, 6, 7, 8)  # EXIF
Size = tuple[int, int]
"""(width, height) in pixels, as in PIL."""


class PictureBytes(BytesIO):
    """A picture's file in memory, under the name that it has where it comes from."""

    def __init__(self, name: str, data: bytes) -> None:
        super().__init__(data)
        self.name = name


class UnreadablePictureError(ValueError):
    """A file is no picture, or a damaged one."""


def read_size(path: Path | PictureBytes, name: str) -> Size:
    """Width and height as the picture is seen, from the file's header; `name` is for the error."""
    from PIL import Image

    with _reading(name), Image.open(path) as picture:
        turned = picture.getexif().get(_ORIENTATION, 1) in _QUARTER_TURNS
        return (picture.height, picture.width) if turned else picture.size


def read_picture(path: Path | PictureBytes, name: str) -> Image:
    """A picture in RGB, upright; what is transparent becomes white, as in the reference.

    Args:
        path: Of the file, or the file.
        name: For the error.

    Returns:
        Decoded to the last pixel.

    Source: xyfJASON/ctrlora@b4422b4 annotator/util.py, `HWC3`.
    """
    from PIL import Image, ImageOps

    with _reading(name), Image.open(path) as opened:
        picture = ImageOps.exif_transpose(opened)
        if picture.mode not in {"RGB", "L"}:
            layer = picture.convert("RGBA")
            picture = Image.new("RGBA", layer.size, "white")
            picture.alpha_composite(layer)
        return picture.convert("RGB")


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever a foreign file breaks in its reader, the cure is the same
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:100]
        raise UnreadablePictureError(
            f"'{name}' is no readable picture ({reason}): replace it, or set bad_pairs to skip."
        ) from error


def bucket_of(size: Size, resolution: int, has_buckets: bool) -> Size:
    """The size that a picture is trained at.

    Args:
        size: Of the picture.
        resolution: Side of a square bucket, a multiple of 64.
        has_buckets: Follow the picture's shape, with about as many pixels.

    Returns:
        Multiples of 64; the square one without buckets.
    """
    if not has_buckets:
        return resolution, resolution
    width, height = size
    options = []
    for w in range(SIDE_MULTIPLE, 2 * resolution + 1, SIDE_MULTIPLE):
        h = resolution * resolution // w // SIDE_MULTIPLE * SIDE_MULTIPLE
        if h and SLIMMEST <= w / h <= 1 / SLIMMEST:
            options.append((abs(np.log(w / h) - np.log(width / height)), -w * h, (w, h)))
    return min(options)[2]


def fit_picture(picture: Image, size: Size, is_hint: bool) -> Image:
    """Cover a size and cut the rest off evenly. Unchanged where the size is right.

    Args:
        picture: Of any size.
        size: Of its bucket.
        is_hint: Reduce by area, as CtrLoRA's tools reduce hints; else with Lanczos, as its targets.

    Returns:
        A picture of that size.
    """
    from PIL import Image, ImageOps

    if picture.size == size:
        return picture
    method = Image.Resampling.BOX if is_hint and picture.width >= size[0] else Image.Resampling.LANCZOS
    return ImageOps.fit(picture, size, method)


def to_pixels(picture: Image) -> Tensor:
    """(1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255).movedim(-1, 0)[None]  # HWC -> BCHW


def from_pixels(pixels: Tensor) -> Image:
    """A picture from (3, H, W) in [0, 1]."""
    from PIL import Image

    return Image.fromarray((pixels.clamp(0, 1).movedim(0, -1) * 255).round().byte().cpu().numpy())
