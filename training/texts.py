"""Texts that people bring: captions, rows of a dataset, configurations. UTF-8, or a Unicode form that says so by its mark.

What is in another encoding is refused in a sentence that names it: a text that is read wrongly trains without a word.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ..models.foreign import first_line, parse_json, read_small, shown
from .encodings import guess_encoding, seven_bit_form, unmarked_form

LONGEST_CAPTION = 64 << 10
"""Bytes of a caption's file, and signs of a caption: a thousand times what a text encoder reads."""
LARGEST_ROWS = 256 << 20
"""Bytes of a file with a row for each pair."""
LONGEST_ROW = 1 << 20
"""Signs of one row, whose JSON takes many times the memory."""
CAPTION_KEYS = ("prompt", "text", "caption")
MARK = "\ufeff"
_MARKS = (  # the longer first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32-le", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32-be", "UTF-32"),
    (codecs.BOM_UTF8, "utf-8", "UTF-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16"),
    (b"\x84\x31\x95\x33", "gb18030", "GB18030"),
)
_SAVE = "save it as UTF-8 in a text editor"


class UnreadableTextError(ValueError):
    """A text is in an encoding that cannot be told for sure, damaged, too long, or no text. The message is a sentence."""


def read_text(source: Path | BinaryIO, name: str, largest: int = LONGEST_CAPTION) -> str:
    """Read a text file.

    Args:
        source: An open file, or the path of one, whose links are followed; files of a dataset are opened by `inside.open_real`.
        name: As the user knows it, for the error.
        largest: Bytes.

    Returns:
        The text, without a byte order mark, its line ends as they are.

    Raises:
        FileNotFoundError: It is not there.
        UnreadableTextError: It may not be read, is larger or no regular file, or see `decode`.
    """
    try:
        data = read_small(source, largest) if isinstance(source, Path) else source.read(largest + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UnreadableTextError(f"'{shown(name)}' cannot be read ({shown(reason)}): replace it.") from error
    if len(data) > largest:
        raise UnreadableTextError(f"'{shown(name)}' has more than {largest} bytes: shorten it, or see what it is.")
    return decode(data, name)


def decode(data: bytes, name: str) -> str:
    """Return the text that some bytes are, without a byte order mark.

    Args:
        data: UTF-8, or UTF-16, UTF-32 or GB18030 with their mark.
        name: Of the file, for the error.

    Raises:
        UnreadableTextError: They are something else; the message says what they look like.
    """
    mark, codec, form = next((known for known in _MARKS if data.startswith(known[0])), (b"", "utf-8", "UTF-8"))
    try:
        text = data[len(mark) :].decode(codec)
    except UnicodeDecodeError as error:
        if mark:
            place = error.start + len(mark)
            message = f"'{shown(name)}' has the mark of {form} and is damaged at byte {place}: {_SAVE}, or replace it."
        elif likely := guess_encoding(data):
            message = f"'{shown(name)}' is not UTF-8 and looks like {likely}: {_SAVE}."
        else:
            message = f"'{shown(name)}' is no text in UTF-8 (byte {error.start}): {_SAVE}, or replace it."
        raise UnreadableTextError(message) from error
    if likely := seven_bit_form(text):
        raise UnreadableTextError(f"'{shown(name)}' is not UTF-8 and looks like {likely}: {_SAVE}.")
    if "\0" in text:
        likely = unmarked_form(data)
        what = f"looks like {likely} without its mark" if likely else "has zero bytes in it, which no text has"
        raise UnreadableTextError(f"'{shown(name)}' {what}: {_SAVE}, or replace it.")
    return text


def caption_of(value: object, name: str) -> str:
    """Return a caption on one line.

    Args:
        value: As it was found.
        name: Whose it is, for the error.

    Raises:
        UnreadableTextError: It is no string, has halves of signs in it, or is far longer than a caption.
    """
    if not isinstance(value, str):
        kinds = {dict: "an object", list: "a list", bool: "true or false", type(None): "null"}
        kind = kinds.get(type(value), "a number")
        raise UnreadableTextError(f"The caption of '{shown(name)}' is {kind} and must be a text in quotes: write one, or \"\".")
    if len(value) > LONGEST_CAPTION:
        raise UnreadableTextError(
            f"The caption of '{shown(name)}' has {len(value)} signs, and {LONGEST_CAPTION} are the most: shorten it."
        )
    if half := re.search(r"[\ud800-\udfff]", value):
        raise UnreadableTextError(
            f"The caption of '{shown(name)}' has half a sign in it (\\u{ord(half[0]):04x}): write the sign itself."
        )
    return " ".join(value.replace(MARK, "").split())


def caption_in(row: Mapping[str, Any], name: str) -> str:
    """Return the caption of a row: the first of `CAPTION_KEYS` that is not empty; errors as in `caption_of`."""
    return next(filter(None, (caption_of(row[key], name) for key in CAPTION_KEYS if key in row)), "")


def parse_text(text: str, name: str) -> Any:
    """Return what a JSON text holds; control characters in strings are let through, as captions from tables have them.

    Raises:
        UnreadableTextError: It is not JSON, or nested too deeply.
    """
    try:
        return parse_json(text.lstrip(MARK), strict=False)
    except ValueError as error:
        raise UnreadableTextError(f"'{shown(name)}' is no JSON ({error}): mend it in a text editor, or replace it.") from error


def json_lines(text: str, name: str) -> Iterator[tuple[int, Any | UnreadableTextError]]:
    """Go through JSON Lines, which end with a newline and nothing else.

    Args:
        text: As `read_text` returns it. Empty lines are left out.
        name: Of the file, for the errors.

    Yields:
        The number of the line, from 1, with what it holds; an error, not raised, in the place of a line that is no JSON.
    """
    for number, line in enumerate(_lines(text), 1):
        if not (line := line.strip(f" \t\r{MARK}")):
            continue
        try:
            found = _parse_row(line)
        except ValueError as error:
            found = UnreadableTextError(
                f"Row {number} of '{shown(name)}' cannot be read ({error}): write one JSON object a line."
            )
        yield number, found


def _parse_row(line: str) -> Any:
    if len(line) > LONGEST_ROW:
        raise ValueError(f"it has more than {LONGEST_ROW} signs")
    return parse_json(line, strict=False)


def _lines(text: str) -> Iterator[str]:
    """One at a time: a file may hold more lines than memory has room for."""
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start:end]
        start = end + 1
    yield text[start:]
