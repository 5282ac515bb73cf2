"""Tar shards of samples, in the form of the `webdataset` library, which writes them; a written shard is whole or not there."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from ..models.foreign import first_line, shown
from .durable import PART, whole_file
from .inside import open_inside
from .lock import lock_file
from .tar_reader import Member, TarError, TarReader

Sample = dict[str, Any]
"""Content of a sample's files by what follows the first dot of their names, and its "__key__"."""
INSTALL = "python -m pip install webdataset"
RAW_CURE = "copy it anew, or set bad_pairs to skip"
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
_OLD_SECONDS = 24 * 3600
"""After which nobody is writing a file any more, where the system cannot tell."""
_NEW_SECONDS = 0.5
_TAR_END = 1024
"""Bytes, all zero, that every tar file ends with."""


class DamagedShardError(ValueError):
    """A shard is missing, cut off, or no tar file."""


class BadSampleError(DamagedShardError):
    """A sample cannot be used; those beside it can."""


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
