"""Foreign text in messages, and small files of strangers."""

from __future__ import annotations

import os

import pytest
from nextcontrol.models.foreign import NAMED, SHOWN, parse_json, read_small_json, shown, some

ODD = ["a\nb", "a\x00\x1b[31m", "half \ud800", "turned \u202e", "long " * 50_000, "one line\u2028two", {"a": [1]}, 10**5000]


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_a_foreign_text_is_one_short_printable_line(text):
    line = shown(text)
    assert line.isprintable()
    assert len(line) <= SHOWN
    line.encode()


def test_ordinary_names_are_shown_as_they_are():
    names = ["Führung_线.safetensors", "input_blocks.0.0.weight", "a b", "é"]
    assert [shown(name) for name in names] == names
    assert some(names) == "'Führung_线.safetensors', 'input_blocks.0.0.weight', 'a b' and 1 more"
    assert some(names[:NAMED]).count("'") == 2 * NAMED


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, b"\xff{}", "{", "1" * 5000, ""])
def test_what_is_not_json_is_one_reason(text):
    with pytest.raises(ValueError, match=r".") as caught:
        parse_json(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= SHOWN


def test_a_byte_order_mark_is_no_part_of_json():
    assert parse_json(b"\xef\xbb\xbf[1]") == [1]


def test_a_small_file_is_small_and_a_file(tmp_path):
    (tmp_path / "good.json").write_text('{"a": 1}', encoding="utf-8")
    with (tmp_path / "large.json").open("wb") as stream:
        stream.truncate(1 << 40)
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    assert read_small_json(tmp_path / "good.json") == {"a": 1}
    for name, reason in {
        "large": "more than 1048576 bytes",
        "pipe": "not a regular file",
        "folder": "not a regular file",
    }.items():
        with pytest.raises(ValueError, match=reason):
            read_small_json(tmp_path / f"{name}.json")
