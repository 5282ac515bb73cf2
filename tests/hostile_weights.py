"""Weight files as strangers make them: whole pickles and archives by hand, and headers that say anything."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
PROTO = b"\x80\x02"


def archive(data: bytes, records: Mapping[str, bytes] | None = None, packing: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file as PyTorch writes it, around any pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", packing) as file:
        for name, content in {"data.pkl": data, "byteorder": b"little", **(records or {})}.items():
            file.writestr(f"archive/{name}", content)
    return stream.getvalue()


def row(data: bytes, after: bytes = b"") -> bytes:
    """A file as PyTorch wrote it before 1.6, around any pickle."""
    dump = b"".join(pickle.dumps(part, 2) for part in (MAGIC, PROTOCOL, {"little_endian": True}))
    return dump + data + after


def saved(content: Any, is_zip: bool = True) -> bytes:
    """What PyTorch writes."""
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=is_zip)
    return stream.getvalue()


def text(value: str) -> bytes:
    """An instruction that pushes a text."""
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def described(shape: bytes, stride: bytes, numel: bytes = b"K\x04", kind: bytes = b"Float") -> bytes:
    """Instructions that push a tensor in the record data/0."""
    place = b"(" + text("storage") + b"ctorch\n" + kind + b"Storage\n" + text("0") + text("cpu") + numel + b"tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + place + b"K\x00(" + shape + b"t(" + stride + b"t\x89}tR"


def named(tensor: bytes, name: str = "weight") -> bytes:
    """A pickle with one named tensor."""
    return PROTO + b"}" + text(name) + tensor + b"s."


def headed(header: Any, data: bytes = b"\x00" * 16) -> bytes:
    """A safetensors file with any header."""
    written = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(written).to_bytes(8, "little") + written + data


def entry(shape: Any = (4,), dtype: Any = "F32", place: Any = (0, 16)) -> dict[str, Any]:
    """A tensor in such a header."""
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": place}


def put(folder: Path, name: str, content: bytes) -> Path:
    """Write it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(content)
    return path
