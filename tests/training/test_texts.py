"""Texts that people bring: read for what they are, or refused with the name of what they look like."""

from __future__ import annotations

import io
import json

import pytest
from nextcontrol.training.texts import (
    LONGEST_CAPTION,
    UnreadableTextError,
    caption_in,
    caption_of,
    decode,
    json_lines,
    read_text,
)

TEXT = "a cat, 猫, café 🐈"


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_unicode_is_read_in_every_form_with_its_mark(codec, tmp_path):
    assert decode(TEXT.encode(codec), "a.txt") == TEXT
    (tmp_path / "a.txt").write_bytes(TEXT.encode(codec))
    assert read_text(tmp_path / "a.txt", "a.txt") == read_text((tmp_path / "a.txt").open("rb"), "a.txt") == TEXT
    for order in ("le", "be"):
        if codec in {"utf-16", "utf-32"}:
            assert decode("\ufeffx".encode(f"{codec}-{order}"), "a.txt") == "x"


@pytest.mark.parametrize(
    ("codec", "text", "likely"),
    [
        ("cp1252", "café au lait", "cp1252"),
        ("cp1252", "a dog’s ball", "cp1252"),
        ("cp1252", "Größe, Straße, schöne Mädchen", "cp1252"),
        ("cp1250", "příliš žluťoučký kůň", "cp1250"),
        ("cp1251", "красивый кот сидит на окне", "cp1251"),
        ("koi8-r", "красивый кот сидит на окне", "KOI8-R"),
        ("cp1253", "μια γάτα στο παράθυρο", "cp1253"),
        ("gbk", "一只红色的猫", "GBK"),
        ("gbk", "窗户上的猫，高清", "GBK"),
        ("cp950", "窗戶上的貓，高清", "Big5"),
        ("cp932", "窓の上の猫", "Shift-JIS"),
        ("euc_jp", "窓の上の猫", "EUC-JP"),
        ("cp949", "창문에 있는 고양이", "EUC-KR"),
        ("iso2022_jp", "窓の上の猫", "ISO-2022-JP"),
        ("iso2022_kr", "고양이", "ISO-2022-KR"),
        ("hz", "一只红色的猫", "HZ (Chinese)"),
        ("utf-16-le", "a cat", "UTF-16 without its mark"),
        ("utf-16-be", "a cät", "UTF-16 without its mark"),
        ("utf-32-le", "a cat", "UTF-32 without its mark"),
    ],
)
def test_other_encodings_are_named_with_the_cure(codec, text, likely):
    for repeated in (1, 20000):
        with pytest.raises(UnreadableTextError) as error:
            decode((text + " ").encode(codec) * repeated, "sub/a.txt")
        assert all(part in str(error.value) for part in ("'sub/a.txt'", likely, "UTF-8 in a text editor"))


@pytest.mark.parametrize(
    "data", [b"\xff\xfea", b"\xff\xfe\x00\xd8", b"\x00\x00\xfe\xff\x00", b"a\0b", bytes(range(256)), b"\x80"]
)
def test_what_is_no_text_is_one_sentence(data):
    with pytest.raises(UnreadableTextError, match=r"^'a\.txt' .*UTF-8 in a text editor"):
        decode(data, "a.txt")


@pytest.mark.parametrize("text", ["a {b} ~ c", "~{a~}", "price: $B (x)", "a\x1b[31mb", "~{~}"])
def test_signs_of_ascii_are_text(text):
    assert decode(text.encode(), "a.txt") == text


def test_a_file_of_another_kind_is_one_sentence(tmp_path):
    (tmp_path / "large.txt").write_bytes(b"a" * (LONGEST_CAPTION + 1))
    for path, reason in ((tmp_path, "not a regular file"), (tmp_path / "large.txt", "more than 65536 bytes")):
        with pytest.raises(UnreadableTextError, match=reason):
            read_text(path, "a.txt")
    with pytest.raises(UnreadableTextError, match="more than 65536 bytes"):
        read_text(io.BytesIO(b"a" * (LONGEST_CAPTION + 1)), "a.txt")
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "none.txt", "none.txt")


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r", "\t"])
def test_lines_end_with_a_newline_alone(sign):
    text = f'\ufeff{{"text": "a{sign}b"}}\r\n\n \ufeff{{"text": "c"}}'
    assert [(number, caption_in(row, "x")) for number, row in json_lines(text, "m.jsonl")] == [(1, "a b"), (3, "c")]


def test_a_bad_line_stands_alone():
    found = dict(json_lines(f'{{"a": 1}}\n{{\n{"[" * 200000}\n{"9" * 5000}\n2', "m.jsonl"))
    assert (found[1], found[5]) == ({"a": 1}, 2)
    for number in (2, 3, 4):
        assert isinstance(found[number], UnreadableTextError)
        assert f"Row {number} of 'm.jsonl' cannot be read (" in str(found[number])


@pytest.mark.parametrize(
    "value", ["1", "0", "null", "true", "false", "[]", '["a", "b"]', "{}", "NaN", '"\\ud800"', '"x\\udc00y"']
)
def test_a_caption_is_a_text(value):
    with pytest.raises(UnreadableTextError, match=r"The caption of 'row 3' (is|has) .*: "):
        caption_of(json.loads(value), "row 3")
    with pytest.raises(UnreadableTextError):
        caption_in({"text": json.loads(value)}, "row 3")


def test_a_caption_is_one_short_line():
    assert caption_of("\ufeff a\n b\ufeff\u2028c\x1d ", "x") == "a b c"
    assert caption_in({"prompt": " ", "text": "b", "caption": "c"}, "x") == "b"
    assert not caption_in({"other": 1}, "x")
    assert caption_of(json.loads('"\\ud83d\\udc08"'), "x") == "🐈"
    with pytest.raises(UnreadableTextError, match="65537 signs"):
        caption_of("a" * (LONGEST_CAPTION + 1), "x")
