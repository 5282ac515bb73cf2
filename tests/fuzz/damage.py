"""Damage to bytes, to the header of a safetensors file, and to words that stand in a file."""

from __future__ import annotations

import json
import random
from typing import Any

LONG = "x" * 70_000
WORDS = (
    "", " ", "\ud800", "a\ud83d", "two\nlines", "\r\n\r\n", "tab\tand\x00zero", "\x1b[31mred", "\u202eright to left",
    "\u2028",
    "café", "cafe\u0301", "名", LONG, "module." * 150_000, "module." * 3000, "../../outside", "/etc/hostname", "con", "a/b",
    "'",
    '"', "%s%n{0}", "<b>", "nan", "inf", "-1", "1e999", "0x10", "1" * 5000, "true", "null", "[" * 100_000, "{}", "[]",
    "\ufeff",
)  # fmt: skip
NUMBERS = (0, 1, -1, 2, 255, 2**31, 2**31 - 1, 2**32, 2**53, 2**62, 2**63, 2**64, -(2**63), 10**30, 0.5, -0.0, 1e308)
TYPES = (
    "F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "I64", "I32", "I16", "I8", "U8", "U16",
    "U32",
    "U64", "BOOL", "C64", "f32", "", "F128", "Q4_0",
)  # fmt: skip


def odd_value(draw: random.Random, depth: int = 0) -> Any:
    """Something of JSON that stands where something else should."""
    chosen = draw.randrange(9 if depth < 2 else 5)
    if chosen == 0:
        return draw.choice(NUMBERS)
    if chosen in (1, 2):
        return draw.choice(WORDS)
    if chosen in (3, 4):
        return draw.choice([None, True, False, 1e400, float("nan")])
    if chosen in (5, 6):
        return [odd_value(draw, depth + 1) for _ in range(draw.randrange(4))]
    return {draw.choice(WORDS): odd_value(draw, depth + 1) for _ in range(draw.randrange(4))}


def damage_bytes(data: bytes, draw: random.Random, first: int = 0) -> tuple[str, bytes]:
    """Change bytes, most of them among the first ones.

    Args:
        data: Of a file.
        draw: What decides.
        first: Length of a header that is worth more than the rest; 0 for none.

    Returns:
        What was done, and the bytes.
    """
    if not data:
        return "nothing there", data
    end = min(first, len(data)) if first and draw.random() < 0.7 else len(data)
    place, length = draw.randrange(end), draw.choice((1, 2, 4, 8, 64, 1000))
    kind = draw.randrange(8)
    if kind <= 2:
        changed = bytearray(data)
        for _ in range(draw.choice((1, 1, 3, 30))):
            changed[draw.randrange(end)] ^= 1 << draw.randrange(8)
        return "bits flipped", bytes(changed)
    if kind == 3:
        return "cut off", data[: draw.choice((place, 0, 1, 7, 8, len(data) - 1))]
    if kind == 4:
        return "bytes put in", data[:place] + draw.randbytes(length) + data[place:]
    if kind == 5:
        return "bytes twice", data[: place + length] + data[place:]
    if kind == 6:
        return "bytes taken out", data[:place] + data[place + length :]
    return "bytes zeroed", data[:place] + bytes(len(data[place : place + length])) + data[place + length :]


