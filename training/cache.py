"""What the VAE and the text encoder made of a file, kept on disk under a name that says from what and how."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from .inside import open_real, own_place
from .sealed import DamagedFileError, read_sealed, write_sealed

_CHUNK = 1 << 20


def digest_of(*parts: object) -> str:
    """A name for the combination of some values."""
    return hashlib.blake2b("\n".join(map(repr, parts)).encode(), digest_size=20).hexdigest()


def file_digest(path: Path) -> str:
    """A name for the content of a file of a dataset, given without links; errors as `inside.open_real` has them."""
    digest = hashlib.blake2b(digest_size=20)
    with open_real(path, path.name) as stream:
        while data := stream.read(_CHUNK):
            digest.update(data)
    return digest.hexdigest()


class TensorCache:
    """Small safetensors files in a folder, by key; each is complete or not there.

    Args:
        folder: Written and read.
        others: Folders of other caches, read as well: a key says what lies under it, wherever that is.
    """

    def __init__(self, folder: Path, others: Sequence[Path] = ()) -> None:
        self.folder = folder
        self.folders = (folder, *others)
        self._known: set[str] = set()

    def has(self, key: str) -> bool:
        """Whether it is there and as it was written; what is damaged is made again by whoever asks."""
        if key not in self._known and self._find(key) is not None:
            self._known.add(key)
        return key in self._known

    def write(self, key: str, **tensors: Tensor) -> None:
        """Keep some tensors under a key.

        Raises:
            CannotWriteError: The disk is full, or the folder cannot be written.
            ValueError: A link has its place.
        """
        write_sealed(own_place(self.folder, _place(key)), {name: tensor.cpu() for name, tensor in tensors.items()}, {})

    def read(self, key: str) -> dict[str, Tensor]:
        """Return what was written under a key.

        Raises:
            DamagedFileError: It has been damaged, or is gone, since `has` found it.
        """
        found = self._find(key)
        if found is None:
            raise DamagedFileError(
                f"'{key}' in the cache '{self.folder.name}' is damaged or gone: start the training again to encode it again."
            )
        return found

    def _find(self, key: str) -> dict[str, Tensor] | None:
        """The first that is whole. A link leads to a file that is none of ours."""
        paths = (folder / _place(key) for folder in self.folders)
        own = (path for path in paths if not (path.is_symlink() or path.parent.is_symlink()))
        return next((tensors for tensors in map(_read, own) if tensors is not None), None)


def _place(key: str) -> str:
    return f"{key[:2]}/{key}.safetensors"


def _read(path: Path) -> dict[str, Tensor] | None:
    try:
        return read_sealed(path)[0]
    except DamagedFileError:
        return None
