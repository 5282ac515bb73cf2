"""What the pickle in a weight file can name and describe: tensors, storages, and notes that nobody reads.

Source: pytorch/pytorch@v2.5.1 torch/_weights_only_unpickler.py, torch/_utils.py (`_rebuild_tensor_v2` and its kin).
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch

from .weight_bounds import MOST_DIMENSIONS

_STORAGES: dict[str, torch.dtype] = {
    "Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16, "Long": torch.int64,
    "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool,
    "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128, "QInt8": torch.qint8, "QUInt8": torch.quint8,
    "QInt32": torch.qint32,
}  # fmt: skip
_STORAGE = re.compile(r"torch\.(?:cuda\.)?(\w+)Storage")
TENSOR_CLASS = re.compile(r"torch\.(?:cuda\.)?(sparse\.)?\w*Tensor")
_UNTYPED = "torch.storage.UntypedStorage"
DENSE = {"torch._utils._rebuild_tensor": 4, "torch._utils._rebuild_tensor_v2": 4, "torch._utils._rebuild_tensor_v3": 7}
"""What makes a plain tensor, and of how many arguments at least."""
WRAPPED = {
    "torch.nn.parameter.Parameter", "torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor",
}  # fmt: skip
"""What puts something around the tensor that is its first argument."""
ODD = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor", "torch._utils._rebuild_qtensor": "a quantized tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without numbers",
    "torch._utils._rebuild_wrapper_subclass": "a tensor of a class of its own",
    "torch._utils._rebuild_device_tensor_from_numpy": "an array of another library",
}  # fmt: skip
FROM_TYPE = "torch._tensor._rebuild_from_type_v2"
PLAIN_TYPES = ("torch.Tensor", "torch.nn.parameter.Parameter")
_NOTES = {
    "collections.OrderedDict", "collections.Counter", "torch.Size", "torch.device", "torch.serialization._get_layout",
    "_codecs.encode", "builtins.bytearray", "builtins.set", "builtins.complex", "torch.storage.TypedStorage", _UNTYPED,
    FROM_TYPE,
}  # fmt: skip


class Global(NamedTuple):
    """A class or function that the pickle names; it is never looked up."""

    name: str


class Storage(NamedTuple):
    """Numbers that lie in the file."""

    key: str
    dtype: torch.dtype
    numel: int
    start: int = 0
    """Elements before these, where they are part of a larger storage."""


class Described(NamedTuple):
    """A plain tensor."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Odd(NamedTuple):
    """A tensor of another kind: sparse, quantized and the like."""

    title: str
    """With its article."""


class Nameless(NamedTuple):
    """What stands for a key that is no text."""

    type_name: str
    number: int
    """Makes it one of its own."""


class Note(NamedTuple):
    """Anything else that a trainer keeps beside its tensors."""


NOTE = Note()


def described_by(arguments: tuple[Any, ...], least: int) -> Described | Odd:
    """Return the tensor that the arguments of a rebuilding function describe; `least` of them are needed."""
    if len(arguments) < least:
        raise IndexError
    storage, offset, shape, stride = arguments[:4]
    dtype = storage.dtype
    if least == 7:
        dtype = vars(torch)[arguments[6].name.removeprefix("torch.")]
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
        raise TypeError
    if not type(shape) is type(stride) is tuple or len(shape) != len(stride):
        raise TypeError
    if len(shape) > MOST_DIMENSIONS:
        return Odd(f"a tensor of {len(shape)} dimensions")
    sizes = (offset, *shape, *stride)
    if any(type(size) is not int or not 0 <= size < 1 << 48 for size in sizes):
        raise TypeError
    if dtype in (torch.qint8, torch.quint8, torch.qint32):
        return Odd("a quantized tensor")
    if any(type(notes) is dict and (notes.get("conj") or notes.get("neg")) for notes in arguments[6:]):
        return Odd("a tensor that stands for its negative or conjugate")
    return Described(storage, dtype, offset, shape, stride)


def as_key(key: Any, number: int) -> Any:
    """Return a key of a dictionary, or what stands for one that is not text; `number` tells those apart."""
    # To hash a foreign tuple can take for ever, or more stack than there is; numbers can be chosen to have one hash.
    return key if type(key) is str else Nameless(type(key).__name__, number)


def is_known(name: str) -> bool:
    """Whether weight files may name something: what PyTorch lets them name, and what the host has added to that."""
    if name in _NOTES or name in DENSE or name in WRAPPED or name in ODD or TENSOR_CLASS.fullmatch(name):
        return True
    if match := _STORAGE.fullmatch(name):
        return match[1] in _STORAGES
    module, _, last = name.rpartition(".")
    if (
        module == "torch"
        and last.islower()
        # Not `getattr`, which imports what is not there yet.
        and isinstance(vars(torch).get(last), (torch.dtype, torch.layout, torch.qscheme))
    ):
        return True
    return name in _safe_globals()


def _safe_globals() -> set[str]:
    listed: list[Any] = getattr(torch.serialization, "get_safe_globals", list)()
    return {item[1] if isinstance(item, tuple) else f"{item.__module__}.{item.__qualname__}" for item in listed}


def dtype_of(storage: str) -> torch.dtype:
    """Return the type of the numbers in a storage of that class."""
    if storage == _UNTYPED:
        return torch.uint8
    match = _STORAGE.fullmatch(storage)
    if match is None:
        raise TypeError
    return _STORAGES[match[1]]


def text_of(value: Any) -> str:
    """Return a text, also one that Python 2 wrote as bytes."""
    if isinstance(value, bytes):
        return value.decode("ascii")
    if type(value) is not str:
        raise TypeError
    return value
