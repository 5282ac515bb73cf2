"""What the VAE and the text encoder made of a file, kept on disk under a name that says from what and how."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from .checkpoint import write_tensors


def digest_of(*parts: object) -> str:
    """A name for the combination of some values."""
    return hashlib.blake2b("\n".join(map(repr, parts)).encode(), digest_size=20).hexdigest()


def file_digest(path: Path) -> str:
    """A name for the content of a file."""
    return hashlib.blake2b(path.read_bytes(), digest_size=20).hexdigest()


class TensorCache:
    """Small safetensors files in a folder, by key; each is complete or not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, key: str) -> bool:
        """Whether it is there and can be opened."""
        try:
            with safe_open(self._path(key), framework="pt"):
                return True
        except (OSError, SafetensorError):
            return False

    def write(self, key: str, **tensors: Tensor) -> None:
        """Keep some tensors under a key.

        Raises:
            OSError: The disk is full, or the folder cannot be written.
        """
        write_tensors(self._path(key), {name: tensor.cpu() for name, tensor in tensors.items()}, {})

    def read(self, key: str) -> dict[str, Tensor]:
        """What was written under a key."""
        return load_file(self._path(key))

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"
