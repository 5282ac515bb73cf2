"""Whether something in a folder has changed: told by names, sizes and times, without reading a file."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from .inside import check_inside

LOOKED_AT = 50_000
"""Files whose sizes and times count, in the order of their names; of the others the names do."""
LISTED = 500_000
"""Files of the largest folder that is gone through."""


def folder_stamp(folder: Path, roots: Sequence[Path], passed_over: str) -> str | float:
    """Look at a folder with all below it.

    Args:
        folder: Seen by `check_inside`.
        roots: See `check_inside`; links to files elsewhere, and to folders, are not followed.
        passed_over: Name of folders that do not count.

    Returns:
        Another text when a file is another one; of a folder with more than `LISTED` files a number that is like no other, so
        that it always counts as changed.
    """
    digest = hashlib.blake2b(digest_size=16)
    for number, entry in enumerate(_files(folder, passed_over)):
        if number == LISTED:
            return float("nan")
        digest.update(os.fsencode(entry.path) + b"\0")
        if number < LOOKED_AT:
            with suppress(OSError, ValueError):  # a link in a circle or to the outside, a file that has just gone
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISLNK(status.st_mode):
                    status = check_inside(Path(entry.path), roots, entry.name).stat()
                digest.update(f"{status.st_mode} {status.st_size} {status.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _files(folder: Path, passed_over: str) -> Iterator[os.DirEntry[str]]:
    waiting = [str(folder)]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if not _is_folder(entry):
                    yield entry
                elif entry.name != passed_over:
                    waiting.append(entry.path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False
