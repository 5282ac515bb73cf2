"""Pictures of every depth, format and size: read by what their numbers mean, or refused in one sentence."""

from __future__ import annotations

import io
import os
import re
import resource
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from nextcontrol.training.cache import file_digest
from nextcontrol.training.encode import content_of
from nextcontrol.training.encoded_pair import _from_png
from nextcontrol.training.picture_files import FORMATS, LARGEST, PictureBytes, UnreadablePictureError
from nextcontrol.training.picture_tags import check_tags
from nextcontrol.training.pictures import (
    read_picture,
    read_size,
    read_with_remarks,
)
from nextcontrol.training.tar_files import DamagedShardError
from PIL import Image, ImageOps

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
"""Every byte once."""


def read(data: bytes, name: str = "x"):
    return np.asarray(read_picture(PictureBytes(name, data), name))


def saved(picture, form, **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def png(width, height, depth, colour, rows: bytes, *before: tuple[bytes, bytes]) -> bytes:
    def chunk(kind, data):
        return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))

    head = struct.pack(">LLBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(chunk(*one) for one in before) + body + chunk(b"IEND", b"")


def tiff(pixels: bytes, bits, form=1, photometric=1, order="<", width=16, height=16, *more: tuple[int, int, int, int]) -> bytes:
    """An uncompressed file; `more` are (tag, type, count, value)."""
    samples = len(bits)
    tags = [(256, 4, 1, width), (257, 4, 1, height), (262, 3, 1, photometric), (277, 3, 1, samples)]
    tags += [(258, 3, 1, bits[0]), (339, 3, 1, form), (259, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, len(pixels))]
    start = 8 + 2 + 12 * (len(tags) + 1 + len(more)) + 4
    tags = sorted([*tags, (273, 4, 1, start), *more])
    short = {3: "HH", 4: "L"}
    rows = b"".join(
        struct.pack(f"{order}HHL", tag, kind, count)
        + struct.pack(f"{order}{short.get(kind, 'L')}", *([value, 0] if kind == 3 and count == 1 else [value]))
        for tag, kind, count, value in tags
    )
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HL", 42, 8)
    return head + struct.pack(f"{order}H", len(tags)) + rows + struct.pack(f"{order}L", 0) + pixels


def rows_of(values) -> bytes:
    """Big-endian rows of a PNG, unfiltered."""
    return b"".join(b"\0" + row.tobytes() for row in values)


SIXTEEN = RAMP.astype(np.uint16) * 257
DEEP = {
    "16-bit grey PNG": png(16, 16, 16, 0, rows_of(SIXTEEN.astype(">u2"))),
    "16-bit TIFF": saved(Image.fromarray(SIXTEEN), "TIFF"),
    "compressed 16-bit TIFF": saved(Image.fromarray(SIXTEEN), "TIFF", compression="tiff_lzw"),
    "16-bit TIFF, big-endian": tiff(SIXTEEN.astype(">u2").tobytes(), (16,), order=">"),
    "16-bit TIFF, 0 is white": tiff((65535 - SIXTEEN).astype("<u2").tobytes(), (16,), photometric=0),
    "16-bit JPEG 2000": saved(Image.fromarray(SIXTEEN), "JPEG2000", irreversible=False),
    "16-bit PGM": b"P5 16 16 65535\n" + SIXTEEN.astype(">u2").tobytes(),
    "10-bit PGM": b"P5 16 16 1023\n" + np.rint(RAMP / 255 * 1023).astype(">u2").tobytes(),
    "float TIFF": saved(Image.fromarray((RAMP / 255).astype(np.float32)), "TIFF"),
    "float TIFF, big-endian": tiff((RAMP / 255).astype(">f4").tobytes(), (32,), form=3, order=">"),
    "float TIFF, 0 is white": tiff((1 - RAMP / 255).astype("<f4").tobytes(), (32,), form=3, photometric=0),
    "float PFM": b"Pf\n16 16\n-1.0\n" + (RAMP[::-1] / 255).astype("<f4").tobytes(),
}


def twelve_bits() -> bytes:
    values = np.rint(RAMP / 255 * 4095).astype(np.uint16).ravel()
    pairs = [(int(a) << 12 | int(b)).to_bytes(3, "big") for a, b in zip(values[::2], values[1::2], strict=True)]
    return tiff(b"".join(pairs), (12,))


@pytest.mark.parametrize("kind", [*DEEP, "12-bit TIFF"])
def test_a_deep_grey_picture_is_scaled_by_its_white(kind, tmp_path):
    data = DEEP.get(kind) or twelve_bits()
    picture, remarks = read_with_remarks(PictureBytes("x", data), "x")
    assert (np.asarray(picture) == RAMP[..., None]).all()
    assert len(remarks) == 1
    assert re.fullmatch(r"scaled from (floats|1[026] bits) to 8 bits", remarks[0])
    (tmp_path / "x").write_bytes(data)
    assert read_picture(tmp_path / "x", "x") == picture


@pytest.mark.parametrize("alpha", [False, True])
def test_sixteen_bits_of_colour_are_scaled(alpha):
    colours = np.stack([SIXTEEN, SIXTEEN[::-1], SIXTEEN.T, np.full_like(SIXTEEN, 65535)][: 3 + alpha], -1)
    data = png(16, 16, 16, 6 if alpha else 2, rows_of(colours.astype(">u2")))
    picture, remarks = read_with_remarks(PictureBytes("x", data), "x")
    assert (np.asarray(picture) == np.stack([RAMP, RAMP[::-1], RAMP.T], -1)).all()
    assert remarks == ["scaled from 16 bits to 8 bits"]


def test_sixteen_bits_of_a_ppm_are_said():
    data = b"P6 16 16 4095\n" + np.repeat(SIXTEEN.astype(">u2")[..., None] // 16, 3, -1).astype(">u2").tobytes()
    assert read_with_remarks(PictureBytes("x", data), "x")[1] == ["scaled from 16 bits to 8 bits"]


def test_what_was_encoded_as_white_is_encoded_again(tmp_path):
    for kind, is_new in {"16-bit grey PNG": True, "16-bit TIFF": True, "grey": False, "colour": False}.items():
        path = tmp_path / "x"
        noise = Image.fromarray(RAMP).convert("L" if kind == "grey" else "RGB")
        path.write_bytes(DEEP[kind] if is_new else saved(noise, "PNG"))
        assert (content_of(path, "x") != file_digest(path)) is is_new


def test_the_transparent_grey_of_sixteen_bits_becomes_white():
    data = png(16, 16, 16, 0, rows_of(SIXTEEN.astype(">u2")), (b"tRNS", struct.pack(">H", 257 * 9)))
    assert (read(data) == np.where(RAMP == 9, 255, RAMP)[..., None]).all()


def as_before(data: bytes):
    """How pictures of eight bits have always been read."""
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if picture.mode not in {"RGB", "L"}:
        layer = picture.convert("RGBA")
        picture = Image.new("RGBA", layer.size, "white")
        picture.alpha_composite(layer)
    return np.asarray(picture.convert("RGB"))


def eight_bits() -> dict[str, bytes]:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (19, 23, 4), np.uint8))
    palette, turned = noise.convert("RGB").quantize(16), Image.Exif()
    turned[274] = 6
    found = {
        f"{mode} {form}": saved(noise.convert(mode), form)
        for form, modes in {
            "PNG": ("1", "L", "LA", "RGB", "RGBA"),
            "TIFF": ("1", "L", "LA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB"),
            "JPEG": ("L", "RGB", "CMYK"),
            "WEBP": ("RGB", "RGBA"),
            "BMP": ("1", "L", "RGB", "RGBA"),
            "GIF": ("L", "RGB"),
            "PPM": ("1", "L", "RGB"),
            "JPEG2000": ("L", "LA", "RGB", "RGBA"),
        }.items()
        for mode in modes
    }
    found |= {f"turned {form}": saved(noise.convert("RGB"), form, exif=turned) for form in ("PNG", "JPEG", "WEBP", "TIFF")}
    found["progressive JPEG"] = saved(noise.convert("RGB"), "JPEG", progressive=True)
    found["palette"] = saved(palette, "PNG")
    found["palette, one colour transparent"] = saved(palette, "PNG", transparency=3)
    found["palette, colours half transparent"] = saved(palette, "PNG", transparency=bytes(range(0, 256, 16)))
    found["palette with alpha"] = saved(palette.convert("PA"), "TIFF")
    found["grey with one transparent"] = saved(noise.convert("L"), "PNG", transparency=7)
    return found


