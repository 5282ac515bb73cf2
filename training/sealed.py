"""Files of tensors with a checksum of all that is in them: one flipped bit is noticed, and never trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..models.foreign import first_line
from .durable import write_tensors

CHECKSUM = "nextcontrol.checksum"
"""Key in the file's header."""


class DamagedFileError(ValueError):
    """A file is not what was written. The message is a short reason: the caller knows which file it is, and the cure."""


def write_sealed(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file with a checksum.

    Args:
        path: Replaced if it is there, see `durable.whole_file`.
        tensors: On the CPU.
        metadata: Strings for the header.

    Raises:
        CannotWriteError: It cannot be written; what was at `path` is as it was.
    """
    write_tensors(path, tensors, {**metadata, CHECKSUM: checksum(tensors, metadata)})


def read_sealed(path: Path, keys: Sequence[str] = ()) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what `write_sealed` wrote.

    Args:
        path: A regular file. One from before there were checksums has none, and is taken as it is.
        keys: Of the strings that its header has: what else is there was a checksum before it was damaged.

    Returns:
        The tensors, and the strings of the header.

    Raises:
        DamagedFileError: It is missing, not a whole file, or something in it has changed.
    """
    try:
        if not path.is_file():
            raise DamagedFileError("there is no such file")
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = dict(file.metadata() or {})
            tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no dictionary
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise DamagedFileError(first_line(error)) from error
    written = metadata.pop(CHECKSUM, None)
    if metadata.keys() != set(keys):
        raise DamagedFileError("its header has other entries")
    if written is not None and written != checksum(tensors, metadata):
        raise DamagedFileError("its checksum is another")
    return tensors, metadata


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return a digest of names, types, shapes and values of some tensors, and of some strings beside them."""
    digest = hashlib.blake2b(digest_size=16)
    for key in sorted(metadata):
        digest.update(f"{key}\0{metadata[key]}\0".encode())
    for key in sorted(tensors):
        tensor = tensors[key].detach().contiguous()
        digest.update(f"{key}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
