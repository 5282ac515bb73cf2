"""Damage to what a pickle of tensors holds, to the zip archive around it, and pickles written opcode by opcode."""

from __future__ import annotations

import io
import pickle
import random
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from fuzz.damage import damage_bytes
from torch import Tensor


def _smaller_storage(tensor: Tensor) -> Tensor:
    return torch.empty(0).set_(torch.zeros(1).untyped_storage(), 0, (1,), (1,)).expand(tensor.shape)


def save_pickle(content: Any, draw: random.Random) -> tuple[str, bytes]:
    """A file of PyTorch's, of today or of before 2020, or a plain pickle."""
    stream = io.BytesIO()
    way = draw.choice(("zip", "zip", "zip", "zip", "legacy", "plain"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if way == "plain":
            pickle.dump(content, stream, protocol=draw.randrange(6))
        else:
            torch.save(content, stream, _use_new_zipfile_serialization=way == "zip")
    return way, stream.getvalue()


def damage_archive(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    """Change the records of a zip file."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    kind = draw.choice(
        ("deflated", "pickle", "storage cut", "storage longer", "dropped", "twice", "renamed", "byteorder", "one bit")
    )
    place = draw.randrange(len(records))
    name, content = records[place]
    numbers = [i for i, (one, _) in enumerate(records) if "/data/" in one] or [place]
    if kind == "pickle":
        place = next((i for i, (one, _) in enumerate(records) if one.endswith("data.pkl")), place)
        how, changed = damage_bytes(records[place][1], draw)
        kind, records[place] = f"pickle: {how}", (records[place][0], changed)
    elif kind == "storage cut":
        i = draw.choice(numbers)
        records[i] = (records[i][0], records[i][1][: len(records[i][1]) // 2])
    elif kind == "storage longer":
        i = draw.choice(numbers)
        records[i] = (records[i][0], records[i][1] * 3)
    elif kind == "dropped":
        del records[place]
    elif kind == "twice":
        records.append((name, content[::-1]))
    elif kind == "renamed":
        records[place] = (draw.choice(("../../x", "/abs", name.upper(), "archive/.data/serialization_id", "a\\b")), content)
    elif kind == "byteorder":
        records = [
            (one, draw.choice((b"big", b"", b"middle", b"\xff")) if one.endswith("byteorder") else old) for one, old in records
        ]
    elif kind == "one bit":
        return damage_bytes(data, draw)
    return f"zip {kind}", write_archive(records, is_deflated=kind == "deflated")


def write_archive(records: list[tuple[str, bytes]], *, is_deflated: bool = False) -> bytes:
    """A zip file as PyTorch has it, its records aligned or not."""
    stream = io.BytesIO()
    with (
        warnings.catch_warnings(),
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED if is_deflated else zipfile.ZIP_STORED) as archive,
    ):
        warnings.simplefilter("ignore")
        for name, content in records:
            archive.writestr(name, content)
    return stream.getvalue()


def written_by_hand(draw: random.Random, outside: Path) -> tuple[str, bytes]:
    """Pickles that no library writes."""
    word = b"X\x0a\x00\x00\x00state_dict"
    depth = draw.choice((10, 900, 5000, 200_000))
    mark = f"touch {outside / 'ran'}".encode()
    programs = {
        f"nested {depth}": b"}" + word + (b"}" + word) * depth + b"}" + b"s" * (depth + 1),
        "itself by memo": b"}q\x00" + word + b"h\x00s",
        "list in itself": b"]q\x00h\x00a",
        "10^7 opcodes": b"}" + (word + b"Ns") * (10**7 // 12),
        "10^7 numbers": b"](" + b"K\x01" * 10**7 + b"e",
        "2^k lists": b"]" + b"".join(b"q%c](h%ch%ce" % (i, i, i) for i in range(60)),
        "global": b"cos\nsystem\n(X%c\x00\x00\x00%stR" % (len(mark), mark),
        "global of torch": b"ctorch.hub\nload\n)R",
        "getattr": b"cbuiltins\ngetattr\n(ctorch\nload\nX\x08\x00\x00\x00__code__tR",
        "huge string": b"X\xff\xff\xff\x7fabc",
        "huge long": b"\x8b\xff\xff\xff\x7f\x01",
        "storage of 2^60": b"}" + b"X\x01\x00\x00\x00a" + _rebuilt(2**60, (2**30, 2**30), (2**30, 1)) + b"s",
        "shape beyond storage": b"}" + b"X\x01\x00\x00\x00a" + _rebuilt(4, (1000, 1000), (1000, 1)) + b"s",
        "negative shape": b"}" + b"X\x01\x00\x00\x00a" + _rebuilt(4, (-4,), (1,)) + b"s",
        "negative stride": b"}" + b"X\x01\x00\x00\x00a" + _rebuilt(4, (4,), (-1,)) + b"s",
        "huge stride": b"}" + b"X\x01\x00\x00\x00a" + _rebuilt(4, (2, 2), (2**62, 1)) + b"s",
        "stride 0": b"}" + b"X\x01\x00\x00\x00a" + _rebuilt(4, (10**6, 10**6), (0, 0)) + b"s",
    }
    name = draw.choice(list(programs))
    program = b"\x80\x02" + programs[name] + b"."
    if draw.random() < 0.2:
        return f"by hand, no zip: {name}", program
    records = [
        ("archive/data.pkl", program),
        ("archive/byteorder", b"little"),
        ("archive/data/0", bytes(16)),
        ("archive/version", b"3\n"),
    ]
    return f"by hand: {name}", write_archive(records, is_deflated=len(program) > 100_000 or draw.random() < 0.1)


def _rebuilt(count: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """Opcodes of one tensor, as `torch.save` writes them."""

    def number(value: int) -> bytes:
        data = value.to_bytes(12, "little", signed=True)
        return b"\x8a\x0c" + data

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + number(count) + b"tQ"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n((" + storage[1:] + number(0) + numbers(shape) + numbers(stride)
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )  # fmt: skip
