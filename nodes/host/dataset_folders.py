"""Where datasets lie: below ComfyUI's input/, or below the places of the folder kind `nextcontrol_datasets`. Nowhere else."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import folder_paths

from ...models.foreign import SMALL_FILE, first_line, shown
from ...training.cache import TensorCache
from ...training.dataset import DatasetSettings, PairDataset, ShardSettings
from ...training.folder_stamp import folder_stamp
from ...training.inside import LeadsOutError, check_inside, own_place
from ...training.mixed import MixedDataset, check_conditions
from ...training.pairs import find_pairs, is_folder_of_pairs
from ...training.places import Places, is_folder
from ...training.raw_shards import find_shards
from ...training.shard_index import CURE, has_index
from ...training.texts import parse_text
from .folders import DEMO, places_of

KIND = "nextcontrol_datasets"
ABOUT = "nextcontrol.json"
"""Beside the pairs: what made the hints."""
CACHE = ".nextcontrol"
LONGEST_NAME = 1000
LONGEST_REASON = 200
LONGEST_OPTIONS = 10_000
"""Signs of what a dataset says of its hints' options."""
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
        if is_folder(root / relative):
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
        if not is_folder(shipped):
            raise
        return shipped


def new_folder(name: str, input_name: str) -> Path:
    """The folder of that name, or where it is to be made, below input/; errors as in `find_folder`."""
    relative = check_folder_name(name, input_name)
    existing = next((root / relative for root in dataset_roots() if is_folder(root / relative)), None)
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
    try:
        listing = find_pairs(folder, dataset_roots())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"'{shown(name)}' cannot be read ({shown(error.strerror)}): make it readable.") from error
    if not listing.pairs:
        if listing.problems:
            raise ValueError(" ".join(listing.problems[:3]))
        raise ValueError(
            f"'{shown(name)}' holds no pair whose two pictures are there: give hint and target the same file name in source/ "
            "and target/, or let Make Pairs make the folder."
        )
    about = _read_about(folder)
    return PairDataset(name, folder, listing.pairs, listing.orphans, settings, about, shards=shards, problems=listing.problems)


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
    roots = dataset_roots()
    own = own_place(check_inside(dataset.folder, roots, dataset.name), CACHE)
    return TensorCache(own, [check_inside(folder / CACHE, roots, CACHE) for folder in dataset.shared_with])


def stamp_of(name: str | None) -> Any:
    """Changes when a file in the folder does; None if there is no such folder, or it is not known yet."""
    if name is None:
        return None
    try:
        folder = find_folder(name)
    except (OSError, ValueError):
        return None
    return folder_stamp(folder, dataset_roots(), CACHE)


def _read_about(folder: Path) -> dict[str, Any]:
    """What Make Pairs wrote; a hint_type and options of another kind are refused, since they end in the trained file."""
    places = Places(folder, dataset_roots())
    if not os.path.lexists(folder / ABOUT):
        return {}
    try:
        about = parse_text(places.read_text(ABOUT, SMALL_FILE), ABOUT)
    except LeadsOutError:
        raise
    except ValueError as error:
        name = shown(folder.name)
        raise ValueError(f"'{ABOUT}' in '{name}' is damaged ({first_line(error, LONGEST_REASON)}): delete it.") from error
    if not _is_about(about):
        raise ValueError(
            f"'{ABOUT}' in '{shown(folder.name)}' is damaged (it is no object with a short name as hint_type and an object as "
            "options): delete it."
        )
    return dict(about)


def _is_about(about: Any) -> bool:
    """Whether it can be written into the header of what is trained, where it ends."""
    if not isinstance(about, Mapping):
        return False
    name, options = about.get("hint_type", ""), about.get("options", {})
    try:
        return isinstance(options, dict) and shown(name) == name and len(json.dumps(options)) <= LONGEST_OPTIONS
    except RecursionError:
        return False
