"""Names of made pairs: one for each picture, never changed by pictures that come later, and none that another one's file takes.

A file system may take `A` and `a`, or the two ways to write `é`, for one name; every folder of pairs is safe on all of them.
"""

from __future__ import annotations

import hashlib
import itertools
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import PurePosixPath

ENDING = ".png"
LONGEST = 255
"""Bytes of a file's name that every usual file system takes."""


def name_pairs(pictures: Sequence[str], recorded: Mapping[str, str], others: Collection[str]) -> dict[str, str]:
    """Give each picture a name for its pair.

    Args:
        pictures: Paths in their folder with forward slashes, in order.
        recorded: Names that earlier runs gave, by picture; these stay.
        others: Names of pairs that are there, whose pictures nobody wrote down.

    Returns:
        A name for each, its path without extension where that is free: with the extension, or a number made of the path, where
        it is not.
    """
    plain = {picture: _without_ending(picture) for picture in pictures}
    names = {picture: recorded[picture] for picture in pictures if picture in recorded}
    names |= _of_others(plain, names, others)
    counts = Counter(_key(stem) for stem in plain.values())
    folders = {_key(str(parent)) for picture in pictures for parent in PurePosixPath(picture).parents}
    taken = {_key(name) for name in (*recorded.values(), *others)}
    for picture, stem in plain.items():
        if picture not in names:
            choices = _choices(picture, stem.replace("\\", "_"), counts[_key(stem)] == 1)
            names[picture] = next(name for name in choices if _is_free(name, taken, folders))
            taken.add(_key(names[picture]))
    return names


def _of_others(plain: Mapping[str, str], names: Mapping[str, str], others: Collection[str]) -> dict[str, str]:
    """Return the names that pictures had before names were recorded, as far as such pairs are there."""
    counts, left, found = Counter(plain.values()), set(others), {}
    for picture, stem in plain.items():
        name = stem if counts[stem] == 1 else _with_extension(picture, stem)
        if picture not in names and name in left:
            found[picture] = name
            left.discard(name)
    return found


def _choices(picture: str, stem: str, is_alone: bool) -> Iterator[str]:
    if is_alone:
        yield stem
    yield _with_extension(picture, stem)
    folder, slash, last = stem.rpartition("/")
    for attempt in itertools.count():
        number = hashlib.sha256(f"{picture}\n{attempt}".encode()).hexdigest()[:8]
        room = LONGEST - len(f"_{number}{ENDING}")
        yield f"{folder}{slash}{last.encode()[:room].decode(errors='ignore')}_{number}"


def _is_free(name: str, taken: Collection[str], folders: Collection[str]) -> bool:
    file = name + ENDING
    return _key(name) not in taken and _key(file) not in folders and len(file.rpartition("/")[2].encode()) <= LONGEST


def _without_ending(picture: str) -> str:
    return PurePosixPath(picture).with_suffix("").as_posix()


def _with_extension(picture: str, stem: str) -> str:
    return f"{stem}_{PurePosixPath(picture).suffix[1:].lower()}"


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
