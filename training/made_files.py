"""What Make Pairs writes beside the pairs: a row for each, and what made the hints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ..models.foreign import first_line, parse_json, read_small_json, shown
from .durable import whole_file, write_text
from .inside import open_real, own_place

ROWS = "prompt.json"
ABOUT = "nextcontrol.json"
PICTURE = "picture"
"""Key of a row: the path of the picture that the pair was made of."""
LONGEST_REASON = 300
LARGEST_ROWS = 1 << 28
"""Bytes; a million pairs have as many."""


def read_rows(place: Path) -> dict[str, str]:
    """Read the rows of earlier runs: name of the pair to the picture it was made of, empty where that was not written down.

    A last line that a kill cut short is taken off.

    Args:
        place: Of the file, which need not be there.

    Returns:
        Empty if it is not.

    Raises:
        ValueError: A line is damaged, or the whole file.
    """
    try:
        with open_real(place, ROWS) as stream:
            data = stream.read(LARGEST_ROWS + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ValueError(
            f"'{ROWS}' in '{shown(place.parent.name)}' cannot be read ({shown(error.strerror)}): make it readable."
        ) from error
    if len(data) > LARGEST_ROWS:
        raise ValueError(f"'{ROWS}' in '{shown(place.parent.name)}' has more than {LARGEST_ROWS >> 20} MB: see what it is.")
    lines = data.split(b"\n")
    if tail := lines.pop():
        whole = data[: -len(tail)]
        with whole_file(place) as temporary:
            temporary.write_bytes(data + b"\n" if _is_row(tail) else whole)
        lines += [tail] if _is_row(tail) else []
    rows = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = parse_json(line, strict=False)
                if not isinstance(row, dict) or not isinstance(row.get("target"), str):
                    raise ValueError("it holds no JSON object with the name of a target")
                rows[row["target"].removeprefix("target/").removesuffix(".png")] = str(row.get(PICTURE) or "")
            except ValueError as error:
                raise ValueError(
                    f"Line {number} of '{ROWS}' in '{shown(place.parent.name)}' is no row of a pair ({first_line(error)}): "
                    "mend it, or delete the line, and the pair is listed again."
                ) from error
    return rows


def _is_row(line: bytes) -> bool:
    try:
        return isinstance(parse_json(line, strict=False), dict)
    except ValueError:
        return False


def check_same(folder: Path, own: Mapping[str, object]) -> None:
    """Make sure that a folder of pairs was made as it is to be made now, or is new.

    Args:
        folder: Of the pairs, existing or not; a new one gets its description.
        own: What decides how hints look, by name.

    Raises:
        ValueError: It was made otherwise, by something else, or its description is damaged.
        CannotWriteError: The disk is full or not writable.
    """
    about = own_place(folder, ABOUT)
    if about.exists():
        try:
            there = read_small_json(about)
            if not isinstance(there, dict):
                raise ValueError("it holds no JSON object")
            different = [f"{key} was {there.get(key)} and is {value}" for key, value in own.items() if there.get(key) != value]
        except (OSError, ValueError) as error:
            raise ValueError(
                f"'{ABOUT}' in '{shown(folder.name)}' cannot be read ({first_line(error)}): choose another folder."
            ) from error
        if different:
            raise ValueError(
                f"'{shown(folder.name)}' was made with other settings ({shown('; '.join(different), LONGEST_REASON)}): choose "
                "another folder."
            )
    elif folder.exists() and not folder.is_dir():
        raise ValueError(f"'{shown(folder.name)}' is a file: choose the name of a folder.")
    elif folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"'{folder.name}' is there already and was not made here: choose another folder.")
    else:
        write_text(about, json.dumps(own))
