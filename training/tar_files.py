"""Tar shards of samples, read and written by the `webdataset` library; a written shard is whole or not there."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .durable import left_overs, whole_file, writing

Sample = dict[str, Any]
"""Content of a sample's files by what follows the first dot of their names, and its "__key__"."""
INSTALL = "python -m pip install webdataset"
RAW_CURE = "copy it anew, or set bad_pairs to skip"
_TAR_END = 1024
"""Bytes, all zero, that every tar file ends with."""


class DamagedShardError(ValueError):
    """A shard is missing, cut off, or no tar file."""


@dataclass(frozen=True)
class Written:
    """What a new shard is like."""

    count: int
    """Samples."""
    size: int
    """Bytes."""
    digest: str
    """Names its content."""


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


def read_samples(path: Path, cure: str = RAW_CURE) -> Iterator[Sample]:
    """Stream the samples of a shard, one in memory at a time.

    Args:
        path: Of a tar file. Files of one sample follow each other; their names are equal up to the first dot.
        cure: What to do about a bad one, for the error.

    Yields:
        Samples in the order of the file.

    Raises:
        DamagedShardError: It is not there, not whole, or has a file twice.
    """
    library = find_library().tariterators
    _check_whole(path, cure)
    with path.open("rb") as stream:
        samples = library.group_by_keys(library.tar_file_expander([{"url": path.name, "stream": stream}]))
        with closing(samples):
            while True:
                try:
                    sample = next(samples, None)
                except (tarfile.TarError, EOFError, ValueError, OSError) as error:
                    raise DamagedShardError(f"The shard '{path.name}' cannot be read ({error.args[0]}): {cure}.") from error
                if sample is None:
                    return
                yield sample


def _check_whole(path: Path, cure: str) -> None:
    """The library takes a file that is cut between two members for a whole one."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - _TAR_END))
            end = stream.read()
    except FileNotFoundError as error:
        raise DamagedShardError(f"The shard '{path.name}' is missing: {cure}.") from error
    if len(end) < _TAR_END or any(end):
        raise DamagedShardError(f"The shard '{path.name}' is cut off, or no tar file: {cure}.")


def write_samples(path: Path, samples: Iterable[Sample]) -> Written:
    """Write a shard that has its name only when it is complete and on the disk.

    Args:
        path: Replaced if it is there.
        samples: Of bytes. The same samples give the same file.

    Returns:
        What it is like; without a sample no file is left.

    Raises:
        OSError: The disk is full or not writable; what was at `path` is as it was.
    """
    library = find_library()
    count = 0
    with writing(path.name):
        for left_over in left_overs(path):
            left_over.unlink(missing_ok=True)
    with whole_file(path) as temporary:
        with temporary.open("wb") as stream:
            watched = _Watched(stream)
            with library.TarWriter(watched, encoder=False, mtime=0, compress=False) as writer:
                for sample in samples:
                    writer.write(sample)
                    count += 1
        if not count:
            temporary.unlink()
            path.unlink(missing_ok=True)
    return Written(count, watched.size if count else 0, watched.digest.hexdigest() if count else "")


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
