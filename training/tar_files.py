"""Tar shards of samples, in the form of the `webdataset` library: reading them, whoever wrote them."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from ..models.foreign import first_line, shown
from .inside import open_inside
from .tar_reader import Member, TarError, TarReader

Sample = dict[str, Any]
"""Content of a sample's files by what follows the first dot of their names, and its "__key__"."""
RAW_CURE = "copy it again, or set bad_pairs to skip"
LARGEST_FILE = 1 << 27
"""Bytes of a file in a sample."""
LARGEST_TEXT = 1 << 20
"""The same of a text."""
LARGEST_SAMPLE = 1 << 28
"""Bytes of all files of a sample."""
MOST_FILES = 64
"""Files in a sample."""
_PATIENCE = 10_000
"""Files that may follow each other without a new sample."""
_READ_AHEAD = 1 << 18
"""Bytes."""
_TEXTS = ("txt", "json")
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_PACKED_START = max(map(len, _PACKED))
_TAR_END = 1024
"""Bytes, all zero, that every tar file ends with."""


class DamagedShardError(ValueError):
    """A shard is missing, cut off, or no tar file."""


class BadSampleError(DamagedShardError):
    """A sample cannot be used; those beside it can."""


def largest_of(suffix: str) -> int:
    """The most bytes that a file of a sample may have."""
    return LARGEST_TEXT if suffix.rpartition(".")[2] in _TEXTS else LARGEST_FILE


def read_samples(
    path: Path,
    cure: str = RAW_CURE,
    roots: Sequence[Path] = (),
    is_wanted: Callable[[str], bool] = lambda _suffix: True,
) -> Iterator[Sample | BadSampleError]:
    """Stream the samples of a shard, one in memory at a time.

    Args:
        path: Of a tar file. Files of one sample follow each other; their names are equal up to the first dot.
        cure: What to do about a bad one, for the error.
        roots: Folders that a link may lead to; the shard's own if there are none.
        is_wanted: Whether files of that name are read; those of other names are empty.

    Yields:
        Samples in the order of the file; an error, not raised, in the place of one that cannot be used.

    Raises:
        DamagedShardError: It is not there, not whole, or is no tar file.
    """
    name = shown(path.name)
    with open_shard(path, cure, roots) as stream:
        try:
            size = _check_whole(stream, name, cure)
            reader = TarReader(_ahead(stream), size)
            yield from _Samples(reader, name, cure, is_wanted)
        except (TarError, OSError) as error:
            raise DamagedShardError(f"The shard '{name}' cannot be read ({first_line(error)}): {cure}.") from error


def open_shard(path: Path, cure: str, roots: Sequence[Path] = ()) -> BinaryIO:
    """Open a shard for reading.

    Args:
        path: Of the shard.
        cure: What to do about a bad one, for the error.
        roots: See `read_samples`.

    Returns:
        The open file.

    Raises:
        DamagedShardError: It is not there, leads elsewhere, or cannot be read.
    """
    try:
        return open_inside(path, roots or (path.parent,), path.name)
    except FileNotFoundError as error:
        raise DamagedShardError(f"The shard '{shown(path.name)}' is missing: {cure}.") from error
    except OSError as error:
        raise DamagedShardError(f"The shard '{shown(path.name)}' cannot be read ({first_line(error)}): {cure}.") from error
    except ValueError as error:
        raise DamagedShardError(str(error)) from error


def _check_whole(stream: BinaryIO, name: str, cure: str) -> int:
    """Refuse a file that is cut between two members, which looks like a whole one until its end; return the size."""
    start = stream.read(_PACKED_START)
    if packed := next((kind for mark, kind in _PACKED.items() if start.startswith(mark)), ""):
        raise DamagedShardError(f"The shard '{name}' is compressed with {packed}, and shards are plain tar files: unpack it.")
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - _TAR_END))
    end = stream.read()
    if len(end) < _TAR_END or any(end):
        raise DamagedShardError(f"The shard '{name}' is cut off, or no tar file: {cure}.")
    return size


def _ahead(stream: BinaryIO) -> io.BufferedReader:
    """The same file from its start, read in larger pieces."""
    raw: Any = cast("io.BufferedReader", stream).raw
    raw.seek(0)
    return io.BufferedReader(raw, _READ_AHEAD)


class _Samples:
    """Members, put together to samples by their names."""

    def __init__(self, reader: TarReader, shard: str, cure: str, is_wanted: Callable[[str], bool]) -> None:
        self._reader = reader
        self._shard = shard
        self._cure = cure
        self._is_wanted = is_wanted
        self._key: bytes | None = None
        self._sample: Sample = {}
        self._problem = ""
        self._size = self._files = 0

    def __iter__(self) -> Iterator[Sample | BadSampleError]:
        """The samples; see `read_samples`."""
        for member in self._reader:
            self._files += 1
            if self._files > _PATIENCE:
                raise TarError(f"more than {_PATIENCE} files follow each other without a new sample")
            if (names := _key_and_suffix(member.name)) is None:
                continue
            key, suffix = names
            if key != self._key:
                yield from self._finished()
                self._key, self._sample, self._problem = key, {"__key__": _text(key)}, ""
                self._size = self._files = 0
            if not self._problem and (problem := self._take(member, suffix)):
                self._sample, self._problem = {}, f"'{shown(f'{self._shard}/{_text(key)}.{suffix}')}' {problem}"
        yield from self._finished()

    def _finished(self) -> Iterator[Sample | BadSampleError]:
        if self._problem:
            yield BadSampleError(f"{self._problem}: {self._cure}.")
        elif self._key is not None:
            yield self._sample
        self._sample = {}

    def _take(self, member: Member, suffix: str) -> str:
        """Add a file to the sample, or return why it cannot be."""
        if member.problem:
            return f"is {member.problem}, and a sample is made of plain files"
        if suffix in self._sample:
            return "is there twice (a duplicate file name)"
        if len(self._sample) > MOST_FILES:
            return f"is one of more than {MOST_FILES} files of one sample"
        if not self._is_wanted(suffix):
            self._sample[suffix] = b""
            return ""
        self._size += member.size
        if member.size > largest_of(suffix):
            return f"has {member.size} bytes, and {largest_of(suffix)} are the most that such a file may have"
        if self._size > LARGEST_SAMPLE:
            return f"makes a sample of more than {LARGEST_SAMPLE} bytes"
        self._sample[suffix] = self._reader.read()
        return ""


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _key_and_suffix(name: bytes) -> tuple[bytes, str] | None:
    """Divide a file's name.

    Returns:
        What comes before and after its first dot; None for a file that belongs to no sample.

    Source: webdataset 0.2 tariterators.py, `base_plus_ext`, and `tar_file_iterator` with its `skip_meta`.
    """
    folder, slash, file = name.rpartition(b"/")
    base, dot, suffix = file.partition(b".")
    first = name.partition(b"/")[0]
    if not base or not dot or (first.startswith(b"__") and first.endswith(b"__")):
        return None
    return folder + slash + base, _text(suffix).lower()
