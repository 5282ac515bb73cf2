"""What strangers wrote: shown in a sentence so that it stays one, and read from small files so that reading ends."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SHOWN = 100
"""Characters of one foreign text in a message; three of them are the most that a sentence holds."""
NAMED = 3
"""How many names a sentence lists."""
LISTED = 200
"""Characters of the names in a list, so that a sentence has room for the file's own name beside them."""
SMALL_FILE = 1 << 20
"""Bytes of the largest description, configuration or index that is read."""


def shown(text: object, longest: int = SHOWN) -> str:
    """Return a foreign text as it may stand in a message: one line, printable, short.

    Args:
        text: A key, a name or a value from a file or a request; anything else is converted to a string first.
        longest: Characters; a longer text loses its middle, since both ends of a path or key tell something.

    Returns:
        The text with '?' for every sign that cannot be printed: control characters, line breaks, halves of surrogate pairs,
        marks that change the direction of writing.
    """
    try:
        whole = text if isinstance(text, str) else str(text)
    except (ValueError, RuntimeError):  # a number of too many digits, a list of too many levels
        whole = type(text).__name__
    if len(whole) > longest:
        half = (longest - 1) // 2
        whole = f"{whole[:half]}…{whole[-half:]}"
    return "".join(sign if sign.isprintable() else "?" for sign in whole)


def some(names: Iterable[object]) -> str:
    """Return the first few of some foreign names, quoted, and how many there are beside them: fewer where they are long."""
    listed = list(names)
    first = [shown(name) for name in listed[:NAMED]]
    while sum(map(len, first)) > LISTED:
        first.pop()
    more = f" and {len(listed) - len(first)} more" if len(listed) > len(first) else ""
    return ", ".join(f"'{name}'" for name in first) + more


def first_line(error: BaseException, longest: int = SHOWN) -> str:
    """Return the reason that an exception gives, or its type where it gives none, as `shown` has it."""
    lines = str(error).strip().splitlines()
    return shown(lines[0] if lines else type(error).__name__, longest)


def parse_json(text: str | bytes, **options: Any) -> Any:
    """Parse JSON of a stranger's.

    Args:
        text: Bytes are UTF-8, with or without a byte order mark.
        options: For `json.loads`.

    Returns:
        What it holds.

    Raises:
        ValueError: It is not JSON, not UTF-8, or nested more deeply than Python can follow. The message is a short reason and
            no sentence: the caller knows whose text it is.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        return json.loads(text, **options)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from error
    except ValueError as error:
        raise ValueError(first_line(error)) from error


def read_small(path: Path, largest: int = SMALL_FILE) -> bytes:
    """Read a file that can only be small, however large or odd what lies there is.

    Args:
        path: Links are followed.
        largest: Bytes.

    Returns:
        Its content.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is larger, or not a regular file (a folder, pipe or device). A short reason, as in `parse_json`.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is not a regular file")
    # A pipe that takes the file's place meanwhile must not make the opening wait.
    with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)), "rb") as stream:
        data = stream.read(largest + 1)
    if len(data) > largest:
        raise ValueError(f"it has more than {largest} bytes")
    return data


def read_small_json(path: Path, largest: int = SMALL_FILE) -> Any:
    """Read a small JSON file; errors as `read_small` and `parse_json` have them."""
    return parse_json(read_small(path, largest))
