"""The members of a tar file, read from front to back, with bounds on everything that a header can ask for.

The standard library's reader follows what headers say (a name of a gigabyte, a sparse file of a terabyte, extensions of
extensions until Python's stack ends); a sample needs plain files with names alone.

Source: POSIX.1-2017 pax "ustar Interchange Format"; GNU tar manual "Basic Tar Format".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase

BLOCK = 512
LONGEST_NAME = 4096
"""Bytes of a member's name."""
LARGEST_EXTENSION = 1 << 16
"""Bytes of a header's extension."""
MOST_OTHERS = 10_000
"""Headers in a row that are folders, or describe what follows."""
LONGEST_END = 1 << 24
"""Bytes that may follow the end mark; GNU tar fills up to the size of a tape's record."""
_KINDS = {b"1": "a link", b"2": "a link", b"3": "a device", b"4": "a device", b"6": "a pipe", b"S": "a sparse file"}
_FILES = frozenset((b"0", b"\0", b"7"))
_SUM = slice(148, 156)
"""Of a header: the sum of its bytes, counted as if these were blanks."""
_EMPTY = frozenset((b"1", b"2", b"3", b"4", b"5", b"6"))
"""Have no content, whatever their size says."""
_BETWEEN = frozenset((b"g", b"K"))
"""May stand between a name's extension and its member."""


class TarError(ValueError):
    """The file is no tar file, or damaged. The message is a short reason."""


@dataclass(frozen=True)
class Member:
    """A file in a tar file."""

    name: bytes
    """Path, as it is written there."""
    size: int
    """Bytes."""
    problem: str = ""
    """Why it cannot be used, as the end of "it is ..."; empty if it can."""


class TarReader:
    """Reads the members of a tar file one after the other.

    Args:
        stream: At the file's start; can seek.
        size: Of the whole file, in bytes.
    """

    def __init__(self, stream: BufferedIOBase, size: int) -> None:
        self._stream = stream
        self._size = size
        self._at = 0
        """Byte in the file."""
        self._left = 0
        """Bytes of the current member that have not been read."""
        self._next = 0
        """Byte at which the next header lies."""

    def __iter__(self) -> Iterator[Member]:
        """Go through the members; what a member holds can be read until the next one.

        Yields:
            Files, links, devices and pipes.

        Raises:
            TarError: See there.
            OSError: The disk has failed.
        """
        name, size, problem = b"", None, ""
        others = 0
        while (header := self._header()) is not None:
            others += 1
            if others > MOST_OTHERS:
                raise TarError(f"it has {others} headers in a row without a file")
            kind, stored = header[156:157], _number(header[124:136])
            if kind in (b"x", b"L"):
                self._start(stored)
                if stored > LARGEST_EXTENSION and kind == b"L":
                    raise TarError(f"a name in it has {stored} bytes")
                if stored > LARGEST_EXTENSION:
                    problem = f"described by a header of {stored} bytes"
                elif kind == b"L":
                    name = self.read().partition(b"\0")[0]
                else:
                    name, size, problem = _extended(self.read(), name, size, problem)
                continue
            if kind == b"S":
                self._pass_sparse_map(header)
            self._start(0 if kind in _EMPTY else stored if size is None else size)
            own = name or _own_name(header)
            if kind in _KINDS or (kind in _FILES and not own.endswith(b"/")):
                others = 0
                yield Member(own, self._left, problem or _KINDS.get(kind, "") or _problem_of(own))
            if kind not in _BETWEEN:
                name, size, problem = b"", None, ""

    def read(self) -> bytes:
        """Return what the current member holds."""
        data = self._exactly(self._left)
        self._left = 0
        return data

    def _start(self, size: int) -> None:
        if size > self._size - self._at:
            raise TarError("it is cut off")
        self._left, self._next = size, self._at + size + -size % BLOCK

    def _header(self) -> bytes | None:
        """The next header, or None at the end."""
        at = self._next
        if at != self._at:
            self._stream.seek(at - self._at, os.SEEK_CUR)
            self._at = at
        header = self._exactly(BLOCK)
        if not any(header):
            self._check_end()
            return None
        if sum(header) - sum(header[_SUM]) + 8 * ord(" ") != _number(header[_SUM]):
            raise TarError(f"the header at byte {at} is damaged")
        return header

    def _check_end(self) -> None:
        rest = self._size - self._at
        if rest > LONGEST_END or any(self._stream.read(rest)):
            raise TarError("it goes on after its end mark")

    def _pass_sparse_map(self, header: bytes) -> None:
        goes_on = header[482]
        while goes_on:
            goes_on = self._exactly(BLOCK)[504]

    def _exactly(self, count: int) -> bytes:
        data = self._stream.read(count)
        if len(data) < count:
            raise TarError("it is cut off")
        self._at += count
        self._next = max(self._next, self._at)
        return data


def _number(field: bytes) -> int:
    """A number of a header: octal digits, or 256-based where it is large."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip()
    if digits.strip(b"01234567"):
        raise TarError("a header has a number that is none")
    return int(digits or b"0", 8)


def _own_name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _extended(data: bytes, name: bytes, size: int | None, problem: str) -> tuple[bytes, int | None, str]:
    """What records of "LENGTH KEY=VALUE" say about the next member."""
    while data:
        length, _, _ = data.partition(b" ")
        end = int(length) if length.isdigit() and len(length) < 8 else 0
        key, is_record, value = data[len(length) + 1 : end - 1].partition(b"=")
        if not is_record or end > len(data):
            raise TarError("an extended header is damaged")
        if key == b"path":
            name = value
        elif key == b"size":
            if not value.isdigit() or len(value) > 20:
                raise TarError("an extended header has a size that is none")
            size = int(value)
        elif key.startswith(b"GNU.sparse."):
            problem = _KINDS[b"S"]
        data = data[end:]
    return name, size, problem


def _problem_of(name: bytes) -> str:
    if len(name) > LONGEST_NAME:
        return f"of a name of {len(name)} bytes"
    if name.startswith(b"/") or b".." in name.replace(b"\\", b"/").split(b"/"):
        return "named as a file outside of the shard"
    return ""
