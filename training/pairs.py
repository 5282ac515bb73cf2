"""Pairs of pictures in a folder: which hint belongs to which target, and what the caption is.

Three layouts, the first that is there counts:

    metadata.jsonl   rows with file_name, conditioning_image, text (or target, hint, caption and the like)
    prompt.json      CtrLoRA's: rows with source, target, prompt
    two folders      source/ and target/ (or hint/ and image/ and the like): files of one name, captions in .txt beside
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from .inside import check_inside
from .picture_files import EXTENSIONS, PictureBytes

HINT_FOLDERS = ("source", "hint", "hints", "conditioning", "conditioning_images", "control", "controls")
TARGET_FOLDERS = ("target", "targets", "image", "images")
ROW_FILES = ("metadata.jsonl", "prompt.json")
_HINT_KEYS = ("source", "hint", "conditioning_image", "conditioning_image_file_name", "hint_file_name")
_TARGET_KEYS = ("target", "file_name", "image")
CAPTION_KEYS = ("prompt", "text", "caption")


@dataclass(frozen=True)
class Pair:
    """One hint, one target."""

    name: str
    """Path of the target in the folder, with forward slashes."""
    hint: Path
    target: Path
    caption: str
    """Empty if there is none."""


@dataclass(frozen=True)
class PackedPair:
    """The same, out of a tar shard."""

    name: str
    """Name of the shard and key in it."""
    hint: PictureBytes
    target: PictureBytes
    caption: str


@dataclass(frozen=True)
class Listing:
    """What a folder holds."""

    pairs: tuple[Pair, ...]
    orphans: tuple[str, ...]
    """Pictures and rows without a partner, by path in the folder."""


def find_pairs(folder: Path, roots: Sequence[Path]) -> Listing:
    """Look through a dataset folder, sub-folders included.

    Args:
        folder: Of the dataset.
        roots: See `check_inside`; every file has to be in one.

    Returns:
        Pairs in the order of the rows, or of their names.

    Raises:
        FileNotFoundError: The folder is not there, or has none of the layouts.
        ValueError: A file leads out of the allowed folders, or a row cannot be read.
    """
    check_inside(folder, roots, folder.name)
    if not folder.is_dir():
        raise FileNotFoundError(f"'{folder.name}' is no folder: choose one with pairs of pictures in it.")
    rows = next((folder / name for name in ROW_FILES if (folder / name).is_file()), None)
    listing = _from_folders(folder) if rows is None else _from_rows(folder, rows)
    for pair in listing.pairs:
        for path in (pair.hint, pair.target):
            check_inside(path, roots, path.relative_to(folder).as_posix())
    return listing


def is_folder_of_pairs(folder: Path) -> bool:
    """Whether one of the layouts is there, whatever else is."""
    has_rows = any((folder / name).is_file() for name in ROW_FILES)
    return has_rows or None not in {_first_folder(folder, HINT_FOLDERS), _first_folder(folder, TARGET_FOLDERS)}


def pictures_in(folder: Path) -> Iterator[Path]:
    """Every picture below a folder, by name. Hidden folders and links to folders are left out."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.suffix.lower() in EXTENSIONS and path.is_file() and not any(part.startswith(".") for part in parts):
            yield path


def _from_folders(folder: Path) -> Listing:
    hints, targets = (_first_folder(folder, names) for names in (HINT_FOLDERS, TARGET_FOLDERS))
    if hints is None or targets is None:
        raise FileNotFoundError(
            f"'{folder.name}' holds no pairs: it needs prompt.json, metadata.jsonl, or the two folders source and target with "
            "pictures of the same names."
        )
    by_stem: dict[str, Path] = {}
    orphans = [path for path in pictures_in(hints) if by_stem.setdefault(_stem(path, hints), path) is not path]
    pairs, seen = [], set()
    for path in pictures_in(targets):
        stem = _stem(path, targets)
        if stem not in by_stem or stem in seen:
            orphans.append(path)
            continue
        seen.add(stem)
        hint = by_stem[stem]
        pairs.append(Pair(path.relative_to(folder).as_posix(), hint, path, _caption_beside(path) or _caption_beside(hint)))
    orphans += [path for stem, path in by_stem.items() if stem not in seen]
    return Listing(tuple(pairs), tuple(path.relative_to(folder).as_posix() for path in orphans))


def _first_folder(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _stem(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _caption_beside(path: Path) -> str:
    text = path.with_suffix(".txt")
    if not text.is_file() or text.is_symlink():
        return ""
    return " ".join(text.read_text(encoding="utf-8", errors="replace").split())


def _from_rows(folder: Path, rows: Path) -> Listing:
    pairs, orphans = [], []
    for number, row in enumerate(_read_rows(rows), 1):
        hint, target = (_path_of(folder, row, keys, rows, number) for keys in (_HINT_KEYS, _TARGET_KEYS))
        caption = next((str(row[key]) for key in CAPTION_KEYS if row.get(key)), "")
        missing = [path for path in (hint, target) if not path.is_file()]
        if missing:
            orphans.append(f"{missing[0].relative_to(folder).as_posix()} ({rows.name}, row {number})")
        else:
            pairs.append(Pair(target.relative_to(folder).as_posix(), hint, target, " ".join(caption.split())))
    return Listing(tuple(pairs), tuple(orphans))


def _read_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """JSON Lines, which is what CtrLoRA's prompt.json is, or one JSON list."""
    text = path.read_text(encoding="utf-8")
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    try:
        if text.lstrip().startswith("["):
            rows = list(enumerate(json.loads(text), 1))
        else:
            rows = [(number, json.loads(line)) for number, line in lines]
    except ValueError as error:
        raise ValueError(f"'{path.name}' cannot be read ({error}): it needs one JSON object a line.") from error
    for number, row in rows:
        if not isinstance(row, Mapping):
            raise ValueError(f"Row {number} of '{path.name}' is no JSON object: write source, target and prompt in each.")
        yield row


def _path_of(folder: Path, row: Mapping[str, Any], keys: Sequence[str], rows: Path, number: int) -> Path:
    found = next((row[key] for key in keys if isinstance(row.get(key), str)), None)
    if not found:
        raise ValueError(f"Row {number} of '{rows.name}' has none of {', '.join(keys)}: name the picture in one of them.")
    relative = PurePosixPath(found.replace("\\", "/"))
    if relative.is_absolute() or ".." in relative.parts or ":" in relative.parts[0]:
        raise ValueError(f"Row {number} of '{rows.name}' leads out of the folder ('{found}'): write paths inside it.")
    return folder / relative
