"""Where datasets lie: below ComfyUI's input/, or below the places of the folder kind `nextcontrol_datasets`. Nowhere else."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import folder_paths

from ...models.foreign import first_line, read_small_json, shown
from ...training.cache import TensorCache
from ...training.dataset import DatasetSettings, PairDataset, ShardSettings
from ...training.inside import check_inside
from ...training.mixed import MixedDataset, check_conditions
from ...training.pairs import find_pairs, is_folder_of_pairs
from ...training.raw_shards import find_shards
from ...training.shard_index import CURE, has_index
from .folders import DEMO, places_of

KIND = "nextcontrol_datasets"
ABOUT = "nextcontrol.json"
"""Beside the pairs: what made the hints."""
CACHE = ".nextcontrol"
LONGEST_NAME = 1000
UNWRITABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Kinds of signs that no name of a folder has: control characters, halves of pairs, separators of lines."""


def dataset_roots() -> list[Path]:
    """The places that may be read and written, input/ first."""
    return [Path(folder_paths.get_input_directory()), *places_of(KIND)]


def check_folder_name(name: str, input_name: str) -> PurePosixPath:
    """A folder's name as typed.

    Args:
        name: With either kind of slash.
        input_name: Of the node's input, for the error.

    Returns:
        A relative path.

    Raises:
        ValueError: It is empty, or leads out.
    """
    relative = PurePosixPath(name.strip().replace("\\", "/"))
    if len(name) > LONGEST_NAME or any(unicodedata.category(sign) in UNWRITABLE for sign in name):
        raise ValueError(
            f"{input_name} is '{shown(name)}', which has line breaks, control characters or more than {LONGEST_NAME} "
            "signs: rename the folder."
        )
    if not relative.parts:
        raise ValueError(f"{input_name} is empty: name a folder below ComfyUI's input/.")
    if relative.is_absolute() or ".." in relative.parts or any(":" in part or part.startswith(".") for part in relative.parts):
        raise ValueError(
            f"{input_name} is '{shown(name)}' and must be a folder below ComfyUI's input/, or below a place that "
            f"extra_model_paths.yaml names as {KIND}: write its path from there, without a drive and without '..'."
        )
    return relative


def find_folder(name: str, input_name: str = "folder") -> Path:
    """The folder of that name in the first place that has it.

    Args:
        name: As typed.
        input_name: Of the node's input, for the error.

    Returns:
        Its path.

    Raises:
        FileNotFoundError: No place has it.
        ValueError: See `check_folder_name`, or it is a link that leads out.
    """
    relative = check_folder_name(name, input_name)
    for root in dataset_roots():
        if (root / relative).is_dir():
            check_inside(root / relative, dataset_roots(), name)
            return root / relative
    other = "" if input_name == "pictures" else ", or let Make Pairs make one"
    raise FileNotFoundError(
        f"There is no folder '{shown(name)}' below ComfyUI's input/ or a place of {KIND}: put it there{other}."
    )


def find_pictures(name: str) -> Path:
    """As `find_folder`, or a folder of pictures that comes with the pack: those are read, and never written to."""
    try:
        return find_folder(name, "pictures")
    except FileNotFoundError:
        shipped = DEMO / check_folder_name(name, "pictures")
        if not shipped.is_dir():
            raise
        return shipped


def new_folder(name: str, input_name: str) -> Path:
    """The folder of that name, or where it is to be made, below input/; errors as in `find_folder`."""
    relative = check_folder_name(name, input_name)
    existing = next((root / relative for root in dataset_roots() if (root / relative).is_dir()), None)
    path = existing or dataset_roots()[0] / relative
    check_inside(path, dataset_roots(), name)
    return path


