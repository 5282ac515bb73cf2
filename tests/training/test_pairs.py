"""Datasets as people and strangers have them: files are what they are, below the roots alone, and one bad pair stays one."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import pytest
from nextcontrol.training import pair_rows
from nextcontrol.training.cache import TensorCache, file_digest
from nextcontrol.training.check import check_pairs
from nextcontrol.training.dataset import DatasetSettings, PairDataset, usable_pairs
from nextcontrol.training.encode import encode_dataset
from nextcontrol.training.folder_stamp import folder_stamp
from nextcontrol.training.inside import LeadsOutError
from nextcontrol.training.pairs import find_pairs, is_folder_of_pairs
from nextcontrol.training.picture_files import UnreadablePictureError
from nextcontrol.training.pictures import read_picture
from PIL import Image
from tiny_training import Encoders, write_pairs

DECOMPOSED = {name: unicodedata.normalize("NFD", name) for name in ("é", "ü", "が")}
GOOD = '{"source": "source/000.png", "target": "target/000.png", "prompt": "good"}\n'


@pytest.fixture
def place(tmp_path):
    """Two pairs below a root, and a secret beside it."""
    write_pairs(tmp_path / "root" / "set", 3)
    write_pairs(tmp_path / "secret", 2)
    (tmp_path / "secret" / "secret.txt").write_text("secret words")
    return tmp_path / "root" / "set"


def opened(place, **settings):
    listing = find_pairs(place, [place.parent])
    chosen = DatasetSettings(**{"resolution": 64, **settings})
    return PairDataset("set", place, listing.pairs, listing.orphans, chosen, problems=listing.problems)


def row(target="target/001.png", source="source/001.png", **more):
    return json.dumps({"source": source, "target": target, **more})


def put(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


BAD_CAPTIONS = {
    "gbk": ("一只红色的猫".encode("gbk"), "looks like GBK"),
    "cp1252": ("café au lait".encode("cp1252"), "looks like cp1252"),
    "no mark": ("a cat".encode("utf-16-le"), "looks like UTF-16 without its mark"),
    "long": (b"a" * 70_000, "more than 65536 bytes"),
    "binary": (bytes(range(256)), "is no text in UTF-8"),
}


def refused_and_skipped(place, sentence):
    """Training refuses one bad pair of several by name, or skips it; Check Pairs lists it."""
    with pytest.raises(ValueError, match=sentence) as error:
        usable_pairs(opened(place))
    assert "set bad_pairs to skip" in str(error.value)
    assert len(str(error.value)) < 600
    usable = usable_pairs(opened(place, bad_pairs="skip"))
    report = check_pairs(opened(place), "").text()
    assert sentence in report
    assert "1 with something to look at" in report
    assert report.replace("\n", "").isprintable()
    return [pair.caption for pair, _ in usable]


@pytest.mark.parametrize(("data", "sentence"), BAD_CAPTIONS.values(), ids=BAD_CAPTIONS)
def test_a_caption_in_another_encoding_is_that_pairs_alone(place, data, sentence):
    put(place / "target" / "001.txt", data)
    assert refused_and_skipped(place, sentence) == ["number 0", "number 2"]


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16", "utf-32"])
def test_captions_and_rows_with_a_mark_are_read(place, codec):
    put(place / "target" / "001.txt", "eine Größe\r\n".encode(codec))
    assert opened(place).pairs[1].caption == "eine Größe"
    put(place / "metadata.jsonl", (GOOD + row(prompt="grün")).encode(codec))
    assert [pair.caption for pair in opened(place).pairs] == ["good", "grün"]
    put(place / "metadata.jsonl", json.dumps(list(map(json.loads, (GOOD, row(prompt="rot"))))).encode(codec))
    assert [pair.caption for pair in opened(place).pairs] == ["good", "rot"]


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r"])
def test_rows_end_with_a_newline_alone(place, sign):
    put(place / "metadata.jsonl", GOOD + json.dumps({**json.loads(row()), "prompt": f"a{sign}b"}, ensure_ascii=False) + "\r\n")
    put(place / "metadata.jsonl", (place / "metadata.jsonl").read_text().replace(json.dumps(sign)[1:-1], sign))
    assert [pair.caption for pair in opened(place).pairs] == ["good", "a b"]


BAD_ROWS = {
    "list": (row(text=["a", "b"]), "is a list and must be a text"),
    "number": (row(text=5), "is a number and must be a text"),
    "zero": (row(caption=0), "is a number and must be a text"),
    "object": (row(prompt={"en": "a"}), "is an object and must be a text"),
    "null": (row(prompt=None), "is null and must be a text"),
    "bool": (row(prompt=False), "is true or false and must be a text"),
    "half a sign": (row(prompt="\ud800"), "has half a sign in it"),
    "long": (row(prompt="a" * 70_000), "has 70000 signs"),
    "no JSON": ("{", "Row 2 of 'metadata.jsonl' cannot be read"),
    "two": (row() + row(), "Row 2 of 'metadata.jsonl' cannot be read"),
    "deep": ("[" * 200_000, "Row 2 of 'metadata.jsonl' cannot be read"),
    "huge number": ('{"target": ' + "9" * 5000 + "}", "Row 2 of 'metadata.jsonl' cannot be read"),
    "long row": ('{"x": "' + "y" * (1 << 20) + '"}', "it has more than 1048576 signs"),
    "list as row": ("[1]", "Row 2 of 'metadata.jsonl' is no JSON object"),
    "number as row": ("NaN", "Row 2 of 'metadata.jsonl' is no JSON object"),
    "number as name": (row(target=5), "Row 2 of 'metadata.jsonl' has none of target"),
    "list as name": (row(source=["a.png"]), "Row 2 of 'metadata.jsonl' has none of source"),
    "empty name": (row(target="./"), "Row 2 of 'metadata.jsonl' has none of target"),
    "up": (row(target="../secret/target/000.png"), "leads out of the folder"),
    "up inside": (row(target="target/../../../secret/target/000.png"), "leads out of the folder"),
    "absolute": (row(target="/etc/passwd"), "leads out of the folder"),
    "drive": (row(target="C:\\secret.png"), "leads out of the folder"),
    "drive inside": (row(target="target/C:/secret.png"), "leads out of the folder"),
    "share": (row(target="\\\\server\\share\\a.png"), "leads out of the folder"),
    "device": (row(target="\\\\?\\C:\\a.png"), "leads out of the folder"),
    "stream": (row(target="target/001.png:secret"), "leads out of the folder"),
    "shown": (row(target="/\u202e\n" + "x" * 9000), "leads out of the folder"),
}


@pytest.mark.parametrize(("line", "sentence"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_that_pairs_alone(place, line, sentence):
    last = row("target/002.png", "source/002.png", prompt="last")
    put(place / "metadata.jsonl", f"{GOOD}{line}\n{last}\n")
    assert refused_and_skipped(place, sentence) == ["good", "last"]


NO_PAIRS = {
    "gone": "target/gone.png", "half a sign": "target/\ud800.png", "long": "target/" + "a" * 300 + ".png",
    "very long": "a/" * 5000 + "x.png", "null sign": "target/\0.png", "below a file": "target/001.png/x.png",
    "right to left": "\u202eleft.png", "folder": Path.mkdir, "pipe": os.mkfifo, "a folder itself": "target",
    "circle": lambda path: path.symlink_to("odd.png"), "nowhere": lambda path: path.symlink_to("nothing.png"),
}  # fmt: skip


@pytest.mark.parametrize("make", NO_PAIRS.values(), ids=NO_PAIRS)
def test_a_row_without_a_file_is_an_orphan(place, make):
    if not isinstance(make, str):
        make(place / "target" / "odd.png")
    put(place / "metadata.jsonl", f"{GOOD}{row(make if isinstance(make, str) else 'target/odd.png')}\n")
    dataset = opened(place)
    assert ([pair.caption for pair in dataset.pairs], dataset.problems) == (["good"], ())
    (orphan,) = dataset.orphans
    assert "metadata.jsonl, row 2" in orphan
    assert orphan.isprintable()
    assert len(orphan) < 300


WHOLE = {
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "circle": lambda path: path.symlink_to(path.name),
    "nowhere": lambda path: path.symlink_to("nothing.json"),
    "out": lambda path: path.symlink_to("../../secret/rows.jsonl"),
    "list": lambda path: put(path, "[{]"),
    "deep": lambda path: put(path, "[" * 1000),
    "long list": lambda path: put(path, "[" + "[]," * 700),
    "lines": lambda path: put(path, "\n" * 2001),
    "encoding": lambda path: put(path, '{"prompt": "白色的狗"}'.encode("gbk")),
}


@pytest.mark.parametrize("name", ["metadata.jsonl", "prompt.json"])
@pytest.mark.parametrize("make", WHOLE.values(), ids=WHOLE)
def test_a_file_of_rows_that_is_none_is_one_sentence(place, name, make, monkeypatch):
    monkeypatch.setattr(pair_rows, "MOST_ROWS", 2000)
    monkeypatch.setattr(pair_rows, "LARGEST_LIST", 2000)
    put(place.parents[1] / "secret" / "rows.jsonl", GOOD)
    make(place / name)
    assert is_folder_of_pairs(place)
    with pytest.raises(
        ValueError,
        match=f"'{name}' (leads out|is not a regular|is no JSON|cannot be|is not UTF-8|is one list of|has more than)",
    ) as error:
        find_pairs(place, [place.parent])
    assert len(str(error.value)) < 400


def test_the_same_name_composed_in_two_ways_is_one(place):
    for composed, decomposed in DECOMPOSED.items():
        for number, names in enumerate(((composed, decomposed), (decomposed, composed))):
            for side, name in zip(("source", "target"), names, strict=True):
                (place / side / f"{number}").mkdir(exist_ok=True)
                Image.new("RGB", (64, 64)).save(place / side / f"{number}" / f"{name}.png")
            put(place / "target" / f"{number}" / f"{names[0]}.txt", f"caption of {number}")
    dataset = opened(place)
    assert dataset.orphans == ()
    captions = sorted(pair.caption for pair in dataset.pairs if "/0" not in pair.name or "/0/" in pair.name)
    assert captions == ["caption of 0"] * 3 + ["caption of 1"] * 3
    rows = "".join(row(f"target/{n}/{name}.png", f"source/{n}/{name}.png") + "\n" for n in (0, 1) for name in DECOMPOSED)
    put(place / "metadata.jsonl", rows)
    assert len(opened(place).pairs) == len(DECOMPOSED) * 2
    assert opened(place).orphans == ()


def test_what_is_the_same_goes_before_what_looks_the_same(place):
    for side in ("source", "target"):
        for name in ("é", DECOMPOSED["é"]):
            Image.new("RGB", (64, 64)).save(place / side / f"{name}.png")
    (place / "target" / "e\u0301\u0323.png").touch()
    pairs = [pair for pair in opened(place).pairs if pair.target.stem not in {"000", "001", "002"}]
    assert all(pair.target.name == pair.hint.name for pair in pairs)
    assert len(pairs) == 2


ODD_FILES = {
    "source/a.psd": (lambda path: path.touch(), ".psd files are not read"),
    "target/a.svg": (lambda path: path.touch(), ".svg files are not read"),
    "target/001.jpg": (lambda path: path.touch(), "has the same name"),
    "target/loop.png": (lambda path: path.symlink_to("loop.png"), "a link in a circle|symbolic links"),
    "target/gone.png": (lambda path: path.symlink_to("gone"), "there is no such file"),
    "source/pipe.png": (os.mkfifo, "not a regular file"),
    "target/linked": (lambda path: path.symlink_to("../source"), "a link to a folder"),
    "target/up": (lambda path: path.symlink_to("../../../.."), "a link to a folder"),
    "target/\udcff.png": (lambda path: path.touch(), "its name is not UTF-8"),
    "target/lone\u202e\u2028.png": (lambda path: path.touch(), "lone"),
}


@pytest.mark.parametrize("name", ODD_FILES)
def test_what_is_no_picture_of_a_pair_is_listed_with_its_reason(place, name):
    make, reason = ODD_FILES[name]
    make(place / name)
    dataset = opened(place)
    assert len(dataset.pairs) == 3
    (orphan,) = dataset.orphans
    assert any(part in orphan for part in reason.split("|"))
    assert orphan.isprintable()


def test_other_formats_are_pairs_and_hidden_files_are_nothing(place):
    for side in ("source", "target"):
        for name in ("a.gif", "b.JFIF", "c.PNG"):
            Image.new("RGB", (64, 64)).save(place / side / name, {"a": "GIF", "b": "JPEG", "c": "PNG"}[name[0]])
        (place / side / "._c.png").touch()
        (place / side / ".hidden").mkdir()
        (place / side / ".hidden" / "x.png").touch()
    assert len(usable_pairs(opened(place))) == 6
    assert opened(place).orphans == ()


def test_a_folder_deeper_than_the_system_names_is_listed(place):
    here = os.open(place / "target", os.O_RDONLY)
    deep = "deep" * 50
    for _ in range(25):
        os.mkdir(deep, dir_fd=here)
        below = os.open(deep, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    dataset = opened(place)
    (orphan,) = dataset.orphans
    assert "the folder cannot be read" in orphan
    assert len(dataset.pairs) == 3
    assert folder_stamp(place, [place.parent], ".nextcontrol")


@pytest.mark.parametrize("name", ["target/001.png", "source/002.png", "source", "target"])
def test_pictures_that_lead_out_end_the_listing(place, name):
    if (place / name).is_dir():
        (place / name).rename(place / "old")
    else:
        (place / name).unlink()
    (place / name).symlink_to(place.parents[1] / "secret" / name.replace("002", "001"))
    with pytest.raises(LeadsOutError, match=f"'{name}.*' leads out of the folders"):
        opened(place)
    rows = "".join(row(f"target/00{n}.png", f"source/00{n}.png") + "\n" for n in range(3))
    put(place / "metadata.jsonl", rows)
    with pytest.raises(LeadsOutError, match=f"'{name}.*' leads out of the folders"):
        opened(place)


def test_a_folder_that_leads_out_is_not_looked_into(place):
    (place / "source").rename(place / "old")
    (place.parents[1] / "secret" / "psd").mkdir()
    (place.parents[1] / "secret" / "psd" / "secret.psd").touch()
    (place / "source").symlink_to("../../secret/psd")
    with pytest.raises(LeadsOutError, match="'source' leads out"):
        opened(place)


def test_a_caption_that_leads_out_is_not_read(place):
    (place / "target" / "001.txt").unlink()
    (place / "target" / "001.txt").symlink_to("../../../secret/secret.txt")
    assert refused_and_skipped(place, "leads out of the folders") == ["number 0", "number 2"]
    assert "secret words" not in str(opened(place).pairs)


def test_links_that_stay_inside_share_pictures(place):
    other = place.with_name("other")
    for side in ("source", "target"):
        (other / side).mkdir(parents=True)
        for number in range(2):
            (other / side / f"x{number}.png").symlink_to(f"../../set/{side}/00{number}.png")
    (other / "target" / "x1.txt").symlink_to("../../set/target/001.txt")
    dataset = opened(other)
    assert [(pair.name, pair.caption) for pair in dataset.pairs] == [("target/x0.png", ""), ("target/x1.png", "number 1")]
    assert [pair.target for pair in dataset.pairs] == [(place / "target" / f"00{n}.png").resolve() for n in range(2)]
    assert len(usable_pairs(dataset)) == 2


def test_a_link_that_takes_a_pictures_place_is_not_followed(place):
    pair = opened(place).pairs[0]
    pair.target.unlink()
    pair.target.symlink_to(place.parents[1] / "secret" / "target" / "000.png")
    with pytest.raises(ValueError, match="has become a link"):
        file_digest(pair.target)
    with pytest.raises(UnreadablePictureError, match="has become a link"):
        read_picture(pair.target, pair.name)


@pytest.mark.parametrize(
    "change", [Path.unlink, lambda path: path.unlink() or path.symlink_to("../../../secret/target/000.png")]
)
@pytest.mark.parametrize("side", ["source", "target"])
def test_a_picture_that_vanishes_between_looking_and_encoding_is_one_pair(place, side, change, monkeypatch):
    def encode(**settings):
        return encode_dataset(opened(place, **settings), Encoders(), Encoders(), TensorCache(place / ".nextcontrol"), 1.0)

    def look(dataset):
        usable = usable_pairs(dataset)
        if (place / side / "001.png").is_file():
            change(place / side / "001.png")
        return usable

    monkeypatch.setattr("nextcontrol.training.encode.usable_pairs", look)
    backup = (place / side / "001.png").read_bytes()
    with pytest.raises(ValueError, match=r"'001\.png' cannot be opened"):
        encode()
    (place / side / "001.png").unlink(missing_ok=True)
    put(place / side / "001.png", backup)
    assert [item.name for item in encode(bad_pairs="skip").items] == ["target/000.png", "target/002.png"]


def test_a_stamp_follows_nothing_out_and_sees_every_change(place):
    def stamp():
        return folder_stamp(place, [place.parent], ".nextcontrol")

    (place / "out.png").symlink_to("../../secret/target/000.png")
    (place / "round").symlink_to(".")
    (place / "outside").symlink_to("../../secret")
    (place / "inside.png").symlink_to("../beside.png")
    (place / ".nextcontrol").mkdir()
    put(place.parent / "beside.png", "1")
    before = stamp()
    put(place / ".nextcontrol" / "x", "1")
    put(place.parents[1] / "secret" / "target" / "000.png", "1")
    assert stamp() == before
    for path in (place.parent / "beside.png", place / "target" / "000.txt", place / "new.txt"):
        put(path, "22")
        before, old = stamp(), before
        assert before != old


def test_a_stamp_of_a_huge_folder_ends(place, monkeypatch):
    from nextcontrol.training import folder_stamp as module

    monkeypatch.setattr(module, "LISTED", 4)
    assert folder_stamp(place, [], ".nextcontrol") != folder_stamp(place, [], ".nextcontrol")
    monkeypatch.setattr(module, "LISTED", 100)
    monkeypatch.setattr(module, "LOOKED_AT", 1)
    assert folder_stamp(place, [], ".nextcontrol") == folder_stamp(place, [], ".nextcontrol")


def test_a_report_of_many_problems_has_short_lines(place):
    lines = [GOOD.strip(), *(row(prompt=["x"]), "{") * 500]
    put(place / "metadata.jsonl", "\n".join(lines))
    report = check_pairs(opened(place), "").text()
    assert "caption that cannot be read (500): " in report
    assert "row that cannot be read (500): " in report
    assert max(map(len, report.split("\n"))) < 1700


def test_names_in_messages_are_short_and_printable(place):
    Image.new("RGB", (64, 32)).save(place / "source" / "000.png")
    for side in ("source", "target"):
        name = f"\u202e{'x' * 180}\u2028.png"
        (place / side / "000.png").rename(place / side / name)
    with pytest.raises(ValueError, match="make both of one shape") as error:
        usable_pairs(opened(place))
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 300
