"""What encoding a text looks like that is not UTF-8: an honest guess, for the sentence that refuses it."""

from __future__ import annotations

import codecs
import re
from functools import cache

_LOOKED_AT = 1 << 16
"""Bytes that an encoding is guessed from."""
_LIKELY = 0.6
"""Part of the foreign signs that have to be everyday ones of an encoding."""


def guess_encoding(data: bytes) -> str:
    """Return the name of an encoding that some bytes, which are not UTF-8, look like; empty if they look like none.

    The guess counts how many of the signs beyond ASCII would be everyday ones of a language.
    """
    part = data[:_LOOKED_AT]
    if likely := unmarked_form(part):
        return f"{likely} without its mark"
    if re.search(rb"[\0-\x08\x0e-\x1a]", part):
        return ""
    scores = {known[0]: _everyday(part, *known[1:], is_whole=len(data) <= _LOOKED_AT) for known in _known()}
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] >= _LIKELY else ""


def unmarked_form(data: bytes) -> str:
    """UTF-16 or UTF-32 by where the zero bytes are: Latin letters have them at every second byte, or three in four."""
    even, odd = data[::2].count(0), data[1::2].count(0)
    if even + odd > 0.6 * len(data):
        return "UTF-32"
    return "UTF-16" if min(even, odd) < 0.1 * max(even, odd) and even + odd > len(data) / 20 else ""


def seven_bit_form(text: str) -> str:
    """Encodings of Eastern Asia that have nothing but ASCII in them, told by the marks that begin and end foreign signs."""
    if found := re.search(r"\x1b(\$\)C|\$[@B]|\$\([@BD]|\$\)[AG])", text):
        return {"$)C": "ISO-2022-KR (Korean)", "$)A": "ISO-2022-CN (Chinese)", "$)G": "ISO-2022-CN (Chinese)"}.get(
            found[1], "ISO-2022-JP (Japanese)"
        )
    return "HZ (Chinese)" if re.search(r"~\{(?:[!-w][!-~])+~\}", text) else ""


def _everyday(data: bytes, codec: str, signs: frozenset[str], needed: frozenset[str], is_whole: bool) -> float:
    """The part of the signs beyond ASCII that are everyday ones; 0 where the bytes cannot be of the encoding."""
    try:
        text = codecs.getincrementaldecoder(codec)().decode(data, final=is_whole)
    except UnicodeDecodeError:
        return 0.0
    if needed and needed.isdisjoint(text):
        return 0.0
    foreign, is_latin = sum(sign > "\x7f" for sign in text), "é" in signs
    text = re.sub(r"[^\W\d_]+", lambda word: word[0] if _is_word(word[0], is_latin) else "", text)
    return sum(sign > "\x7f" and sign in signs for sign in text) / foreign


def _is_word(word: str, is_latin: bool) -> bool:
    """Whether letters beyond ASCII stand together as in a language: no capital behind a small one, and one script."""
    if word.isascii() or word.upper() == word.lower():  # writing without capitals
        return True
    if len(word) == 1:
        return True
    # Two Cyrillic encodings have capitals where the other has small letters.
    cases = {word.lower(), word.capitalize(), word.upper() if is_latin else ""}
    return word in cases and any(map(str.isascii, word)) == is_latin


@cache
def _known() -> tuple[tuple[str, str, frozenset[str], frozenset[str]], ...]:
    """Encodings with their everyday signs, and those that every text has one of; of two that fit alike the first is named."""
    quotes = "‘’“”–—…•€"
    kana = "".join(map(chr, [*range(0x3041, 0x3094), *range(0x30A1, 0x30F7), 0x30FC]))
    eastern = "、。，！？：；「」『』（）《》“”・…"
    return tuple(
        (name, codec, frozenset(signs), frozenset("".join(needed)))
        for name, codec, signs, *needed in (
            ("cp1252 (Western European)", "cp1252", "àáâãäåæçèéêëìíîïñòóôõöøùúûüýÿœšžßÀÁÂÄÅÇÈÉÊËÎÏÑÓÔÖØÙÚÛÜŒŠŽ¿¡«»°" + quotes),
            ("Shift-JIS (Japanese)", "cp932", kana + eastern + _rows("cp932", 0x88, 0x98, 0x40)),
            ("EUC-JP (Japanese)", "euc_jp", kana + eastern + _rows("euc_jp", 0xB0, 0xD0, 0xA1), kana),
            ("EUC-KR (Korean)", "cp949", _rows("cp949", 0xB0, 0xC9, 0xA1), "이가는은을를의에다고있지"),
            ("GBK (Chinese)", "gb18030", eastern + _rows("gbk", 0xB0, 0xD8, 0xA1)),
            ("Big5 (Chinese)", "cp950", eastern + _rows("cp950", 0xA4, 0xC7, 0x40)),
            ("cp1250 (Central European)", "cp1250", "éąćęłńóśźżáčďěíňřšťúůýžäöüőűăâîşţßĄĆĘŁŃÓŚŹŻÁČĎÉĚÍŇŘŠŤÚŮÝŽÄÖÜ" + quotes),
            ("cp1251 (Cyrillic)", "cp1251", _letters(0x410, 0x450) + "ёЁіїєґІЇЄ«»№" + quotes),
            ("KOI8-R (Cyrillic)", "koi8-r", _letters(0x410, 0x450) + "ёЁ"),
            ("cp1253 (Greek)", "cp1253", _letters(0x386, 0x3CF) + quotes),
            ("cp1256 (Arabic)", "cp1256", _letters(0x621, 0x653) + "،؛؟گچپژ" + quotes),
        )
    )


def _letters(first: int, behind: int) -> str:
    return "".join(map(chr, range(first, behind)))


def _rows(codec: str, first: int, behind: int, second: int) -> str:
    """The signs whose first byte is in a range, where standards put the frequent ones."""
    pairs = (bytes([lead, trail]) for lead in range(first, behind) for trail in range(second, 0xFF))
    return "".join(sign for pair in pairs if len(sign := pair.decode(codec, "ignore")) == 1)
