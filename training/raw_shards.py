"""Pairs of pictures in tar shards, as the `webdataset` library has them: the files of a pair share a key.

    0001.target.jpg, 0001.hint.png, 0001.txt      0001.jpg, 0001.hint.png, 0001.json

The target is `target`, `image`, or a picture with nothing between key and extension; the hint is `hint`, `source`,
`conditioning`, `control` and the like; the caption is a .txt, or "prompt", "text" or "caption" of a .json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..models.foreign import first_line, parse_json, shown
from .pairs import EXTENSIONS, HINT_FOLDERS, TARGET_FOLDERS, PackedPair
from .pictures import PictureBytes
from .tar_files import DamagedShardError, Sample, read_samples
from .texts import MARK, UnreadableTextError, caption_in, caption_of, decode

LONGEST_KEY = 255
"""Signs of a sample's key in the name of its pair."""


def find_shards(folder: Path) -> tuple[Path, ...]:
    """The tar shards directly in a folder, by name."""
    return tuple(path for path in sorted(folder.glob("*.tar")) if path.is_file() and not path.name.startswith("."))


def read_pairs(path: Path, roots: Sequence[Path] = ()) -> Iterator[PackedPair | ValueError]:
    """Stream the pairs of a shard.

    Args:
        path: Of the shard.
        roots: See `tar_files.read_samples`.

    Yields:
        Pairs in the order of the file; an error, not raised, in the place of one that cannot be used.

    Raises:
        DamagedShardError: The shard cannot be read, or holds no sample.
    """
    is_empty = True
    for sample in read_samples(path, roots=roots, is_wanted=_is_wanted):
        is_empty = False
        if isinstance(sample, ValueError):
            yield sample
            continue
        try:
            pair = pair_of(sample, path.name)
        except ValueError as error:
            yield error
        else:
            yield pair
    if is_empty:
        raise DamagedShardError(f"The shard '{shown(path.name)}' is empty: delete it, or set bad_pairs to skip.")


def pair_of(sample: Sample, shard: str) -> PackedPair:
    """The pair that a sample holds.

    Args:
        sample: From `tar_files.read_samples`.
        shard: File name, for messages.

    Returns:
        The pair, its pictures not decoded.

    Raises:
        ValueError: Hint or target is missing, or the caption cannot be read.
    """
    key = shown(sample["__key__"], LONGEST_KEY)
    name = f"{shown(shard)}/{key}"
    roles = {suffix: suffix.rpartition(".")[0] for suffix in sample if _is_picture(suffix)}
    target = _first(roles, (*TARGET_FOLDERS, ""))
    hint = _first(roles, HINT_FOLDERS)
    if target is None or hint is None:
        missing = "target" if target is None else "hint"
        has = shown(", ".join(suffix for suffix in sample if not suffix.startswith("__")))
        short = shown(key, 40)
        raise ValueError(
            f"'{shown(name)}' has no {missing} (it has {has}): add '{short}.{missing}.png', or set bad_pairs to skip."
        )
    given, wanted = (PictureBytes(f"{name}.{shown(suffix, 40)}", sample[suffix]) for suffix in (hint, target))
    return PackedPair(name, given, wanted, _caption_of(sample, name))


def _is_picture(suffix: str) -> bool:
    return f".{suffix.rpartition('.')[2]}" in EXTENSIONS


def _is_text(suffix: str) -> bool:
    return suffix == "txt" or suffix.endswith(".txt")


def _is_wanted(suffix: str) -> bool:
    return suffix == "json" or _is_text(suffix) or _is_picture(suffix)


def _first(roles: dict[str, str], wanted: Sequence[str]) -> str | None:
    return next((suffix for role in wanted for suffix, own in roles.items() if own == role), None)


def _caption_of(sample: Sample, name: str) -> str:
    suffix = next(filter(_is_text, sample), "json" if "json" in sample else "")
    if not suffix:
        return ""
    own = f"{name}.{suffix}"
    try:
        text = decode(sample[suffix], own)
        return caption_of(text, own) if suffix != "json" else caption_in(_row_in(text, name), own)
    except UnreadableTextError as error:
        raise UnreadableTextError(f"{str(error).removesuffix('.')}, or set bad_pairs to skip.") from error


def _row_in(text: str, name: str) -> Mapping[str, Any]:
    try:
        row = parse_json(text.strip(MARK), strict=False)
        if not isinstance(row, dict):
            raise ValueError("it is no JSON object")
        return row
    except ValueError as error:
        raise UnreadableTextError(f"The .json of '{shown(name)}' is damaged ({first_line(error)}): mend it.") from error