EIGHT = eight_bits()


@pytest.mark.parametrize("kind", EIGHT)
def test_pictures_of_eight_bits_are_what_they_were(kind, monkeypatch):
    expected = as_before(EIGHT[kind])
    picture, remarks = read_with_remarks(PictureBytes("x", EIGHT[kind]), "x")
    assert (np.asarray(picture) == expected).all()
    assert not remarks
    assert read_size(PictureBytes("x", EIGHT[kind]), "x") == picture.size
    monkeypatch.setattr("nextcontrol.training.picture_depth._STRIP", 70)  # three rows at a time, as of a large picture
    assert (read(EIGHT[kind]) == expected).all()


def test_grey_with_an_alpha_that_is_multiplied_in_is_read():
    data = tiff(bytes([100, 200] * 256), (8, 8), 1, 1, "<", 16, 16, (338, 3, 1, 1))
    assert 155 <= read(data)[0, 0, 0] <= 157  # 100, and white where 200 is missing to 255


PROGRESSIVE = saved(Image.effect_noise((64, 64), 90), "JPEG", progressive=True)
REFUSED = {
    "a JPEG of 200 scans": (
        PROGRESSIVE[:-2] + PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2] * 200 + PROGRESSIVE[-2:],
        "JPEG of 20[0-9] scans",
    ),
    "32-bit whole numbers": (saved(Image.fromarray(SIXTEEN.astype(np.int32)), "TIFF"), "32-bit or signed numbers"),
    "signed 8 bits": (tiff(RAMP.tobytes(), (8,), form=2), "32-bit or signed numbers"),
    "signed 16 bits": (tiff(SIXTEEN.tobytes(), (16,), form=2), "32-bit or signed numbers"),
    "floats to 255": (saved(Image.fromarray(RAMP.astype(np.float32)), "TIFF"), "floats from 0 to 255"),
    "negative floats": (saved(Image.fromarray(RAMP.astype(np.float32) / 255 - 1), "TIFF"), "floats from -1 to 0"),
    "no number": (saved(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"), "floats from nan to nan"),
    "14 bits": (tiff(bytes(16 * 16 * 2), (14,)), "none of PNG, JPEG"),
    "64-bit floats": (tiff(bytes(16 * 16 * 8), (64,), form=3), "none of PNG, JPEG"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "none of PNG, JPEG"),
    "an icon": (saved(Image.new("RGB", (16, 16)), "ICO"), "none of PNG, JPEG"),
    "nothing": (b"", "none of PNG, JPEG"),
    "text": (b"once upon a time", "none of PNG, JPEG"),
    "a cut PNG": (DEEP["16-bit grey PNG"][:-40], "no readable picture"),
    "a cut JPEG": (saved(Image.effect_noise((64, 64), 90), "JPEG")[:700], "no readable picture"),
    "a profile that unpacks to 64 MB": (
        png(1, 1, 8, 0, b"\0\0", (b"iCCP", b"x\0\0" + zlib.compress(bytes(1 << 26)))),
        "no readable picture",
    ),
    "a text that unpacks to 64 MB": (
        png(1, 1, 8, 0, b"\0\0", (b"zTXt", b"x\0\0" + zlib.compress(bytes(1 << 26)))),
        "no readable picture",
    ),
    "a header of 60,000x60,000": (png(60_000, 60_000, 8, 2, b""), "too many pixels"),
    "a header of 9,000x9,000": (png(9_000, 9_000, 8, 2, b""), "9000x9000 pixels"),
    "a row of 100 million": (png(100_000_000, 1, 1, 0, b""), "pixels"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_one_sentence(kind):
    data, reason = REFUSED[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UnreadablePictureError, match=reason) as caught:
            read(data, "some/name\n.png")
    message = str(caught.value)
    assert message.startswith("'some/name?.png' ")
    assert message.endswith(", or set bad_pairs to skip.")
    assert len(message) < 400
    assert message.isprintable()


def solid_webp(side: int) -> bytes:
    """The smallest lossless file of one colour: no transform, no cache, five codes of one symbol."""
    bits = [(0x2F, 8), (side - 1, 14), (side - 1, 14), (0, 1), (0, 3), (0, 3), *[(1, 4)] * 5]
    number = sum(value << sum(size for _, size in bits[:place]) for place, (value, _) in enumerate(bits))
    body = number.to_bytes(10, "little")
    chunk = b"VP8L" + struct.pack("<L", len(body)) + body
    return b"RIFF" + struct.pack("<L", 4 + len(chunk)) + b"WEBP" + chunk


def test_a_small_file_of_a_huge_picture_takes_no_memory():
    assert read(solid_webp(64)).shape == (64, 64, 3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for side in (12_000, 8_000, 5_800):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(UnreadablePictureError, match="pixels"):
                read(solid_webp(side))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB


def test_extensions_and_contents_may_differ_and_the_librarys_limit_is_left_alone():
    limit = Image.MAX_IMAGE_PIXELS
    assert read(saved(Image.new("RGB", (4, 4), "red"), "JPEG"), "x.png").shape == (4, 4, 3)
    assert limit == Image.MAX_IMAGE_PIXELS
    assert limit > LARGEST  # so that its warning is never the first to speak of a picture that we read


@pytest.mark.parametrize("name", ["x.heic", "x.jxl"])
def test_a_format_without_its_plugin_is_named(name):
    if FORMATS[name[1:]] in Image.OPEN:
        pytest.skip("the plugin is there")
    with pytest.raises(UnreadablePictureError, match=r"reading (HEIF|JXL) needs the package pillow-"):
        read(b"\0\0\0\x18ftypheic" + bytes(40), name)


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_is_read(form):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "white")]
    data = saved(frames[0], form, save_all=True, append_images=frames[1:])
    picture, remarks = read_with_remarks(PictureBytes("x", data), "x")
    assert np.abs(np.asarray(picture).astype(int) - (255, 0, 0)).max() < 4
    assert remarks == ["of several frames or pages, only the first is read"]


def test_tags_that_all_point_at_the_same_bytes_are_refused():
    def many(count, size):
        rows = b"".join(struct.pack("<HHLL", 40_000 + number, 7, size, 8) for number in range(count))
        return b"II*\0" + struct.pack("<L", 8) + struct.pack("<H", count) + rows + bytes(4 + size)

    check_tags(io.BytesIO(many(20, 1 << 20)))
    with pytest.raises(ValueError, match="claim more than the file holds"):
        check_tags(io.BytesIO(many(100, 1 << 20)))
    with pytest.raises(UnreadablePictureError, match="claim more than the file holds"):
        read(many(100, 1 << 20))
    for data in (b"", b"II*\0", b"MM\0+", b"II*\0\xff\xff\xff\xff", b"II+\0" + bytes(12)):
        check_tags(io.BytesIO(data))


def test_a_file_that_cannot_be_opened_is_one_sentence(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "round.png").symlink_to("round.png")
    (tmp_path / "folder.png").mkdir()
    with (tmp_path / "sparse.png").open("wb") as stream:
        stream.truncate(1 << 40)
    for name in ("gone", "pipe", "round", "folder", "sparse"):
        for use in (read_picture, read_size):
            with pytest.raises(UnreadablePictureError, match=rf"^'{name}' .*, or set bad_pairs to skip\.$") as caught:
                use(tmp_path / f"{name}.png", name)
    assert "has a file of 1,048,576 MB" in str(caught.value)


def test_pictures_are_opened_in_one_place():
    root = Path(__file__).resolve().parents[2]
    files = (path for folder in ("models", "nodes", "preprocessors", "training") for path in (root / folder).rglob("*.py"))
    opening = [path.name for path in files if re.search(r"Image\.open\(|imread\(|\.Parser\(", path.read_text("utf-8"))]
    assert opening == ["picture_files.py"]


def test_no_memory_is_not_taken_for_a_bad_picture(monkeypatch):
    def fail(_picture, *_):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(MemoryError):
        read(EIGHT["L PNG"])


def test_a_hint_in_an_encoded_shard_is_read_as_any_other():
    latent = torch.Size([4, *RAMP.shape])
    assert (_from_png(DEEP["16-bit grey PNG"], latent, "x").movedim(0, -1).numpy() * 255 == RAMP[..., None]).all()
    with pytest.raises(DamagedShardError):
        _from_png(REFUSED["PostScript"][0], latent, "x")
