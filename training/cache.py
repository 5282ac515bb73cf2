"""What the VAE and the text encoder made of a file, kept on disk under a name that says from what and how."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from .durable import write_tensors


def digest_of(*parts: object) -> str:
    """A name for the combination of some values."""
    return hashlib.blake2b("\n".join(map(repr, parts)).encode(), digest_size=20).hexdigest()


def file_digest(path: Path) -> str:
    """A name for the content of a file."""
    return hashlib.blake2b(path.read_bytes(), digest_size=20).hexdigest()


class TensorCache:
    """Small safetensors files in a folder, by key; each is complete or not there.

    Args:
        folder: Written and read.
        others: Folders of other caches, read as well: a key says what lies under it, wherever that is.
    """

    def __init__(self, folder: Path, others: Sequence[Path] = ()) -> None:
        self.folder = folder
        self.folders = (folder, *others)

    def has(self, key: str) -> bool:
        """Whether it is there and can be opened."""
        return any(map(_can_be_opened, self._paths(key)))

    def write(self, key: str, **tensors: Tensor) -> None:
        """Keep some tensors under a key.

        Raises:
            OSError: The disk is full, or the folder cannot be written.
        """
        write_tensors(self._path(key), {name: tensor.cpu() for name, tensor in tensors.items()}, {})

    def read(self, key: str) -> dict[str, Tensor]:
        """What was written under a key."""
        paths = self._paths(key)
        return load_file(paths[0] if len(paths) == 1 else next(filter(_can_be_opened, paths), paths[0]))

    def _path(self, key: str) -> Path:
        return self._paths(key)[0]

    def _paths(self, key: str) -> list[Path]:
        return [folder / key[:2] / f"{key}.safetensors" for folder in self.folders]


def _can_be_opened(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt"):
            return True
    except (OSError, SafetensorError):
        return False
