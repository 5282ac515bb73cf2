"""Files that are whole or not there, whatever happens while they are written, and one sentence where they cannot be."""

from __future__ import annotations

import errno
import os
import uuid
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..models.foreign import first_line, shown

PART = ".part"
"""Ends the name of a file that is not finished."""
_TOO_LONG = 206  # Windows
_SHOWN_NAME = 40
"""Characters of a file's own name in that of its unfinished copy: a system may not take a longer one."""


class CannotWriteError(OSError):
    """A file cannot be written: the disk is full, or the folder cannot be written to."""


@contextmanager
def writing(name: str) -> Iterator[None]:
    """Say what cannot be written, why, and what to do about it.

    Args:
        name: Of the file or folder, as the user knows it.

    Raises:
        CannotWriteError: Something in the block has failed for a reason that lies with the disk or the system.
    """
    try:
        yield
    except CannotWriteError:
        raise
    except (OSError, SafetensorError) as error:
        reason = shown(getattr(error, "strerror", None) or first_line(error))
        raise CannotWriteError(
            f"'{shown(name)}' cannot be written ({reason}): free some space, or make its folder writable."
        ) from error


@contextmanager
def whole_file(path: Path, name: str = "") -> Iterator[Path]:
    """Write a file that has its name only when it is complete and on the disk.

    Args:
        path: Replaced if it is there; the folders above it are made.
        name: For the error, see `writing`; the file's own if it is left out.

    Yields:
        Where to write: an empty file under a name that nobody else has or can foresee. A block that deletes it leaves what
        is at `path` as it was.

    Raises:
        CannotWriteError: The disk is full or not writable; what was at `path` is as it was.
    """
    with writing(name or path.name):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = new_name(path)
        try:
            temporary.open("xb").close()
            mode = temporary.stat().st_mode
            yield temporary
            if temporary.exists():
                temporary.chmod(mode)  # some libraries make files that their owner alone can read
                put_in_place(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def check_writable(path: Path, name: str) -> None:
    """Make sure that a file could be written, and leave nothing behind, no new folder either; errors as in `whole_file`."""
    made = [folder for folder in path.parents if not folder.exists()]
    with writing(name):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = new_name(path)
            temporary.open("xb").close()
            temporary.unlink()
        finally:
            for folder in made:
                with suppress(OSError):
                    folder.rmdir()


def check_length(path: Path, name: str) -> None:
    """Refuse a path that the disk has no room for in its directories; whether something is there makes no difference.

    Args:
        path: Of a file or folder to be made.
        name: As the user knows it, for the error.

    Raises:
        ValueError: The name, or the whole path, is too long.
    """
    try:
        path.lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG or getattr(error, "winerror", 0) == _TOO_LONG:
            raise ValueError(f"'{shown(name)}' is too long for a file's name here: choose a shorter one.") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file; see `whole_file`."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file; see `whole_file`.

    Args:
        path: Replaced if it is there.
        tensors: On the CPU.
        metadata: Strings for the header.
    """
    with whole_file(path) as temporary:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, temporary, metadata=dict(metadata))


def new_name(path: Path) -> Path:
    """Return a hidden name in a file's folder that no other process has, on whatever machine."""
    return path.with_name(f"{_beginning(path)}{uuid.uuid4().hex}{PART}")


def left_overs(path: Path) -> Iterator[Path]:
    """Find the unfinished copies of a file that processes have left that were killed, or still write."""
    names = (own.name for own in path.parent.iterdir()) if path.parent.is_dir() else ()
    return (path.with_name(name) for name in names if name.startswith(_beginning(path)) and name.endswith(PART))


def _beginning(path: Path) -> str:
    """Of the names of a file's unfinished copies; the number keeps long names apart."""
    return f".{path.name[:_SHOWN_NAME]}.{zlib.crc32(os.fsencode(path.name)):08x}."


def put_in_place(temporary: Path, path: Path) -> None:
    """Give a finished file its name, with both on the disk."""
    with temporary.open("rb+") as stream:
        os.fsync(stream.fileno())
    temporary.replace(path)
    with suppress(OSError):  # Windows has no way to flush a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
