"""Write part of a weight file as a new safetensors file, tensor by tensor, into one of our model folders."""

from __future__ import annotations

import json
import logging
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from ...models.ctrlora_file import is_alpha, with_alpha
from ...models.describe import TYPE_NAMES, FileDescription, describe_file
from ...models.extract import PARTS, Extract, extract_part, is_converted, to_dtype
from ...models.foreign import shown
from .controlnext_file import check_choice
from .files import check_finite, check_types, read_file
from .folders import CONTROL_FOLDERS, find_file, first_place

logger = logging.getLogger("nextcontrol")

KEEP = "keep"
TYPES: dict[str, torch.dtype | None] = {KEEP: None, **{name: dtype for dtype, name in TYPE_NAMES.items()}}
SAFETENSORS = "safetensors"
LAYOUTS = (SAFETENSORS, "ckpt")
EXTENSION = f".{SAFETENSORS}"
LONGEST_KEY = 100
"""Characters of a name in a header that is carried over."""
_NUMBERED = (f"{name}{number}" for name in ("COM", "LPT") for number in "123456789")
_DEVICES = frozenset({"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", *_NUMBERED})
"""Names that Windows gives to devices, whatever extension follows."""
# Names in the header of the format; see huggingface/safetensors README, "Format".
_HEADER_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int64: "I64", torch.int32: "I32",
    torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def convert_file(file: str, part: str, dtype: str, name: str, condition: str = "", layout: str = SAFETENSORS) -> str:
    """Write one part of a weight file as a file of its own.

    Args:
        file: As chosen in the combo.
        part: See `extract_part`.
        dtype: Row of `TYPES`.
        name: Of the new file, with or without sub-folders; empty for one made from the old name.
        condition: Which one, of a pretraining checkpoint.
        layout: Of `LAYOUTS`; "ckpt" is what the authors' own programs read, a pickle of tensors without a header.

    Returns:
        The new file's name, as the loaders list it.

    Raises:
        FileNotFoundError: The file is not there.
        UnsupportedCheckpointError: It is damaged, or of a kind that is not converted.
        ValueError: A choice does not fit, a value is beyond the type, or the new file cannot be written.
    """
    check_choice("part", part, PARTS)
    check_choice("dtype", dtype, tuple(TYPES))
    check_choice("format", layout, LAYOUTS)
    chosen = check_name(name)
    tensors, metadata = read_file(find_file(file, CONTROL_FOLDERS), file)
    extract = extract_part(tensors, file, part, condition.strip())
    check_types({key: tensor for key, tensor in extract.tensors.items() if not is_alpha(key)}, file)
    relative = (chosen or _derived_name(file, extract, dtype)).with_suffix(f".{layout}")
    kind = "ctrlora" if extract.is_ctrlora else "controlnext"
    target = first_place(kind) / relative
    title = shown(f"models/{kind}/{relative}")
    taken = f"'{title}' is there already and files are never overwritten: choose another name."
    about = describe_file(extract.tensors, file, metadata, 0)
    try:
        if target.exists():
            raise ValueError(taken)
        with _new_file(target) as stream:
            if layout == SAFETENSORS:
                _write(stream, extract.tensors, TYPES[dtype], _metadata(extract, about, file), file)
            else:
                _write_pickle(stream, extract.tensors, TYPES[dtype], file)
    except FileExistsError as error:
        raise ValueError(taken) from error
    except OSError as error:
        raise ValueError(
            f"'{title}' cannot be written ({error.strerror or error}): free some space or choose another name."
        ) from error
    logger.info("'%s': %s, %d tensors, made from '%s'", title, extract.kind, about.tensors, shown(file))
    return relative.as_posix()


def check_name(name: str) -> PurePosixPath | None:
    """Make sure that a file's name stays inside our folder and is possible on every system.

    Args:
        name: As typed by the user; both path separators work, the extension is optional.

    Returns:
        A relative path with the extension, or None if `name` is empty.

    Raises:
        ValueError: It leaves the folder, or holds a sign that some system forbids.
    """
    text = name.strip().replace("\\", "/")
    if not text:
        return None
    stem = re.sub(r"\.(safetensors|sft|ckpt|pth?|bin)$", "", text, flags=re.IGNORECASE)
    if not all(map(_is_possible, stem.split("/"))):
        raise ValueError(
            f"name is '{shown(name)}' and must be a file name, with sub-folders inside the model folder at "
            'most: leave out drives, "..", a slash at either end, the signs < > : " | ? * and names of devices as CON or NUL.'
        )
    return PurePosixPath(stem + EXTENSION)


