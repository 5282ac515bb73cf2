"""Picture files as people and strangers have them: every mode and format, huge, tiny, cut off, and what is no picture."""

from __future__ import annotations

import io
import random
import struct
import zlib
from functools import cache

import numpy as np
from fuzz.damage import damage_bytes
from PIL import Image, PngImagePlugin

SIDE = 64
VARIED = ("16-bit grey", "16-bit TIFF")
"""Odd pictures that have to be read with all their values, or refused."""


@cache
def plain(number: int = 0, form: str = "PNG", side: int = SIDE) -> bytes:
    """A good picture."""
    noise = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
    return saved(Image.fromarray(noise).resize((side, side)), form)


def saved(picture: Image.Image, form: str, **options: object) -> bytes:
    """The bytes of its file."""
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def saved_if(picture: Image.Image, form: str) -> bytes:
    """The same, or nothing where this library or this format cannot do it."""
    try:
        return saved(picture, form)
    except (OSError, ValueError, KeyError):
        return b""


@cache
def odd_pictures() -> dict[str, bytes]:
    """By what is odd about them."""
    base = Image.open(io.BytesIO(plain()))
    deep = (np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE) * 15).astype(np.uint16)
    found = {
        "16-bit grey": saved(Image.fromarray(deep), "PNG"),
        "16-bit TIFF": saved(Image.fromarray(deep), "TIFF"),
        "32-bit TIFF": saved(Image.fromarray(deep.astype(np.int32)), "TIFF"),
        "float TIFF": saved(Image.fromarray(deep.astype(np.float32) / 7), "TIFF"),
        "NaN TIFF": saved(Image.fromarray(np.full((SIDE, SIDE), np.nan, np.float32)), "TIFF"),
        "exif": saved(base, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\x09\0\0\xff\xff\xff\xff"),
        "animated": saved(base, "PNG", save_all=True, append_images=[base.convert("L").convert("RGB")]),
        "animated GIF": saved(base, "GIF", save_all=True, append_images=[base] * 3),
        "huge": flat_png(13_000, 13_000, 1, 0),
        "huge RGB": flat_png(9_000, 9_000, 8, 2),
        "beyond the limit": flat_png(60_000, 60_000, 1, 0),
        "beyond counting": flat_png(2**31 - 1, 2**31 - 1, 1, 0),
        "nothing wide": flat_png(0, 64, 8, 2),
        "one pixel": flat_png(1, 1, 8, 2),
        "a line": flat_png(2400, 2, 8, 2),
        "a column": flat_png(1, 4000, 8, 0),
        "of 16 bits a colour": flat_png(64, 64, 16, 2),
        "another size": plain(1, "PNG", 128),
        "long text": texted(100_000_000),
        "many texts": texted(0),
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n",
        "no picture": b"hello",
        "empty": b"",
        "web page": b"<html><body>404</body></html>",
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "WEBP of 12,000": webp_header(12_000, 12_000),
        "pickle": b"\x80\x04c__main__\nx\n.",
    }
    for mode in ("1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16"):
        picture = base.convert("L").convert(mode) if ";" in mode else base.convert(mode)
        found |= {f"{mode} {form}": saved_if(picture, form) for form in ("PNG", "TIFF", "JPEG", "WEBP")}
    others = ("BMP", "GIF", "ICO", "PPM", "TGA", "PCX", "SGI", "DDS", "JPEG2000", "AVIF", "ICNS", "IM", "PDF", "EPS")
    found |= {form: saved_if(base, form) for form in others}
    found |= {"MSP": saved_if(base.convert("1"), "MSP"), "SPIDER": saved_if(base.convert("F"), "SPIDER")}
    return found


def odd_picture(draw: random.Random) -> tuple[str, bytes]:
    """One of them, or a good one with damage."""
    if draw.random() < 0.45:
        form = draw.choice(("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"))
        how, data = damage_bytes(plain(0, form), draw, draw.choice((60, 0)))
        return f"{form}, {how}", data
    name = draw.choice(list(odd_pictures()))
    return name, odd_pictures()[name]


def chunk(kind: bytes, data: bytes) -> bytes:
    """Of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def flat_png(width: int, height: int, bits: int, color: int) -> bytes:
    """One colour all over, in few bytes, however large it is; the pixels themselves end after 90 million bytes."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    row = 1 + (width * bits * (3 if color == 2 else 1) + 7) // 8
    packer, left, parts = zlib.compressobj(1), min(row * height, 90_000_000 if height < 20_000 else 1000), []
    while left:
        step = min(left, 1 << 20)
        parts.append(packer.compress(bytes(step)))
        left -= step
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"".join([*parts, packer.flush()])) + chunk(b"IEND", b"")
    )


def texted(length: int) -> bytes:
    """A PNG with a text that unpacks to so many bytes, or with many texts."""
    about = PngImagePlugin.PngInfo()
    for number in range(1 if length else 3000):
        about.add_text(f"note{number}", "x" * (length or 10), zip=bool(length))
    return saved(Image.new("RGB", (SIDE, SIDE)), "PNG", pnginfo=about)


def webp_header(width: int, height: int) -> bytes:
    """A lossless WEBP that says how large it is, and ends."""
    bits = (width - 1) | (height - 1) << 14
    body = b"VP8L" + struct.pack("<I", 14) + b"\x2f" + struct.pack("<I", bits) + b"\x88\x88\x08\x00\x00\x00\x00\x00\x00"
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body
