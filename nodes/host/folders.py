"""Model folders: which files a combo shows, and where a chosen one lies."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import folder_paths

from ...models.foreign import first_line, shown

LOGGER = logging.getLogger("nextcontrol")
CONTROLNEXT_FOLDERS = ("controlnext", "controlnet")
"""Where control modules may lie."""
UNET_FOLDERS = (*CONTROLNEXT_FOLDERS, "diffusion_models")
"""Where fine-tuned UNet weights may lie; a full SVD UNet is a diffusion model of its own."""
CTRLORA_FOLDERS = ("ctrlora", "controlnet")
"""Where bases and conditions of CtrLoRA may lie."""
CONTROL_FOLDERS = ("controlnext", "ctrlora", "controlnet", "diffusion_models")
"""Where any of these may lie."""
OWN_FOLDERS = ("controlnext", "ctrlora")
NO_FILE_YET = "no file yet"
"""Begins what a combo shows where there is nothing to choose."""
DEMO = Path(__file__).parents[2] / "demo"
"""What comes with the pack."""
DEMO_FOLDERS = ("controlnext", "ctrlora", "controlnet")
"""Kinds of which the pack brings files, in sub-folders of `DEMO`."""


def register_folders() -> None:
    """Tell ComfyUI about our model folders. Places that the user's own configuration added stay valid."""
    for kind in dict.fromkeys((*OWN_FOLDERS, "annotators", *DEMO_FOLDERS)):
        _prepare(kind)


def places_of(kind: str) -> list[Path]:
    """The places of a folder kind, in order; none where there is no such kind."""
    return [Path(place) for place in _entry(kind)[0] if _is_place(place)]


def first_place(kind: str) -> Path:
    """Where new files of a kind are written: the first place that is not the pack's own folder."""
    own = Path(folder_paths.models_dir) / kind
    return next((place for place in places_of(kind) if not place.is_relative_to(DEMO)), own)


def list_files(kinds: tuple[str, ...]) -> list[str]:
    """Names of the files of several folder kinds, with forward slashes on every system, each once; the pack's own last."""
    names = (name.replace("\\", "/") for kind in kinds for name in _names(kind))
    shipped = {path.relative_to(DEMO / kind).as_posix() for kind in DEMO_FOLDERS for path in (DEMO / kind).rglob("*")}
    return sorted(dict.fromkeys(names), key=shipped.__contains__)


def full_path(kind: str, name: str) -> Path | None:
    """Where a file of a folder kind lies, None where there is none; a name leads nowhere else."""
    relative = name.replace("\\", "/")
    _prepare(kind)
    try:
        path = folder_paths.get_full_path(kind, relative)
    except Exception as error:  # noqa: BLE001 - the host's function with another pack's data, or another pack's function
        _note(kind, error)
        inside = os.path.relpath(os.path.join("/", relative), "/")  # noqa: PTH118 - as the host does it
        path = next((place / inside for place in places_of(kind) if (place / inside).is_file()), None)
    return None if path is None else Path(path)


def file_options(kinds: tuple[str, ...]) -> list[str]:
    """`list_files` for a combo that would be empty without a file.

    The page shows nothing in an empty combo and leaves it out of what it sends, and the host then says that an input is
    missing, not which file is.

    Args:
        kinds: Folder kinds.

    Returns:
        The names, or one that says where to put a file.
    """
    return list_files(kinds) or [f"{NO_FILE_YET}: put one into models/{kinds[0]}"]


def find_file(name: str, kinds: tuple[str, ...]) -> Path:
    """The path of a file chosen in a combo.

    Args:
        name: As listed by `list_files` or `file_options`, or with backslashes.
        kinds: Folder kinds, searched in this order.

    Returns:
        The path of the first that exists.

    Raises:
        FileNotFoundError: None does; the message names the folder to put it in.
    """
    for kind in kinds:
        if (path := full_path(kind, str(name))) is not None:
            return path
    places = [f"models/{kind}" for kind in kinds]
    if str(name).startswith(NO_FILE_YET):
        raise FileNotFoundError(
            f"There is no weight file in {' or '.join(places)}: put one into {places[0]}, press R on the canvas and choose it."
        )
    raise FileNotFoundError(
        f"'{shown(name)}' is not in any of {', '.join(places)}: put it into {places[0]}, press R on the canvas and choose it "
        "again."
    )


