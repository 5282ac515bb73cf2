"""Weight files of PyTorch's: the zip archive of today and the row of pickles of before 1.6, mapped and never run.

Source: pytorch/pytorch@v2.5.1 torch/serialization.py (`_load`, `_legacy_load`), caffe2/serialize/inline_container.cc.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import torch
from torch import Tensor

from .pickle_values import Described, Storage
from .pickles import LARGEST_PICKLE, Unpickler
from .weight_bounds import MOST_REPEATED

_ZIP = b"PK\x03\x04"
_LARGEST_LIST = 1 << 22
"""Bytes of an archive's list of records, about 70 each."""
_AT_ONCE = 1 << 28
"""Bytes that are read between two looks whether somebody has cancelled."""
_HEADER = 30
"""Bytes before a record, without its name and extras."""
_ENCRYPTED = 1
# torch/serialization.py: MAGIC_NUMBER, PROTOCOL_VERSION
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001


class TorchFile:
    """A file that is open for reading its tensors one by one.

    Args:
        path: A zip archive or a row of pickles.
        is_mapped: Whether numbers are mapped, where they lie as the processor reads them.
        poll: Called now and then, so that it can raise to end a long reading.

    Raises:
        pickle.UnpicklingError: It is no pickle of tensors, or names code.
        ValueError: It is damaged, packed or too large; a short reason.
        OSError: It cannot be read.
    """

    def __init__(self, path: Path, is_mapped: bool = True, poll: Callable[[], None] = lambda: None) -> None:
        self.size = path.stat().st_size
        """Bytes on disk."""
        self._path, self._is_mapped, self._poll = path, is_mapped, poll
        self._mapped: torch.UntypedStorage | None = None
        self._made: dict[str, torch.UntypedStorage] = {}
        self._place: Callable[[str], tuple[int, int]]
        self._stream = _Bounded(path)
        try:
            is_zip = self._stream.read(len(_ZIP)) == _ZIP
            self.content: Any = self._read_zip() if is_zip else self._read_row()
            """What the pickle holds: see `Unpickler.load`."""
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> TorchFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stream.close()

    def tensor(self, described: Described) -> Tensor:
        """Build a tensor.

        Args:
            described: From `content`.

        Returns:
            It, without gaps where it repeats nothing; mapped where that is so in the file.

        Raises:
            ValueError: It does not lie within its storage, or its storage within the file.
        """
        self._poll()
        storage, item = described.storage, described.dtype.itemsize
        numbers = self._numbers(storage)
        first = storage.start * storage.dtype.itemsize + described.offset * item
        end = (storage.start + storage.numel) * storage.dtype.itemsize
        count = math.prod(described.shape)
        last = sum((size - 1) * stride for size, stride in zip(described.shape, described.stride, strict=True))
        if count and (first % item or first + (last + 1) * item > min(end, numbers.nbytes())):
            raise ValueError("a tensor is larger than the place where its numbers lie")
        # One that says a few numbers over and over would stand for any size.
        if first + count * item > end and count * item > MOST_REPEATED:
            raise ValueError(f"a tensor repeats {storage.numel} numbers until they are {count}")
        tensor = torch.empty(0, dtype=described.dtype)
        if count:
            tensor.set_(numbers, first // item, described.shape, described.stride)
        else:
            tensor = tensor.reshape(described.shape)
        is_channels_last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
        return tensor if tensor.is_contiguous() or is_channels_last or 0 in described.stride else tensor.contiguous()

    def _numbers(self, storage: Storage) -> torch.UntypedStorage:
        made = self._made.get(storage.key)
        if made is None:
            place, size = self._place(storage.key)
            if not 0 <= place <= place + size <= self.size:
                raise ValueError("the numbers of a tensor are not in it")
            made = self._made[storage.key] = self._at(place, size, storage.dtype.itemsize)
        return made

    def _at(self, place: int, size: int, item: int) -> torch.UntypedStorage:
        """Bytes of the file: of the map, where their place suits the processor."""
        if self._is_mapped and size and place % item == 0:
            if self._mapped is None:
                self._mapped = cast("torch.UntypedStorage", torch.UntypedStorage.from_file(str(self._path), False, self.size))
            return self._mapped[place : place + size]
        read = torch.empty(size, dtype=torch.uint8)
        left = memoryview(read.numpy().data)
        self._stream.seek(place)
        while left:
            self._poll()
            count = self._stream.readinto(left[:_AT_ONCE])
            if not count:
                raise ValueError("it is shorter than it was")
            left = left[count:]
        return read.untyped_storage()

    def _read_zip(self) -> Any:
        with zipfile.ZipFile(self._stream) as archive:
            records = {info.filename: info for info in archive.infolist()}
        # Else a small file could say the same bytes over and over.
        if sum(info.compress_size for info in records.values()) > self.size:
            raise ValueError("its records lie in each other")
        folder = next(iter(records), "").partition("/")[0]

        def place(name: str) -> tuple[int, int]:
            info = records.get(f"{folder}/{name}")
            if info is None:
                raise ValueError(f"it has no record '{name}'")
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & _ENCRYPTED or info.compress_size != info.file_size:
                raise ValueError("its records are packed, and weight files are not")
            header = self._stream.read_at(info.header_offset, _HEADER)
            if header[: len(_ZIP)] != _ZIP or len(header) < _HEADER:
                raise ValueError("its list of records is damaged")
            after = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            return info.header_offset + _HEADER + after, info.file_size

        def read(name: str, most: int) -> bytes:
            start, size = place(name)
            if size > most:
                raise ValueError(f"its record '{name}' has more than {most} bytes")
            return self._stream.read_at(start, size)

        if f"{folder}/byteorder" in records and read("byteorder", 8) != b"little":
            raise ValueError("its numbers are in the order of another kind of processor")
        self._place = lambda key: place(f"data/{key}")
        return Unpickler(read("data.pkl", LARGEST_PICKLE), self._poll).load()

    def _read_row(self) -> Any:
        row = Unpickler(self._stream.read_at(0, LARGEST_PICKLE), self._poll)
        if row.data[:1] != pickle.PROTO or row.load() != _MAGIC or row.load() != _PROTOCOL:
            raise pickle.UnpicklingError("it does not begin as a file of PyTorch's")
        row.load()  # about the machine that wrote it
        content, keys = row.load(), row.load()
        if (
            type(keys) is not list
            or len(keys) > len(row.storages)
            or not all(type(key) is str and key in row.storages for key in keys)
        ):
            raise ValueError("its list of tensors is damaged")
        places, at = {}, row.at
        for key in keys:
            self._poll()
            storage = row.storages[key]
            if int.from_bytes(self._stream.read_at(at, 8), "little") != storage.numel:
                raise ValueError("it is cut short or its list of tensors is of another file")
            places[key] = at + 8, storage.numel * storage.dtype.itemsize
            at += 8 + places[key][1]
        # The numbers follow each other without a gap, and a map of them would not lie as the processor reads them.
        self._is_mapped = False
        self._place = lambda key: places.get(key, (-1, 0))
        return content


class _Bounded(io.FileIO):
    """A file that gives an archive's list of records only where a weight file can have so many."""

    def read(self, size: int | None = -1, /) -> bytes:
        """`size` bytes, or all that are left."""
        if size is None or size < 0:
            at = self.tell()
            size = self.seek(0, io.SEEK_END) - at
            self.seek(at)
        if size > _LARGEST_LIST:
            raise ValueError("its list of records is too long")
        return super().read(size) or b""

    def read_at(self, place: int, size: int) -> bytes:
        """`size` bytes from a place, or all that are there; the caller has bounded them."""
        self.seek(place)
        return super().read(size) or b""
