"""Pairs of pictures in tar shards, as the `webdataset` library has them: the files of a pair share a key.

    0001.target.jpg, 0001.hint.png, 0001.txt      0001.jpg, 0001.hint.png, 0001.json

The target is `target`, `image`, or a picture with nothing between key and extension; the hint is `hint`, `source`,
`conditioning`, `control` and the like; the caption is a .txt, or "prompt", "text" or "caption" of a .json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from .pairs import CAPTION_KEYS, EXTENSIONS, HINT_FOLDERS, TARGET_FOLDERS, PackedPair
from .pictures import PictureBytes
from .tar_files import DamagedShardError, Sample, read_samples


def find_shards(folder: Path) -> tuple[Path, ...]:
    """The tar shards directly in a folder, by name."""
    return tuple(path for path in sorted(folder.glob("*.tar")) if path.is_file() and not path.name.startswith("."))


def read_pairs(path: Path) -> Iterator[PackedPair | ValueError]:
    """Stream the pairs of a shard.

    Args:
        path: Of the shard.

    Yields:
        Pairs in the order of the file; an error, not raised, in the place of one that has no hint or no target.

    Raises:
        DamagedShardError: The shard cannot be read, or holds no sample.
    """
    is_empty = True
    for sample in read_samples(path):
        is_empty = False
        try:
            pair = pair_of(sample, path.name)
        except ValueError as error:
            yield error
        else:
            yield pair
    if is_empty:
        raise DamagedShardError(f"The shard '{path.name}' is empty: delete it, or set bad_pairs to skip.")


def pair_of(sample: Sample, shard: str) -> PackedPair:
    """The pair that a sample holds.

    Args:
        sample: From `tar_files.read_samples`.
        shard: File name, for messages.

    Returns:
        The pair, its pictures not decoded.

    Raises:
        ValueError: Hint or target is missing, or the .json is damaged.
    """
    key = sample["__key__"]
    name = f"{shard}/{key}"
    roles = {suffix: suffix.rpartition(".")[0] for suffix in sample if f".{suffix.rpartition('.')[2]}" in EXTENSIONS}
    target = _first(roles, (*TARGET_FOLDERS, ""))
    hint = _first(roles, HINT_FOLDERS)
    if target is None or hint is None:
        missing = "target" if target is None else "hint"
        has = ", ".join(suffix for suffix in sample if not suffix.startswith("__"))
        raise ValueError(f"'{name}' has no {missing} (it has {has}): add '{key}.{missing}.png', or set bad_pairs to skip.")
    given, wanted = (PictureBytes(f"{name}.{suffix}", sample[suffix]) for suffix in (hint, target))
    return PackedPair(name, given, wanted, " ".join(_caption_of(sample, name).split()))


def _first(roles: dict[str, str], wanted: Sequence[str]) -> str | None:
    return next((suffix for role in wanted for suffix, own in roles.items() if own == role), None)


def _caption_of(sample: Sample, name: str) -> str:
    text = next((sample[suffix] for suffix in sample if suffix == "txt" or suffix.endswith(".txt")), None)
    if text is not None:
        return str(text, encoding="utf-8", errors="replace")
    try:
        row = json.loads(sample.get("json", b"{}"))
    except ValueError as error:
        raise ValueError(f"The .json of '{name}' is damaged ({error}): mend it, or set bad_pairs to skip.") from error
    return next((str(row[key]) for key in CAPTION_KEYS if row.get(key)), "") if isinstance(row, dict) else ""
