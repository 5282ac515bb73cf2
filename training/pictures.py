"""Pictures on their way to the VAE: read, oriented, cut and resized, hint and target alike."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .picture_depth import Depth, depth_of, in_rgb
from .picture_files import PictureBytes, opened

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE_MULTIPLE = 64
"""Sides of a bucket, so that every UNet level divides evenly."""
SLIMMEST = 0.5
"""Smallest ratio of sides of a bucket."""
_WIDTH, _HEIGHT, _ORIENTATION, _QUARTER_TURNS = 256, 257, 274, (5, 6, 7, 8)  # TIFF, EXIF
_TURNS = dict(
    enumerate(("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"), 2)
)
"""Orientation to what makes it upright."""
_SEVERAL = frozenset({"GIF", "PNG", "WEBP", "AVIF", "TIFF"})
ONE_FRAME = "of several frames or pages, only the first is read"
Size = tuple[int, int]
"""(width, height) in pixels, as in PIL."""


def read_size(path: Path | PictureBytes, name: str) -> Size:
    """Width and height as the picture is seen, from the file's header; `name` is for the error."""
    with opened(path, name) as picture:
        tags = getattr(picture, "tag_v2", None)  # of a TIFF; some versions of the library turn its size, others do not
        width, height = (tags[_WIDTH], tags[_HEIGHT]) if tags else picture.size
        return (height, width) if picture.getexif().get(_ORIENTATION, 1) in _QUARTER_TURNS else (width, height)


def read_picture(path: Path | PictureBytes, name: str) -> Image:
    """See `read_with_remarks`."""
    return read_with_remarks(path, name)[0]


def read_with_remarks(path: Path | PictureBytes, name: str) -> tuple[Image, list[str]]:
    """A picture in RGB, upright; what is transparent becomes white, as in the reference. Of several frames it is the first.

    Args:
        path: Of the file, or the file.
        name: For the error.

    Returns:
        The picture, decoded to the last pixel, and what was done to it that the eye should see.

    Raises:
        UnreadablePictureError: See `opened`, or its numbers do not say what white is.

    Source: xyfJASON/ctrlora@b4422b4 annotator/util.py, `HWC3`.
    """
    from PIL import Image

    with opened(path, name) as picture:
        depth = depth_of(picture, name)
        has_several = picture.format in _SEVERAL and getattr(picture, "is_animated", False)
        picture.load()
        orientation = picture.getexif().get(_ORIENTATION, 1)
        upright = in_rgb(picture, depth, name)
    if orientation in _TURNS:
        upright = upright.transpose(Image.Transpose[_TURNS[orientation]])
    remarks = [depth.remark] if depth.remark else []
    return upright, [*remarks, ONE_FRAME] if has_several else remarks


def is_scaled(path: Path | PictureBytes, name: str) -> bool:
    """Whether a picture's numbers are other ones than those of eight bits; errors as in `read_picture`."""
    with opened(path, name) as picture:
        return depth_of(picture, name).white != Depth.white


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
