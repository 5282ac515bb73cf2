"""Files that are whole or not there, whatever happens while they are written, and one sentence where they cannot be."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..models.foreign import first_line, shown

PART = ".part"
"""Ends the name of a file that is not finished."""
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
    return path.with_name(f".{path.name[:_SHOWN_NAME]}.{uuid.uuid4().hex}{PART}")


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
