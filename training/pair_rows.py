"""Pairs that a file lists, a row for each: JSON Lines, which CtrLoRA's prompt.json is too, or one JSON list."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ..models.foreign import shown
from .pair import Listing, Pair
from .places import GONE, Places, listed
from .texts import LARGEST_ROWS, UnreadableTextError, caption_in, json_lines, parse_text

ROW_FILES = ("metadata.jsonl", "prompt.json")
_HINT_KEYS = ("source", "hint", "conditioning_image", "conditioning_image_file_name", "hint_file_name")
_TARGET_KEYS = ("target", "file_name", "image")
MOST_ROWS = 2_000_000
LARGEST_LIST = 64 << 20
"""Signs of one JSON list, all of which is in memory at once."""
MOST_PROBLEMS = 1000
"""Rows that cannot be read, each with its sentence; of more there is the number."""


def find_rows(folder: Path) -> Path | None:
    """The first of the files with rows that is there, whatever it is."""
    return next((folder / name for name in ROW_FILES if os.path.lexists(folder / name)), None)


def from_rows(places: Places, rows: Path) -> Listing:
    """Look for the pairs that a file lists.

    Args:
        places: Of the dataset's folder.
        rows: The file.

    Returns:
        In the order of the rows.

    Raises:
        ValueError: The file as a whole cannot be read, or a row's picture is a link that leads out.
    """
    found = _Rows(places, rows.name)
    for number, row in _read_rows(places, rows):
        if isinstance(row, UnreadableTextError):
            found.add_problem(str(row))
        elif isinstance(row, Mapping):
            found.add(number, row)
        else:
            found.add_problem(f"Row {number} of '{rows.name}' is no JSON object: write source, target and prompt in each.")
    if found.more:
        found.problems.append(f"And {found.more} more rows of '{rows.name}' cannot be read.")
    return Listing(tuple(found.pairs), tuple(found.orphans), tuple(found.problems))


@dataclass(eq=False)
class _Rows:
    places: Places
    file: str
    pairs: list[Pair] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    more: int = 0

    def add(self, number: int, row: Mapping[str, Any]) -> None:
        """Take a row for what it is: a pair, an orphan or a problem."""
        try:
            names = [self._name_of(row, keys, number) for keys in (_HINT_KEYS, _TARGET_KEYS)]
        except UnreadableTextError as error:
            self.add_problem(str(error))
            return
        real: list[Path] = []
        for place, name in enumerate(names):
            found = self.places.find(name)
            if found == GONE:
                names[place] = self.places.as_written(name)
                found = self.places.find(names[place])
            if isinstance(found, str):
                reason = "" if found == GONE else f": {found}"
                self.orphans.append(listed(name, f"{self.file}, row {number}{reason}"))
                return
            real.append(found)
        try:
            caption, problem = caption_in(row, f"{names[1]} ({self.file}, row {number})"), ""
        except UnreadableTextError as error:
            caption, problem = "", str(error)
        self.pairs.append(Pair(names[1], real[0], real[1], caption, problem))

    def add_problem(self, problem: str) -> None:
        """Note a row that is none."""
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(problem)
        else:
            self.more += 1

    def _name_of(self, row: Mapping[str, Any], keys: Sequence[str], number: int) -> str:
        found = next((row[key] for key in keys if isinstance(row.get(key), str)), "")
        relative = PurePosixPath(found.replace("\\", "/"))
        if not relative.parts:
            names = ", ".join(keys)
            raise UnreadableTextError(f"Row {number} of '{self.file}' has none of {names}: name the picture in one of them.")
        if relative.is_absolute() or ".." in relative.parts or self._has_drive(relative):
            raise UnreadableTextError(
                f"Row {number} of '{self.file}' leads out of the folder ('{shown(found)}'): write paths inside it, without a "
                "drive and without '..'."
            )
        return str(relative)

    def _has_drive(self, relative: PurePosixPath) -> bool:
        """Whether there is a drive in a path, or one of Windows' hidden streams; other systems have names with ':'."""
        if ":" not in str(relative):
            return False
        return os.name == "nt" or ":" in relative.parts[0] or not os.path.lexists(self.places.folder / relative)


def _read_rows(places: Places, path: Path) -> Iterator[tuple[int, Any]]:
    text = places.read_text(path.name, LARGEST_ROWS)
    if text.count("\n") > MOST_ROWS:
        raise ValueError(
            f"'{path.name}' has more than {MOST_ROWS} rows: put the pairs into tar shards, see docs/large_datasets.md."
        )
    if not text.lstrip().startswith("["):
        yield from json_lines(text, path.name)
        return
    if len(text) > LARGEST_LIST:
        raise ValueError(f"'{path.name}' is one list of more than {LARGEST_LIST >> 20} MB: write one JSON object a line.")
    try:
        rows = parse_text(text, path.name)
    except UnreadableTextError as error:
        raise ValueError(f"{str(error).rstrip('.')}; it needs one JSON object a line, or one list of them.") from error
    yield from enumerate(rows, 1)