def _is_possible(part: str) -> bool:
    """Whether every system takes this for the name of a file or folder, and none for another folder's."""
    is_device = part.partition(".")[0].rstrip().upper() in _DEVICES
    is_clean = part == part.strip().rstrip(".") and part.isprintable() and not re.search(r'[<>:"|?*]', part)
    return part != "" and is_clean and not is_device


def _derived_name(file: str, extract: Extract, dtype: str) -> PurePosixPath:
    """The old name without its extension, and what has been changed."""
    stem = re.sub(r"\.\w+$", "", file.replace("\\", "/"))
    changes = (extract.condition, "" if extract.is_whole else extract.part, "" if dtype == KEEP else dtype)
    name = check_name("_".join([stem or "converted", *filter(None, changes)]))
    assert name is not None
    return name


def _metadata(extract: Extract, about: FileDescription, source: str) -> dict[str, str]:
    """What the old file says of itself, corrected by what is known of the new one."""
    own = {
        "kind": extract.kind,
        "rank": ",".join(map(str, about.ranks)),
        "condition": extract.condition or (about.metadata.get("nextcontrol.condition", "") if extract.part != "base" else ""),
        "family": about.family or about.metadata.get("nextcontrol.family", ""),
        "variant": about.variant or about.metadata.get("nextcontrol.variant", ""),
        "source": source.replace("\\", "/"),
    }
    kept = {
        key: value
        for key, value in about.metadata.items()
        if key.removeprefix("nextcontrol.") not in own and key.isprintable() and len(key) <= LONGEST_KEY
    }
    said = kept | {f"nextcontrol.{key}": value for key, value in own.items() if value}
    return {key: _clean(value) for key, value in said.items()}


def _clean(value: str) -> str:
    """A value of a header without what a reader stumbles over; line breaks stay, since some trainers describe their work."""
    return "".join(sign if sign.isprintable() or sign in "\n\t" else "?" for sign in value)


@contextmanager
def _new_file(target: Path) -> Iterator[BinaryIO]:
    """A file that has its name when it is complete, and leaves nothing behind when it fails."""
    made = [folder for folder in target.parents if not folder.exists()]
    temporary = target.with_name(f".{uuid.uuid4().hex}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        target.open("xb").close()  # takes the name, or fails if somebody else has it by now
        try:
            temporary.replace(target)
        except OSError:
            target.unlink()
            raise
        made = []
    finally:
        temporary.unlink(missing_ok=True)
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def _write(
    stream: BinaryIO, tensors: Mapping[str, Tensor], dtype: torch.dtype | None, metadata: dict[str, str], name: str
) -> None:
    """Write the header, then one tensor after the other: no more than one is in memory."""
    types = {key: dtype if dtype is not None and is_converted(key, tensor) else tensor.dtype for key, tensor in tensors.items()}
    # Wide types first: every tensor is aligned, as the format's own writer has it.
    order = sorted(tensors, key=lambda key: (-types[key].itemsize, key))
    header: dict[str, object] = {"__metadata__": metadata}
    offset = 0
    for key in order:
        if types[key] not in _HEADER_TYPES:
            raise ValueError(
                f"'{shown(name)}' has '{shown(key)}' of type {types[key]}, which safetensors cannot hold: choose another dtype."
            )
        end = offset + tensors[key].numel() * types[key].itemsize
        header[key] = {"dtype": _HEADER_TYPES[types[key]], "shape": list(tensors[key].shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    bar = comfy.utils.ProgressBar(len(order))
    for key in order:
        comfy.model_management.throw_exception_if_processing_interrupted()
        check_finite({key: tensors[key]}, name)
        weight = to_dtype(tensors[key], dtype, key, name)
        stream.write(weight.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        bar.update(1)


def _write_pickle(stream: BinaryIO, tensors: Mapping[str, Tensor], dtype: torch.dtype | None, name: str) -> None:
    """Write a flat dictionary of tensors, as the authors' extraction does; their programs know no alpha.

    Source: xyfJASON/ctrlora@b4422b4 scripts/tool_extract_weights.py.
    """
    check_finite(tensors, name)
    # Copies: a view of a mapped file would bring the whole file along.
    torch.save({key: to_dtype(tensor, dtype, key, name).clone() for key, tensor in with_alpha(tensors, name).items()}, stream)
