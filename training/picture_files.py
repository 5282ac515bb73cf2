"""Files of pictures: which are read, how large they may be, and one sentence for each that cannot be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ..models.foreign import first_line, shown
from .inside import open_real
from .picture_tags import check_tags

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

FORMATS = {
    ".png": "PNG",
    ".apng": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".jif": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".gif": "GIF",
    ".avif": "AVIF",
    ".jp2": "JPEG2000",
    ".j2k": "JPEG2000",
    ".jpf": "JPEG2000",
    ".jpx": "JPEG2000",
    ".pgm": "PPM",
    ".ppm": "PPM",
    ".pbm": "PPM",
    ".pnm": "PPM",
    ".pfm": "PPM",
    ".heic": "HEIF",
    ".heif": "HEIF",
    ".hif": "HEIF",
    ".jxl": "JXL",
}
"""Extension to the library's name of the format; a file may have the extension of another one of these.

No other format is opened: some of the library's readers start programs. HEIF and JXL are read where it has a plugin for them.
"""
EXTENSIONS = frozenset(FORMATS)
PLUGINS = {"HEIF": "pillow-heif", "JXL": "pillow-jxl-plugin", "AVIF": "pillow-avif-plugin"}
"""Format to the package that reads it where the library itself does not."""
# fmt: off
NOT_READ = frozenset(
    {
        ".ai", ".arw", ".cr2", ".cr3", ".cur", ".dcm", ".dds", ".dib", ".dng", ".emf", ".eps",
        ".exr", ".hdr", ".icns", ".ico", ".kra", ".nef", ".ora", ".orf", ".pcx", ".psb", ".psd",
        ".qoi", ".raf", ".raw", ".rw2", ".svg", ".svgz", ".tga", ".wmf", ".xcf",
    }
)
# fmt: on
"""Extensions of pictures that are not read, so that this can be said of each."""
LARGEST = 1 << 26
"""Pixels of the largest picture that is read; the largest bucket has 4 million."""
LARGEST_HEAVY = LARGEST // 2
"""The same for formats whose readers need several times the memory of the picture."""
LARGEST_FILE = LARGEST * 8
"""Bytes: four channels of 16 bits for each pixel."""
MOST_SCANS = 100
"""Scans of a progressive JPEG."""
_SCAN = b"\xff\xda"
_LIGHT = frozenset({"PNG", "JPEG", "MPO", "BMP", "TIFF", "GIF", "PPM"})


class PictureBytes(BytesIO):
    """A picture's file in memory, under the name that it has where it comes from."""

    def __init__(self, name: str, data: bytes) -> None:
        super().__init__(data)
        self.name = name


class UnreadablePictureError(ValueError):
    """A file is no picture, a damaged one, or one that training cannot use.

    Args:
        what: Half a sentence that says what is wrong.
        cure: The other half; where there is a choice between skipping and refusing, the message names it too.
    """

    def __init__(self, what: str, cure: str) -> None:
        super().__init__(f"{what}: {cure}, or set bad_pairs to skip.")
        self.what = what
        self.plain = f"{what}: {cure}."


@contextmanager
def opened(path: Path | PictureBytes, name: str) -> Iterator[ImageFile]:
    """Open a picture; what goes wrong in the block is its fault too.

    Args:
        path: Of the file, without links, or the file.
        name: For the error.

    Yields:
        The picture, only its header read.

    Raises:
        UnreadablePictureError: It is not there, may not be read, is none of `FORMATS`, damaged, or too large.
        MemoryError: There is none left.
    """
    from PIL import Image

    try:
        with _stream(path, name) as stream:
            _check_bytes(stream, name)
            with Image.open(stream, formats=_readable()) as picture:
                _check_pixels(picture, name)
                if picture.info.get("progressive"):
                    _check_scans(stream, name)
                yield picture
    except (UnreadablePictureError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadablePictureError(*_too_large(name, "too many pixels")) from error
    except Image.UnidentifiedImageError as error:
        raise UnreadablePictureError(f"'{shown(name)}' is no readable picture ({_missing(path)})", "replace it") from error
    except Exception as error:  # whatever a foreign file breaks in its reader, the cure is the same
        if isinstance(error, OSError) and error.errno is not None:
            reason = shown(error.strerror or first_line(error))
            raise UnreadablePictureError(f"'{shown(name)}' cannot be opened ({reason})", "make it readable") from error
        raise UnreadablePictureError(f"'{shown(name)}' is no readable picture ({first_line(error)})", "replace it") from error


@contextmanager
def _stream(path: Path | PictureBytes, name: str) -> Iterator[BinaryIO]:
    if isinstance(path, PictureBytes):
        path.seek(0)
        yield path
        return
    with open_real(path, name) as stream:
        yield stream


def _readable() -> list[str]:
    """Return the formats that this library can read, the usual ones first."""
    from PIL import Image

    Image.init()
    return [name for name in dict.fromkeys(FORMATS.values()) if name in Image.OPEN]


def _check_bytes(stream: BinaryIO, name: str) -> None:
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    if size > LARGEST_FILE:
        raise UnreadablePictureError(*_too_large(name, f"a file of {size >> 20:,} MB"))
    start = stream.read(4)
    stream.seek(0)
    if start[:2] in {b"II", b"MM"}:
        check_tags(stream)
        stream.seek(0)


def _check_pixels(picture: ImageFile, name: str) -> None:
    width, height = picture.size
    if width < 1 or height < 1:
        raise UnreadablePictureError(f"'{shown(name)}' is a picture without pixels", "replace it")
    if width * height > (LARGEST if picture.format in _LIGHT else LARGEST_HEAVY):
        raise UnreadablePictureError(*_too_large(name, f"{width}x{height} pixels"))
    if isinstance(exif := picture.info.get("exif"), bytes):
        check_tags(BytesIO(exif.removeprefix(b"Exif\0\0").removeprefix(b"Exif\0\0")))


def _check_scans(stream: BinaryIO, name: str) -> None:
    """Refuse a JPEG that goes over all its pixels thousands of times; a few bytes are enough for each."""
    place, scans, last = stream.tell(), 0, b""
    stream.seek(0)
    while block := stream.read(1 << 20):
        scans += (last + block).count(_SCAN)
        last = block[-1:]
    stream.seek(place)
    if scans > MOST_SCANS:
        raise UnreadablePictureError(f"'{shown(name)}' is a JPEG of {scans} scans, and usual ones have ten", "save it anew")


def _too_large(name: str, what: str) -> tuple[str, str]:
    limits = f"{LARGEST // 1_000_000} million pixels are read, {LARGEST_HEAVY // 1_000_000} million of WEBP and the like"
    return f"'{shown(name)}' has {what}, and pictures of up to {limits}", "make it smaller"


def _missing(path: Path | PictureBytes) -> str:
    own = FORMATS.get(Path(path.name).suffix.lower(), "")
    if own in PLUGINS and own not in _readable():
        return f"reading {own} needs the package {PLUGINS[own]}"
    return f"it is none of {', '.join(_readable())}, or of a depth that is not read"
