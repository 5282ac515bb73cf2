"""Pairs of pictures in a folder: which hint belongs to which target, and what the caption is.

Three layouts, the first that is there counts:

    metadata.jsonl   rows with file_name, conditioning_image, text (or target, hint, caption and the like)
    prompt.json      CtrLoRA's: rows with source, target, prompt
    two folders      source/ and target/ (or hint/ and image/ and the like): files of one name, captions in .txt beside
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ..models.foreign import shown
from .inside import check_inside
from .pair import Listing, PackedPair, Pair
from .pair_rows import find_rows, from_rows
from .picture_files import EXTENSIONS, NOT_READ
from .places import Places, composed, is_folder, listed
from .texts import CAPTION_KEYS, caption_of

__all__ = [
    "CAPTION_KEYS", "EXTENSIONS", "HINT_FOLDERS", "TARGET_FOLDERS", "Listing", "PackedPair", "Pair", "find_pairs",
    "is_folder_of_pairs",
]  # fmt: skip
HINT_FOLDERS = ("source", "hint", "hints", "conditioning", "conditioning_images", "control", "controls")
TARGET_FOLDERS = ("target", "targets", "image", "images")
CAPTION = ".txt"


def find_pairs(folder: Path, roots: Sequence[Path]) -> Listing:
    """Look through a dataset folder, sub-folders included.

    Args:
        folder: Of the dataset.
        roots: See `check_inside`; every file has to be in one.

    Returns:
        Pairs in the order of the rows, or of their names.

    Raises:
        FileNotFoundError: The folder is not there, or has none of the layouts.
        ValueError: A file leads out of the allowed folders, or the file with the rows cannot be read.
    """
    check_inside(folder, roots, folder.name)
    if not is_folder(folder):
        raise FileNotFoundError(f"'{shown(folder.name)}' is no folder: choose one with pairs of pictures in it.")
    places = Places(folder, roots)
    rows = find_rows(folder)
    return _from_folders(places) if rows is None else from_rows(places, rows)


def is_folder_of_pairs(folder: Path) -> bool:
    """Whether one of the layouts is there, whatever else is."""
    has_folders = None not in {_first_folder(folder, HINT_FOLDERS), _first_folder(folder, TARGET_FOLDERS)}
    return has_folders or find_rows(folder) is not None


@dataclass(eq=False)
class _Side:
    """The pictures and texts below one of the two folders, by path without extension."""

    pictures: dict[str, tuple[str, Path]] = field(default_factory=dict)
    """Path in the dataset's folder, and where it really lies."""
    texts: dict[str, str] = field(default_factory=dict)
    """Path in the dataset's folder."""
    orphans: list[str] = field(default_factory=list)

    def text_of(self, stem: str) -> str | None:
        """The caption beside a picture, also where the two are written in another way."""
        return self.texts.get(stem) or self.composed_texts.get(composed(stem))

    @cached_property
    def composed_texts(self) -> dict[str, str]:
        """The texts by names in the one form."""
        return {composed(stem): name for stem, name in reversed(self.texts.items())}

    def add(self, places: Places, stem: str, name: str) -> None:
        """Take a picture, if it is one."""
        place = places.find(name)
        if isinstance(place, str):
            self.orphans.append(listed(name, place))
        elif stem in self.pictures:
            self.orphans.append(listed(name, f"'{shown(self.pictures[stem][0])}' has the same name"))
        else:
            self.pictures[stem] = name, place


def _from_folders(places: Places) -> Listing:
    hints, targets = (_side(places, names) for names in (HINT_FOLDERS, TARGET_FOLDERS))
    if hints is None or targets is None:
        raise FileNotFoundError(
            f"'{shown(places.folder.name)}' holds no pairs: it needs prompt.json, metadata.jsonl, or the two folders source "
            "and target with pictures of the same names."
        )
    partners = _partners(list(hints.pictures), list(targets.pictures))
    pairs = []
    for stem, own in partners.items():
        name, target = targets.pictures[stem]
        caption, problem = _caption(places, [targets.text_of(stem), hints.text_of(own)])
        pairs.append(Pair(name, hints.pictures[own][1], target, caption, problem))
    used = set(partners.values())
    alone = [targets.pictures[stem] for stem in targets.pictures if stem not in partners]
    alone += [hints.pictures[stem] for stem in hints.pictures if stem not in used]
    return Listing(tuple(pairs), (*hints.orphans, *targets.orphans, *(listed(name) for name, _ in alone)))


def _partners(hints: Sequence[str], targets: Sequence[str]) -> dict[str, str]:
    """Each target's hint, by path without extension: the same, or the same signs composed in another way."""
    exact = set(hints) & set(targets)
    others = {composed(stem): stem for stem in reversed(hints) if stem not in exact}
    found = {stem: stem if stem in exact else others.pop(composed(stem), None) for stem in targets}
    return {stem: hint for stem, hint in found.items() if hint is not None}


def _first_folder(folder: Path, names: Sequence[str]) -> str | None:
    return next((name for name in names if is_folder(folder / name)), None)


def _side(places: Places, names: Sequence[str]) -> _Side | None:
    top = _first_folder(places.folder, names)
    if top is None:
        return None
    check_inside(places.folder / top, places.roots, top)
    side = _Side()
    for name, reason in sorted(places.walk(top), key=lambda found: _in_order(found[0])):
        stem, dot, ending = name[len(top) + 1 :].rpartition(".")
        kind = f"{dot}{ending.lower()}"
        if reason:
            side.orphans.append(listed(name, reason))
        elif kind == CAPTION:
            side.texts.setdefault(stem, name)
        elif kind in NOT_READ:
            side.orphans.append(listed(name, f"{kind} files are not read: save it as PNG, JPEG or WEBP"))
        elif kind in EXTENSIONS:
            side.add(places, stem, name)
    return side


def _in_order(name: str) -> list[str]:
    """Paths as the system sorts them, folder by folder."""
    return os.path.normcase(name).replace("\\", "/").split("/")


def _caption(places: Places, texts: Sequence[str | None]) -> tuple[str, str]:
    """The first of some captions that is not empty, and what is wrong with it."""
    for name in texts:
        if name is not None:
            try:
                caption = caption_of(places.read_text(name), name)
            except ValueError as error:
                return "", str(error)
            if caption:
                return caption, ""
    return "", ""
