"""Making pairs of what people really have: one bad picture is one line of the report, and the rest is made."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from nextcontrol.training.check import check_pairs
from nextcontrol.training.dataset import DatasetSettings, PairDataset
from nextcontrol.training.durable import CannotWriteError
from nextcontrol.training.make_pairs import MakeSettings, make_pairs
from nextcontrol.training.pair_names import name_pairs
from nextcontrol.training.pairs import find_pairs
from PIL import Image

NFC = unicodedata.normalize("NFC", "é.png")
NFD = unicodedata.normalize("NFD", "é.png")


def invert(pixels, _seed):
    if pixels.mean() < 0.01:
        raise ValueError("Nothing is seen in the dark:\nturn the light on.")
    return 1 - pixels


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


def put(folder: Path, *names: str) -> None:
    """Write a small picture under each name, each of other colours."""
    for name in names:
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(len(list(folder.rglob("*")))).integers(40, 256, (6, 8, 3), np.uint8)
        Image.fromarray(noise).save(place)


def make(photos, make_hint=invert, captions="none", on_item=lambda _done, _all: None):
    root = photos.parent
    settings = MakeSettings("invert", {}, 64, captions)
    return make_pairs(photos, root / "pairs", [root], settings, make_hint, on_item)


def rows(photos) -> list[dict]:
    return [json.loads(line) for line in (photos.parent / "pairs" / "prompt.json").read_text("utf-8").split("\n")[:-1]]


def made(photos) -> dict[str, str]:
    """Name of each listed pair by its picture; all their files are there, and no others."""
    folder = photos.parent / "pairs"
    found = {row["picture"]: row["target"].removeprefix("target/").removesuffix(".png") for row in rows(photos)}
    for side in ("source", "target"):
        files = {path.relative_to(folder / side).as_posix() for path in (folder / side).rglob("*") if path.is_file()}
        assert files == {f"{name}.png" for name in found.values()}
    assert len(find_pairs(folder, [photos.parent]).pairs) == len(found)
    return found


def test_each_bad_picture_is_listed_and_the_rest_is_made(photos):
    put(
        photos,
        "a.png",
        "sub/z.JPG",
        "c.jfif",
        "d.jpe",
        "e.gif",
        "f.avif" if ".avif" in Image.registered_extensions() else "f.bmp",
    )
    Image.new("RGB", (12_000, 20), "red").save(photos / "banner.png")
    Image.new("RGB", (8, 8)).save(photos / "dark.png")
    Image.fromarray(np.full((8, 8), 9e9, np.float32)).save(photos / "floats.tif")
    (photos / "broken.webp").write_bytes(b"x")
    (photos / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (photos / "layers.PSD").write_bytes(b"8BPS")
    (photos / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (photos / "gone.png").symlink_to("nowhere.png")
    (photos / "out.png").symlink_to(photos.parent.parent / "out.png")
    (photos / "there").symlink_to("sub", target_is_directory=True)
    os.mkfifo(photos / "pipe.png")
    (photos / os.fsdecode(b"caf\xe9.png")).write_bytes((photos / "a.png").read_bytes())
    (photos / "notes.txt").write_text("not a picture")
    (photos / ".hidden.png").write_bytes(b"x")
    done = []
    report = make(photos, on_item=lambda *told: done.append(told))
    assert (report.made, report.kept) == (6, 0)
    expected = {
        "banner": "A picture of 12000x20 pixels gives a hint of 38400x64",
        "dark": "Nothing is seen in the dark:",
        "floats": "floats from 9e+09 to 9e+09",
        "broken": "no readable picture",
        "phone": "HEIF",
        "layers.PSD": "is not read, for it is a .psd file",
        "script": "no readable picture",
        "gone": "cannot be opened (No such file or directory)",
        "out": "leads out of the folders",
        "there": "is a link to a folder",
        "pipe": "not a regular file",
        "caf?.png": "not UTF-8",
    }
    for name, reason in expected.items():
        assert [line for line in report.left_out if line.startswith(f"'{name}'") and reason in line], (name, report.left_out)
    assert len(report.left_out) == len(expected)
    assert all(line.isprintable() and "bad_pairs" not in line for line in report.left_out)
    assert [told for told, _ in done] == list(range(1, done[-1][1] + 1))
    again = make(photos)
    assert (again.made, again.kept, again.left_out) == (0, 6, report.left_out)
    assert report.text().splitlines()[:2] == ["6 pairs made, 0 were there already.", f"{len(expected)} pictures left out:"]


COLLISIONS = {
    "three extensions": ["a.png", "a.webp", "a_png.jpg"],
    "capital letters": ["A.png", "a.png", "b/X.png", "b/x.jpg", "B/x.png"],
    "two forms of a letter": [NFC, NFD, f"sub/{NFD}", f"sub/{NFC.replace('png', 'jpg')}"],
    "a folder like a file": ["a.jpg", "a.png/b.jpg", "a.png/b.png"],
    "a backslash": ["a\\b.png", "a_b.png", "a/b.png"],
    "long names": [
        "n" * 251 + ".png",
        "n" * 251 + ".jpg",
        "n" * 250 + "m.png",
        "é" * 125 + ".bmp",
        "é" * 125 + ".gif",
        "中" * 83 + ".png",
    ],
    "a colon": ["a:b.png", "c/a:b.png", "a_b.png"],
    "a bare name": ["a.b.png", "a.b.c.png", "a .png", " a.png"],
}


@pytest.mark.parametrize("kind", COLLISIONS)
def test_every_picture_has_a_name_of_its_own_on_every_file_system(photos, kind):
    pictures = COLLISIONS[kind]
    put(photos, *pictures)
    report = make(photos)
    assert (report.made, report.kept, report.left_out) == (len(pictures), 0, [])
    names = made(photos)
    assert sorted(names) == sorted(pictures)
    files = {unicodedata.normalize("NFC", name).casefold() for name in names.values()}
    assert len(files) == len(pictures)
    again = make(photos)
    assert (again.made, again.kept, again.left_out) == (0, len(pictures), [])
    assert made(photos) == names


@pytest.mark.parametrize("kind", COLLISIONS)
def test_stopped_and_gone_on_gives_the_names_of_one_run(kind):
    pictures = sorted(COLLISIONS[kind])
    names = name_pairs(pictures, {}, ())
    for count in range(len(pictures)):
        for first in (pictures[:count], pictures[count:]):
            assert name_pairs(pictures, {picture: names[picture] for picture in first}, ()) == names


def test_pictures_that_come_later_rename_none(photos):
    put(photos, "a.webp", "b.png", "c.png")
    make(photos)
    first = made(photos)
    assert set(first.values()) == {"a", "b", "c"}
    before = {path: path.read_bytes() for path in (photos.parent / "pairs").rglob("*.png")}
    (photos / "c.png").unlink()
    put(photos, "a.png", "A.webp", "B.png", "c.jpg", "a_png.jpg")
    report = make(photos)
    assert (report.made, report.kept, report.left_out) == (5, 2, [])
    assert first.items() <= made(photos).items()
    assert len(made(photos)) == 8
    assert {path: path.read_bytes() for path in before} == before


def test_pairs_of_an_older_version_keep_their_names(photos):
    put(photos, "a.png", "a.webp", "sub/b.jpg", "c.png")
    make(photos)
    names = made(photos)
    place = photos.parent / "pairs" / "prompt.json"
    old = "".join(json.dumps({key: row[key] for key in ("source", "target", "prompt")}) + "\n" for row in rows(photos))
    place.write_text(old)
    report = make(photos)
    assert (report.made, report.kept, report.left_out) == (0, 4, [])
    assert place.read_text() == old
    assert sorted(names.values()) == ["a_png", "a_webp", "c", "sub/b"]


def test_a_last_line_that_was_cut_anywhere_is_made_anew(photos):
    put(photos, "a.png", "zé.png")
    make(photos, captions="file_name")
    place = photos.parent / "pairs" / "prompt.json"
    whole = place.read_bytes()
    start = whole.index(b"\n") + 1
    for end in (*range(start + 1, len(whole)), None):
        place.write_bytes(whole[:end] if end else whole[:start] + bytes(300))  # as a lost power supply leaves it
        report = make(photos, captions="file_name")
        assert (report.made + report.kept, report.left_out) == (2, [])
        assert place.read_bytes() == whole


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"target": 3}', "[" * 9999, "\0\0", "x"])
def test_a_damaged_line_of_an_earlier_run_is_one_sentence(photos, line):
    put(photos, "a.png", "b.png")
    make(photos)
    place = photos.parent / "pairs" / "prompt.json"
    whole = place.read_text()
    place.write_text(line + "\n" + whole)
    with pytest.raises(ValueError, match=r"^Line 1 of 'prompt\.json' in 'pairs' is no row of a pair"):
        make(photos)
    assert place.read_text() == line + "\n" + whole


@pytest.mark.parametrize("make_it", [os.mkfifo, os.mkdir, lambda place: place.write_bytes(bytes(99))])
def test_rows_that_are_no_file_or_far_too_large_are_one_sentence(photos, make_it, monkeypatch):
    monkeypatch.setattr("nextcontrol.training.made_files.LARGEST_ROWS", 98)
    put(photos, "a.png")
    make(photos)
    place = photos.parent / "pairs" / "prompt.json"
    place.unlink()
    make_it(place)
    with pytest.raises(ValueError, match=r"^'prompt\.json' "):
        make(photos)


@pytest.mark.parametrize("text", ["{", "[]", "[" * 9999])
def test_damaged_settings_of_an_earlier_run_are_one_sentence(photos, text):
    put(photos, "a.png")
    make(photos)
    (photos.parent / "pairs" / "nextcontrol.json").write_text(text)
    with pytest.raises(ValueError, match=r"^'nextcontrol\.json' in 'pairs' cannot be read"):
        make(photos)


def test_a_file_in_the_datasets_place_is_said(photos):
    put(photos, "a.png")
    (photos.parent / "pairs").write_text("mine")
    with pytest.raises(ValueError, match=r"^'pairs' is a file: choose the name of a folder\.$"):
        make(photos)


@pytest.mark.parametrize("place", ["prompt.json", "nextcontrol.json", "source", "target", "target/a.png", "source/a.png"])
def test_nothing_is_written_through_a_link(photos, place):
    put(photos, "a.png", "b.png")
    make(photos)
    folder = photos.parent / "pairs"
    outside = photos.parent / "outside"
    (folder / place).rename(outside)
    (folder / place).symlink_to(outside)
    before = {path: path.read_bytes() for path in outside.parent.rglob("*.png")}
    put(photos, "c.png")
    if place.endswith(".png"):
        assert ["is a link" in line for line in make(photos).left_out] == [True]
    else:
        with pytest.raises(ValueError, match="is a link"):
            make(photos)
        assert not (outside / "c.png").exists()
    assert all(path.read_bytes() == content for path, content in before.items())


def test_cancel_a_full_disk_and_no_memory_end_the_run_and_the_next_goes_on(photos, monkeypatch):
    put(photos, "a.png", "b.png", "c.png")

    class CancelledError(Exception):
        pass

    def cancel(done, _all):
        if done == 1:
            raise CancelledError

    with pytest.raises(CancelledError):
        make(photos, on_item=cancel)

    for error in (MemoryError, torch.OutOfMemoryError):

        def fail(_pixels, _seed, error=error):
            raise error

        with pytest.raises(error):
            make(photos, make_hint=fail)
    save = Image.Image.save

    def full(picture, place, *more):
        if "c.png" in Path(place).name:
            raise OSError(28, "No space left on device")
        save(picture, place, *more)

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(CannotWriteError, match=r"^'c\.png' cannot be written \(No space left on device\): free some space"):
        make(photos)
    monkeypatch.setattr(Image.Image, "save", save)
    report = make(photos)
    assert (report.made, report.kept, report.left_out) == (1, 2, [])
    assert len(made(photos)) == 3


def test_a_name_that_the_disk_does_not_take_is_one_line(photos, monkeypatch):
    put(photos, "a.png", "b.png")
    save = Image.Image.save

    def refuse(picture, place, *more):
        if "a.png" in Path(place).name:
            raise OSError(36, "File name too long")
        save(picture, place, *more)

    monkeypatch.setattr(Image.Image, "save", refuse)
    report = make(photos)
    assert (report.made, report.left_out) == (
        1,
        ["'a': it cannot be written (File name too long): give it another, shorter name."],
    )


def test_a_caption_that_cannot_be_read_is_one_line(photos):
    put(photos, "a.png", "b.png", "c.png", "d.png")
    (photos / "a.txt").write_bytes("\ufeffun café\r\nà Paris\u2028encore".encode())
    (photos / "b.txt").write_bytes("Œuvre d’été à Orléans".encode("cp1252"))
    (photos / "c.txt").write_bytes(b"long " * 99_999)
    os.mkfifo(photos / "d.txt")
    report = make(photos, captions="beside")
    assert [(row["picture"], row["prompt"]) for row in rows(photos)] == [("a.png", "un café à Paris encore"), ("d.png", "")]
    assert (report.made, report.kept) == (2, 0)
    assert [line.split(" ")[:3] for line in report.left_out] == [["'b':", "'b.txt'", "is"], ["'c':", "'c.txt'", "has"]]


def test_a_folder_of_others_alone_says_so(photos):
    (photos / "a.psd").write_bytes(b"8BPS")
    with pytest.raises(ValueError, match=r"holds no pictures that can be read; 'a\.psd' is not read"):
        make(photos)


# Checking


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_checking_lists_what_it_cannot_read_and_looks_at_targets_as_at_hints(photos):
    for side in ("source", "target"):
        put(photos, *(f"{side}/{number}.png" for number in range(7)))
    deep = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    for side, number in (("source", 1), ("target", 1), ("target", 2)):
        Image.fromarray(deep).save(photos / side / f"{number}.png")
    Image.new("RGB", (8, 6), "red").save(photos / "target" / "3.png")
    Image.new("RGB", (8, 6), "blue").save(photos / "source" / "4.png")
    Image.new("L", (12_000, 8_000)).save(photos / "target" / "5.png")
    for number in range(7):
        (photos / "target" / f"{number}.txt").write_text("x")
    listing = find_pairs(photos, [photos])
    (photos / "source" / "6.png").unlink()
    os.mkfifo(photos / "source" / "6.png")
    dataset = PairDataset("x", photos, listing.pairs, (), DatasetSettings(resolution=64))
    (photos / "target" / "0.png").unlink()
    text = check_pairs(dataset, "").text().splitlines()
    assert text[0] == "7 pairs in 'x', 7 with something to look at, 0 orphans."
    lines = dict(line.split(": ", 1) for line in text[1:] if ": " in line)
    assert lines["hint scaled from 16 bits to 8 bits (1)"] == "target/1.png"
    assert lines["target scaled from 16 bits to 8 bits (2)"] == "target/1.png, target/2.png"
    assert lines["blank target, one colour all over (1)"] == "target/3.png"
    assert lines["blank hint, one colour all over (1)"] == "target/4.png"
    assert "'target/0.png' cannot be opened (No such file or directory)" in lines["unreadable (3)"]
    assert "'target/5.png' has 12000x8000 pixels" in lines["unreadable (3)"]
    assert "'source/6.png' is no readable picture" in lines["unreadable (3)"]
