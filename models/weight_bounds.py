"""How much a weight file may hold, looked at before anything walks through it.

The bounds are far from what published files have, and near enough that whatever a file says costs seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .foreign import parse_json, shown

if TYPE_CHECKING:
    from .pickle_values import Described

MOST_TENSORS = 20_000
"""A CtrLoRA pretraining checkpoint with everything in it has 4,000."""
LONGEST_KEY = 256
MOST_DIMENSIONS = 8
LARGEST_SIDE = (1 << 31) - 1
LARGEST_HEADER = 1 << 24
"""Bytes of a safetensors header: names, shapes, and what trainers write beside them."""
MOST_BRACKETS = 1 << 20
"""In such a header; a tensor has three pairs, and what trainers write has its own."""
MOST_SHARED = 2
"""Times a file's size: so many bytes may all its tensors have together, where several share their numbers."""
MOST_REPEATED = 1 << 29
"""Bytes that a tensor may seem to have beyond that, by repeating a few."""

FLOATS = frozenset((
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
))  # fmt: skip
"""What weights may be."""
_ITEM_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4,
    "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Bytes of a number, by its name in the header; a type that is not here is the reader's to judge."""


def check_keys(keys: Iterable[Any]) -> None:
    """Make sure that names of tensors are names.

    Raises:
        ValueError: There are too many, or one is no text, too long or not printable. The message is a reason, no sentence.
    """
    listed = list(keys)
    if len(listed) > MOST_TENSORS:
        raise ValueError(f"it has {len(listed)} tensors and {MOST_TENSORS} are the most that are read")
    for key in listed:
        if not isinstance(key, str):
            raise ValueError(f"the name of a tensor is a {shown(_kind(key))} and no text")
        if len(key) > LONGEST_KEY or not key.isprintable():
            raise ValueError(f"'{shown(key)}' is no name of a tensor")


def check_sizes(tensors: Mapping[str, Tensor | Described], file_size: int) -> None:
    """Make sure that tensors do not say the same few numbers over and over.

    Args:
        tensors: Read, or yet to be read.
        file_size: Bytes.

    Raises:
        ValueError: All together are larger than the file by far, or one has too many dimensions. A reason, no sentence.
    """
    total = 0
    for key, tensor in tensors.items():
        _check_shape(key, tuple(tensor.shape))
        total += math.prod(tensor.shape) * tensor.dtype.itemsize
    if total > MOST_SHARED * file_size + MOST_REPEATED:
        raise ValueError(f"its tensors have {total} bytes together and the file has {file_size}")


def repeats(tensor: Tensor) -> bool:
    """Whether a tensor has more numbers than lie behind it."""
    return tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()


def read_header(path: Path) -> dict[str, str]:
    """Check the header of a safetensors file, before a reader follows it.

    Args:
        path: The file.

    Returns:
        Its metadata.

    Raises:
        OSError: It cannot be opened.
        ValueError: The header is damaged, or too large. A reason, no sentence.

    Source: huggingface/safetensors README, "Format".
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= size - 8:
            raise ValueError("its header ends behind the file")
        if length > LARGEST_HEADER:
            raise ValueError(f"its header has {length} bytes and {LARGEST_HEADER} are the most that are read")
        text = stream.read(length)
    if text.count(b"[") + text.count(b"{") > MOST_BRACKETS:
        raise ValueError("its header is no list of tensors")
    header = parse_json(text)
    if not isinstance(header, dict):
        raise ValueError("its header is no list of tensors")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("what it says of itself is no text")
    check_keys(header)
    for key, entry in header.items():
        _check_entry(key, entry, size - 8 - length)
    return metadata


def _check_entry(key: str, entry: Any, room: int) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"'{shown(key)}' is no tensor in its header")
    shape: Any
    place: Any
    shape, place, dtype = entry.get("shape"), entry.get("data_offsets"), entry.get("dtype")
    if not _are_counts(shape) or not _are_counts(place) or len(place) != 2 or not isinstance(dtype, str):
        raise ValueError(f"'{shown(key)}' is damaged in its header")
    _check_shape(key, tuple(shape))
    item = _ITEM_SIZES.get(dtype)
    if not place[0] <= place[1] <= room or (item and math.prod(shape) * item != place[1] - place[0]):
        raise ValueError(f"'{shown(key)}' does not lie in it as its header says")


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(count) is int and count >= 0 for count in value)


def _check_shape(key: str, shape: tuple[int, ...]) -> None:
    if len(shape) > MOST_DIMENSIONS or any(side > LARGEST_SIDE for side in shape):
        raise ValueError(f"'{shown(key)}' has {len(shape)} dimensions of up to {max(shape)}")


def _kind(key: Any) -> str:
    return getattr(key, "type_name", type(key).__name__)