def split_header(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and numbers of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def is_whole(data: bytes) -> bool:
    """Whether a safetensors file has a header that can be changed."""
    try:
        header = split_header(data)[0]
        rows = [header[key] for key in header if key != "__metadata__"]
        return bool(rows) and all({"dtype", "shape", "data_offsets"} <= row.keys() for row in rows)
    except (ValueError, AttributeError, TypeError, RecursionError):
        return False


def join_header(header: Any, numbers: bytes) -> bytes:
    """A safetensors file of them; a string is taken as it is."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + numbers


def damage_header(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    """Change what the header of a safetensors file says."""
    header, numbers = split_header(data)
    keys = [key for key in header if key != "__metadata__"]
    key = draw.choice(keys)
    row = header[key]
    kind = draw.choice((
        "length", "dtype", "shape", "offsets", "key", "key", "metadata", "metadata", "value", "row", "many keys", "whole",
        "blocks", "same place", "empty shape",
    ))  # fmt: skip
    if kind == "length":
        number = draw.choice((0, 1, 2**20, 2**31, 2**63, 2**64 - 1, len(data), draw.randrange(200)))
        return "header length", number.to_bytes(8, "little") + data[8:]
    if kind == "dtype":
        for name in draw.sample(keys, draw.choice((1, 1, min(3, len(keys)), len(keys)))):
            _retype(header[name], draw.choice(TYPES), draw)
        numbers += bytes(draw.choice((0, 0, len(numbers))))
    elif kind == "shape":
        row["shape"] = draw.choice((row["shape"][::-1], [*row["shape"], 1], [], [draw.choice(NUMBERS)], odd_value(draw)))
    elif kind == "offsets":
        row["data_offsets"] = draw.choice(([0, draw.choice(NUMBERS)], row["data_offsets"][::-1], odd_value(draw)))
    elif kind == "key":
        word = draw.choice(WORDS)
        header[draw.choice((word, key + word, word + key))] = header.pop(key)
    elif kind == "metadata":
        known = ("variant", "scale", "normalization", "stem_padding", "unet_weights", "condition", "family", "rank", "kind")
        names = [f"nextcontrol.{name}" for name in known] + ["format", *WORDS]
        header["__metadata__"] = {draw.choice(names): draw.choice(WORDS) for _ in range(draw.randrange(1, 6))}
    elif kind == "value":
        header["__metadata__"] = odd_value(draw)
    elif kind == "row":
        header[key] = odd_value(draw)
    elif kind == "many keys":
        count = draw.choice((1000, 1000, 1000, 100_000))
        header |= {f"{key}.{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(count)}
    elif kind == "blocks":
        pattern = draw.choice(BLOCKS)
        header |= {
            pattern.format(number): {"dtype": "F32", "shape": [0] * draw.randrange(3), "data_offsets": [0, 0]}
            for number in range(draw.choice((200, 5000, 100_000)))
        }
    elif kind == "same place":
        header[key + ".copy"] = row
    elif kind == "empty shape":
        size = row["data_offsets"][1] - row["data_offsets"][0]
        row["shape"] = draw.choice(([0, 2**62], [2**31, 0, 2**31], [1] * 70 + [size // 4], [size // 4], []))
    else:
        return "header anything", join_header(
            draw.choice(("[" * 100_000, "{", "", "null", json.dumps(odd_value(draw)))), numbers
        )
    return f"header {kind}", join_header(header, numbers)


BLOCKS = (
    "control_model.input_blocks.{}.0.weight", "input_blocks.{}.0.op.weight", "down_res.{}.conv1.weight",
    "unet.down_blocks.{}.attentions.0.x",
    "control_model.middle_block.1.transformer_blocks.{}.norm1.weight", "input_blocks.1.1.transformer_blocks.{}.norm1.weight",
    "control_model.loras_dict.x.{}.down.weight", "control_model.loras_dict.{}.0.down.weight",
    "control_model.input_blocks.1.1.transformer_blocks.{}.attn1.to_q.lora_layer.down.weight",
    "down_blocks.{}.resnets.0.conv1.weight",
)  # fmt: skip
"""Names of blocks, of which a file may list any number."""


def _retype(row: dict[str, Any], name: str, draw: random.Random) -> None:
    """Another type; most often with a shape that still fills the same bytes."""
    row["dtype"] = name
    bits = {"64": 64, "32": 32, "16": 16, "_E4M3": 8, "_E5M2": 8, "_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8}
    width = next((number for sign, number in bits.items() if name.endswith(sign)), 0)
    if width in (8, 16) and row["shape"] and draw.random() < 0.7:
        row["shape"][-1] *= 32 // width
    elif width == 64 and row["shape"] and row["shape"][-1] % 2 == 0 and draw.random() < 0.7:
        row["shape"][-1] //= 2