def open_dataset(name: str, settings: DatasetSettings, shards: ShardSettings | None = None) -> PairDataset:
    """Look through a dataset folder.

    Args:
        name: Of the folder. It holds pairs (see `training.pairs.find_pairs`), tar shards, or encoded shards with their index.
        settings: How the pairs are used.
        shards: How they are encoded into shards; None trains a folder of pairs as it is.

    Returns:
        The dataset; with `shards` if it is trained from encoded ones.

    Raises:
        FileNotFoundError: There is no such folder, or it holds no pairs.
        ValueError: It leads out of the allowed folders, cannot be read, or its shards are not finished.
    """
    folder = find_folder(name)
    if has_index(folder):
        return PairDataset(name, folder, (), (), settings, _read_about(folder), (), shards or ShardSettings())
    if any(folder.glob("shard-*.json")):
        raise ValueError(f"'{shown(name)}' holds encoded shards that are not finished: {CURE}.")
    if (packed := find_shards(folder)) and not is_folder_of_pairs(folder):
        for path in packed:
            check_inside(path, dataset_roots(), path.name)
        return PairDataset(name, folder, (), (), settings, _read_about(folder), packed, shards or ShardSettings())
    listing = find_pairs(folder, dataset_roots())
    if not listing.pairs:
        raise ValueError(
            f"'{shown(name)}' holds no pair whose two pictures are there: give hint and target the same file name in source/ "
            "and target/, or let Make Pairs make the folder."
        )
    return PairDataset(name, folder, listing.pairs, listing.orphans, settings, _read_about(folder), shards=shards)


def encoded_folder(dataset: PairDataset) -> Path:
    """Where the encoded shards of a dataset are, or are to be: the dataset's own folder if it holds nothing else."""
    assert dataset.shards is not None
    if not dataset.packed and not dataset.pairs:
        return dataset.folder
    return new_folder(dataset.shards.folder or f"{dataset.name.strip().rstrip('/')}_encoded", "dataset.shards.folder")


def open_datasets(folders: Mapping[str, str], settings: DatasetSettings, shards: ShardSettings | None = None) -> MixedDataset:
    """Look through a dataset folder for each condition.

    Args:
        folders: By condition.
        settings: Of every folder; `hint_type` is the condition's name there.
        shards: See `open_dataset`; of every folder too.

    Returns:
        With caches that are read by all.

    Raises:
        FileNotFoundError: A folder is not there.
        ValueError: A name cannot be used, or see `open_dataset`.
    """
    check_conditions(list(folders))
    opened = {name: open_dataset(folder, replace(settings, hint_type=name), shards) for name, folder in folders.items()}
    places = {name: tuple(part.folder for other, part in opened.items() if other != name) for name in opened}
    return MixedDataset({name: replace(part, shared_with=places[name]) for name, part in opened.items()})


def cache_of(dataset: PairDataset) -> TensorCache:
    """The dataset's encoded latents and texts, in a hidden folder of its own; those of others are read as well."""
    folder, *others = [folder / CACHE for folder in (dataset.folder, *dataset.shared_with)]
    for cache in (folder, *others):
        check_inside(cache, dataset_roots(), CACHE)
    return TensorCache(folder, others)


def stamp_of(name: str | None) -> Any:
    """Changes when a file in the folder does; None if there is no such folder, or it is not known yet."""
    if name is None:
        return None
    try:
        folder = find_folder(name)
    except (OSError, ValueError):
        return None
    found = []
    for place, folders, names in os.walk(folder):  # which passes over what it cannot look into
        folders[:] = [inner for inner in folders if inner != CACHE]
        for name in names:
            with suppress(OSError):  # a link that leads to itself, a file that has just gone
                status = (Path(place) / name).stat()
                if stat.S_ISREG(status.st_mode):
                    found.append(((Path(place) / name).relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns))
    return sorted(found)


def _read_about(folder: Path) -> dict[str, Any]:
    path = folder / ABOUT
    if not path.is_file() or path.is_symlink():
        return {}
    try:
        about = read_small_json(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"'{ABOUT}' in '{shown(folder.name)}' is damaged ({first_line(error)}): delete it.") from error
    return about if isinstance(about, dict) else {}
