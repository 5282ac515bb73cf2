"""Pictures of every depth to eight bits, by what their numbers mean.

Whole numbers of up to 16 bits go from black, 0, to white, the largest that the file's depth holds. Floats go from 0 to 1. All
else does not say what white is, and is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..models.foreign import shown
from .picture_files import UnreadablePictureError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

_BITS, _PHOTOMETRIC, _FORMAT = 258, 262, 339  # TIFF
_SIGNED = 2
_WHITE_IS_ZERO = 0
_SIXTEEN = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
_GREY = _SIXTEEN | {"I", "F"}
_SPREAD = frozenset({"PNG", "PPM", "JPEG2000"})
"""Formats whose numbers the library spreads to 16 bits where it says "I"."""
_BYTE = 255
_SLACK = 1e-4
"""By how much a float may lie outside of [0, 1]: what rounding makes of it."""
_STRIP = 1 << 22
"""Pixels that are converted at a time, so that a large picture does not need several times its memory."""
_CURE = "save it with 8 or 16 bits"


@dataclass(frozen=True)
class Depth:
    """What the numbers of a picture mean."""

    white: float = 255
    """Number that is white."""
    is_inverted: bool = False
    """Switch: 0 is white, and that number black."""
    transparent: int | None = None
    """Number of pixels that are not there; None if there is no such number, or the library knows it."""
    remark: str = ""
    """What is done about it; empty if nothing is."""


def depth_of(picture: ImageFile, name: str) -> Depth:
    """Find out what the numbers of a picture mean.

    Args:
        picture: Opened; its pixels are not needed.
        name: For the error.

    Returns:
        What `in_rgb` needs.

    Raises:
        UnreadablePictureError: They may mean anything.
    """
    tags = getattr(picture, "tag_v2", {})
    mode = picture.mode
    if _SIGNED in tags.get(_FORMAT, ()) or (mode == "I" and picture.format not in _SPREAD):
        raise UnreadablePictureError(f"'{shown(name)}' has 32-bit or signed numbers, which do not say what white is", _CURE)
    if mode not in _GREY:
        return Depth(remark=_scaled("16 bits") if _is_halved(picture) else "")
    is_inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    if mode == "F":
        return Depth(1, is_inverted, remark=_scaled("floats"))
    bits = tags.get(_BITS, (16,))[0] if mode in _SIXTEEN else 16
    transparent = picture.info.get("transparency")
    own = transparent if isinstance(transparent, int) else None
    return Depth((1 << bits) - 1, is_inverted, own, _scaled(f"{bits} bits"))


def _is_halved(picture: ImageFile) -> bool:
    """Whether the library has taken the upper half of each number."""
    form = picture.tile[0][3] if picture.tile else ""
    return ";16" in str(form) or (picture.format == "PPM" and isinstance(form, tuple) and form[-1] > _BYTE)


def _scaled(what: str) -> str:
    return f"scaled from {what} to 8 bits"


def in_rgb(picture: Image, depth: Depth, name: str) -> Image:
    """Convert a picture; what is transparent becomes white.

    Args:
        picture: In any mode of the library.
        depth: From `depth_of`.
        name: For the error.

    Returns:
        A picture in RGB.

    Raises:
        UnreadablePictureError: It has floats outside of [0, 1].
    """
    from PIL import Image

    rows = max(1, _STRIP // picture.width)
    if picture.mode in {"RGB", "L"} or rows >= picture.height:
        return _convert(picture, depth, name)
    result = Image.new("RGB", picture.size)
    for top in range(0, picture.height, rows):
        strip = picture.crop((0, top, picture.width, min(top + rows, picture.height)))
        result.paste(_convert(strip, depth, name), (0, top))
    return result


def _convert(picture: Image, depth: Depth, name: str) -> Image:
    from PIL import Image

    if picture.mode in _GREY:
        return Image.fromarray(_to_bytes(np.asarray(picture), depth, name)).convert("RGB")
    if picture.mode in {"RGB", "L"}:
        return picture.convert("RGB")
    layer = (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")
    ground = Image.new("RGBA", layer.size, "white")
    ground.alpha_composite(layer)
    return ground.convert("RGB")


def _to_bytes(numbers: np.ndarray, depth: Depth, name: str) -> np.ndarray:
    if numbers.dtype.kind == "f":
        low, high = float(numbers.min()), float(numbers.max())
        if not -_SLACK <= low <= high <= 1 + _SLACK:  # nor may it be NaN
            raise UnreadablePictureError(
                f"'{shown(name)}' has floats from {low:g} to {high:g}, and pictures of floats go from 0 to 1", _CURE
            )
    grey = np.rint(np.clip(numbers.astype(np.float64) / depth.white, 0, 1) * 255).astype(np.uint8)
    if depth.is_inverted:
        grey = 255 - grey
    if depth.transparent is not None:
        grey[numbers == depth.transparent] = 255
    return grey
