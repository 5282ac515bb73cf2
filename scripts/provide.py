"""Folders in the per-user cache that are made once: keyed by what goes in, locked while made, marked when whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

MARKER = "complete.json"
WAITING_SECONDS = 10.0


class SetupError(RuntimeError):
    """The set-up cannot go on; the message is one sentence for the user."""


def say(text: str) -> None:
    """Tell the user, on stderr: stdout belongs to results."""
    print(text, file=sys.stderr, flush=True)


def cache_home() -> Path:
    """The folder that holds everything the scripts keep between runs; it need not exist yet."""
    if chosen := os.environ.get("NEXTCONTROL_HOME"):
        return Path(chosen).expanduser().absolute()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "nextcontrol"


def keyed_folder(name: str, recipe: Mapping[str, object]) -> Path:
    """Where the thing made from `recipe` lies; another recipe gives another folder."""
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    return cache_home() / f"{name}-{digest[:12]}"


def log_of(folder: Path) -> Path:
    """The log of making `folder`: beside it, because a failed folder is removed."""
    return folder.with_name(f"{folder.name}.log")


def provide(name: str, recipe: Mapping[str, object], build: Callable[[Path], None], required: Sequence[str] = ()) -> Path:
    """The folder made from `recipe`, made now if there is none that is whole.

    Args:
        name: First part of the folder's name.
        recipe: Everything that decides the content; JSON values, lists rather than tuples.
        build: Fills the empty folder it is given. What an interrupted run left is removed before.
        required: Paths inside the folder that must still exist for it to count as whole.

    Returns:
        The folder, whole.

    Raises:
        SetupError: The folder cannot be made, or `build` says so.
    """
    folder = keyed_folder(name, recipe)
    if find_provided(name, recipe, required):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with hold_lock(folder.with_name(f"{folder.name}.lock")):
            # Another process may have made it while this one waited.
            if not _is_whole(folder, recipe, required):
                _make(folder, recipe, build)
    except OSError as error:
        message = f"'{folder}' cannot be made ({error}): free the folder or set NEXTCONTROL_HOME to another one."
        raise SetupError(message) from error
    return folder


def find_provided(name: str, recipe: Mapping[str, object], required: Sequence[str] = ()) -> Path | None:
    """The folder made from `recipe`, as `provide` would return it, if it is there and whole."""
    folder = keyed_folder(name, recipe)
    return folder if _is_whole(folder, recipe, required) else None


def _is_whole(folder: Path, recipe: Mapping[str, object], required: Sequence[str]) -> bool:
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return bool(marker == recipe) and all((folder / path).exists() for path in required)


def _make(folder: Path, recipe: Mapping[str, object], build: Callable[[Path], None]) -> None:
    if folder.exists():
        say(f"'{folder}' is not whole (an interrupted set-up?): making it anew.")
        shutil.rmtree(folder)
    folder.mkdir()
    try:
        build(folder)
        # The marker comes last and at once: whoever reads it may rely on all the rest.
        draft = folder / f"{MARKER}.draft"
        draft.write_text(json.dumps(recipe, indent=2), encoding="utf-8")
        draft.replace(folder / MARKER)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    name = folder.name.rpartition("-")[0]
    others = [other for other in sorted(folder.parent.glob(f"{name}-*")) if other.is_dir() and other != folder]
    if others:
        say(f"Set-ups for other versions are still there, delete what is no longer used: {', '.join(map(str, others))}")


@contextlib.contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Keep every other process out until the block ends, waiting first for the one that is in.

    Child processes started with `close_fds=False` inherit the lock (except on Windows): if this process is killed, the
    next one waits until they have ended too and cannot meet a pip that still writes.
    """
    with path.open("a+b") as file:
        os.set_inheritable(file.fileno(), True)
        start = told = time.monotonic()
        while not _try_lock(file.fileno()):
            now = time.monotonic()
            if told == start or now - told >= WAITING_SECONDS:
                say(f"Waiting for another process that is setting up '{path.with_suffix('')}' ({now - start:.0f} s).")
                told = now
            time.sleep(0.2)
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, 0, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
