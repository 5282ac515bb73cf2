"""Tar shards of samples: writing them with the `webdataset` library; a written shard is whole or not there."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .durable import PART, whole_file
from .lock import lock_file
from .tar_files import Sample

INSTALL = "python -m pip install webdataset"
_OLD_SECONDS = 24 * 3600
"""After which nobody is writing a file any more, where the system cannot tell."""
_NEW_SECONDS = 0.5


@dataclass(frozen=True)
class Written:
    """What a new shard is like."""

    count: int
    """Samples."""
    size: int
    """Bytes."""
    digest: str
    """Names its content."""
    file: os.stat_result | None = None
    """Tells the file from another that has taken its place since."""

    def is_at(self, path: Path) -> bool:
        """Whether it is this file that lies there; True for a shard without a sample, of which there is no file."""
        try:
            return self.file is None or os.path.samestat(self.file, path.stat())
        except OSError:
            return False


def find_library() -> Any:
    """The library.

    Returns:
        The module `webdataset`.

    Raises:
        ValueError: It is not installed.
    """
    try:
        import webdataset.tariterators
    except ImportError as error:
        raise ValueError(f"Tar shards need the package webdataset ({error}): run '{INSTALL}' in ComfyUI's Python.") from error
    return webdataset


def write_samples(path: Path, samples: Iterable[Sample]) -> Written:
    """Write a shard that has its name only when it is complete and on the disk.

    Args:
        path: Replaced if it is there.
        samples: Of bytes. The same samples give the same file.

    Returns:
        What it is like; without a sample no file is left.

    Raises:
        CannotWriteError: The disk is full or not writable; what was at `path` is as it was.
    """
    library = find_library()
    count, is_done = 0, False
    with ExitStack() as held:
        while not is_done:
            with whole_file(path) as temporary:
                stream = _claimed(temporary)
                if stream is None:
                    temporary.unlink(missing_ok=True)
                    continue
                with stream:
                    if os.name != "nt":  # the mark stays until the file has its name; Windows renames no open file
                        held.callback(os.close, os.dup(stream.fileno()))
                    watched = _Watched(stream)
                    with library.TarWriter(watched, encoder=False, mtime=0, compress=False) as writer:
                        for sample in samples:
                            writer.write(sample)
                            count += 1
                    own = os.fstat(stream.fileno())
                if not count:
                    temporary.unlink()
                    path.unlink(missing_ok=True)
            is_done = True
    return Written(count, watched.size, watched.digest.hexdigest(), own) if count else Written(0, 0, "")


def remove_left_overs(folder: Path) -> None:
    """Delete what killed processes have left in a folder of shards; what others are writing now stays."""
    names = [path.name for path in folder.iterdir() if path.name.endswith(PART)] if folder.is_dir() else []
    for path in (folder / name for name in names if name.startswith((".shard-", ".index.json."))):
        with suppress(OSError):
            # No link is followed here, and no pipe waited for.
            if stat.S_ISREG(path.lstat().st_mode) and _is_left(path):
                path.unlink()


def _claimed(path: Path) -> BinaryIO | None:
    """Open a new file and mark it as one that is being written; None if another process has taken it for a left-over."""
    try:
        stream = path.open("r+b")
    except FileNotFoundError:
        return None
    try:
        lock_file(stream.fileno())
        is_there = path.exists()
    except BlockingIOError:
        is_there = False
    if not is_there:
        stream.close()
        return None
    stream.seek(0)
    return stream


def _is_left(path: Path) -> bool:
    about = path.lstat()
    is_old = time.time() - about.st_mtime > _OLD_SECONDS
    if not about.st_size and abs(time.time() - about.st_mtime) < _NEW_SECONDS:
        time.sleep(_NEW_SECONDS)  # whoever has just made it is about to mark it
    if ".tar." not in path.name or os.name == "nt":
        return is_old
    with path.open("r+b") as stream:
        try:
            return lock_file(stream.fileno()) or is_old
        except BlockingIOError:
            return False


class _Watched:
    """A file that knows what was written into it."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.size = 0
        self.digest = hashlib.blake2b(digest_size=20)

    def write(self, data: bytes) -> int:
        """As a file's."""
        self.size += len(data)
        self.digest.update(data)
        return self.stream.write(data)
