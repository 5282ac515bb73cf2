"""Tags of a TIFF or of the EXIF of other pictures, before the library reads them: all may point at the same bytes."""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Type of a tag to the bytes of one value."""
_POINTERS = frozenset({34665, 34853, 40965})
"""Tags that name a place with more tags: EXIF, GPS and interoperability."""
_BYTES = frozenset({1, 2, 6, 7})
"""Types that the library keeps as they are; each number of the others becomes an object."""
MOST_NUMBERS = 1 << 20
"""Numbers in one tag; a picture of the largest size in tiles of 16x16 pixels has a quarter of that."""
SLACK = 1 << 26
"""Bytes that the tags of a small file may claim; those of a large one twice what it holds."""
_DEPTH = 3


def check_tags(stream: BinaryIO) -> None:
    """Refuse tags that claim many times what the file holds.

    Args:
        stream: Of a TIFF, from its start; its position is changed. What is no TIFF is left to the library.

    Raises:
        ValueError: A short reason.
    """
    length = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    start = stream.read(16)
    order = {b"II": "<", b"MM": ">"}.get(start[:2])
    if order is None or len(start) < 8:
        return
    is_big = start[2:4] in {b"\x2b\0", b"\0\x2b"}
    if is_big and len(start) < 16:
        return
    (first,) = struct.unpack_from(order + "Q", start, 8) if is_big else struct.unpack_from(order + "L", start, 4)
    _Tags(stream, length, order, is_big).check(first, _DEPTH)


class _Tags:
    def __init__(self, stream: BinaryIO, length: int, order: str, is_big: bool) -> None:
        self.stream = stream
        self.length = length
        self.left = max(2 * length, SLACK)
        self.count, self.row, self.inline = (f"{order}Q", f"{order}HHQ", 8) if is_big else (f"{order}H", f"{order}HHL", 4)
        self.place = f"{order}{'Q' if is_big else 'L'}"

    def check(self, place: int, depth: int) -> None:
        """Check the tags at a place, and those that they point to."""
        if not 0 < place < self.length:
            return
        self.stream.seek(place)
        head = self.stream.read(struct.calcsize(self.count))
        if len(head) < struct.calcsize(self.count):
            return
        size = struct.calcsize(self.row)
        rows = self.stream.read(min(struct.unpack(self.count, head)[0] * (size + self.inline), self.length))
        for start in range(0, len(rows) - size - self.inline + 1, size + self.inline):
            tag, kind, count = struct.unpack_from(self.row, rows, start)
            claimed = count * _SIZES.get(kind, 0)
            if claimed > self.length:
                continue  # the library leaves it out as well
            self.left -= claimed if claimed > self.inline else 0
            if self.left < 0 or (kind not in _BYTES and count > MOST_NUMBERS):
                raise ValueError("its tags claim more than the file holds")
            if tag in _POINTERS and depth and kind in _SIZES and claimed <= self.inline:
                self.check(struct.unpack_from(self.place, rows, start + size)[0], depth - 1)