def fingerprint(name: str, kinds: tuple[str, ...]) -> tuple[str, int, int] | None:
    """Path, time and size of a file, so that a file replaced on disk is read again; None if there is none."""
    try:
        path = find_file(name, kinds)
        status = path.stat()
    except OSError:  # none, or one that goes away meanwhile
        return None
    return str(path), status.st_mtime_ns, status.st_size


# What other packs have made of a kind: anything that ComfyUI's own dictionary can be given


def _prepare(kind: str) -> None:
    """Bring a kind into the shape that ComfyUI reads, our own places in it.

    ComfyUI takes a text in place of a list of places for its letters, and walks through "/".
    """
    known = folder_paths.folder_names_and_paths
    if kind not in known and kind not in (*OWN_FOLDERS, "annotators", *DEMO_FOLDERS):
        return
    paths, extensions = _entry(kind)
    usable = paths if isinstance(paths, list) and all(map(_is_place, paths)) else [path for path in paths if _is_place(path)]
    usable.extend(place for place in _own_places(kind) if place not in map(os.fspath, usable))
    # A kind of our own lists weights only. Not in place: another pack may use its collection for kinds of its own. It stays a
    # list if it was one, since the pack may go on with it.
    missing = [ending for ending in folder_paths.supported_pt_extensions if kind in OWN_FOLDERS and ending not in extensions]
    if missing:
        extensions = (
            [*extensions, *missing]
            if isinstance(extensions, list)
            else {*(ending for ending in extensions if isinstance(ending, str)), *missing}
        )
    entry = known.get(kind)
    if not (isinstance(entry, tuple) and len(entry) == 2 and entry[0] is usable and entry[1] is extensions):
        known[kind] = (usable, extensions)


def _own_places(kind: str) -> list[str]:
    """What this pack adds to a kind: the folder of models first, what comes with the pack last."""
    # A file of the user's own is found first, and new ones are written into the first place.
    own = [Path(folder_paths.models_dir) / kind] if kind in (*OWN_FOLDERS, "annotators") else []
    shipped = [DEMO / kind] if kind in DEMO_FOLDERS and (DEMO / kind).is_dir() else []
    return [str(place) for place in (*own, *shipped)]


def _entry(kind: str) -> tuple[Any, Any]:
    """The places and extensions of a kind: each empty where it is not a collection."""
    entry = folder_paths.folder_names_and_paths.get(kind)
    paths, extensions, *_ = (*entry, (), ()) if isinstance(entry, tuple | list) else ((), ())
    single = str | os.PathLike
    paths = [paths] if isinstance(paths, single) else paths
    extensions = {extensions} if isinstance(extensions, single) else extensions
    return (paths if isinstance(paths, Iterable) else [], extensions if isinstance(extensions, Collection) else set())


def _is_place(place: object) -> bool:
    return isinstance(place, str | os.PathLike) and bool(os.fspath(place)) and isinstance(os.fspath(place), str)


def _names(kind: str) -> list[str]:
    """As ComfyUI lists a kind; where it cannot, as the places can be read."""
    _prepare(kind)
    try:
        return [name for name in folder_paths.get_filename_list(kind) if isinstance(name, str)]
    except Exception as error:  # noqa: BLE001 - as in full_path
        _note(kind, error)
    endings = {ending for ending in _entry(kind)[1] if isinstance(ending, str)}
    return sorted(
        name for place in places_of(kind) for name in _below(place) if not endings or Path(name).suffix.lower() in endings
    )


def _below(place: Path) -> Iterator[str]:
    """Files in a place and below; folders that cannot be read are left out."""
    for folder, _, files in os.walk(place, followlinks=True):
        yield from (os.path.relpath(os.path.join(folder, file), place) for file in files)  # noqa: PTH118


@cache
def _warn(kind: str, reason: str) -> None:
    """Once for each reason: a page asks for the lists at every start."""
    LOGGER.warning("ComfyUI cannot list models/%s (%s): the folders are read without it.", kind, reason)


def _note(kind: str, error: Exception) -> None:
    _warn(kind, first_line(error))
