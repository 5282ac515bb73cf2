"""What a folder of encoded shards holds, from what and by what it was encoded."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .cache import digest_of
from .durable import write_text
from .tar_files import DamagedShardError

logger = logging.getLogger("nextcontrol")

INDEX = "index.json"
KIND = "nextcontrol encoded shards 1"
CURE = "run scripts/train.py CONFIG.json --precompute again"
NAMED = 3
"""Shards that a message names."""
LONGEST = 16
"""Letters of a setting; what is longer is a digest."""
ANEW = "Encode into another folder (dataset.shards.folder), or delete that one."


@dataclass(frozen=True)
class Entry:
    """One encoded shard."""

    file: str
    """Its name."""
    source: str
    """Names the files that it was made from."""
    count: int
    """Pairs; 0 if all were left out, and then there is no file."""
    size: int
    """Bytes."""
    digest: str
    """Names its content."""
    left_out: int = 0
    """Pairs that could not be used, or 1 for a shard that could not be read."""

    def is_in(self, folder: Path) -> bool:
        """Whether the file is there in its full size."""
        path = folder / self.file
        return not self.count or (path.is_file() and path.stat().st_size == self.size)


@dataclass(frozen=True)
class ShardIndex:
    """All shards of a folder."""

    made_from: Mapping[str, str]
    """Encoders and settings, by name."""
    shards: tuple[Entry, ...]

    @property
    def count(self) -> int:
        """Pairs."""
        return sum(entry.count for entry in self.shards)

    @property
    def digest(self) -> str:
        """Names the content of all pairs."""
        return digest_of([(entry.file, entry.digest) for entry in self.shards if entry.count])

    def write(self, folder: Path) -> None:
        """Put it beside the shards."""
        about = {"left_out": sum(entry.left_out for entry in self.shards), "bytes": sum(entry.size for entry in self.shards)}
        rows = [asdict(entry) for entry in self.shards]
        whole = {"kind": KIND, "made_from": dict(self.made_from), "pairs": self.count, **about, "shards": rows}
        write_json(folder / INDEX, whole)

    def check_made_from(self, wanted: Mapping[str, str], name: str) -> None:
        """Refuse shards that another encoder or other settings made.

        Args:
            wanted: What it should be made from; further keys do not count.
            name: Of the folder, for the message.

        Raises:
            ValueError: With every difference.
        """
        if problems := differences(self.made_from, wanted):
            raise ValueError(f"The encoded shards in '{name}' are of other settings: {'; '.join(problems)}. {ANEW}")

    def check_files(self, folder: Path, is_skipping: bool) -> ShardIndex:
        """Make sure that every shard is there in its full size.

        Args:
            folder: Of the shards.
            is_skipping: Leave out those that are not, and say so; else refuse.

        Returns:
            What is left, with one shard or more.

        Raises:
            DamagedShardError: One is missing or cut off.
        """
        bad = [entry for entry in self.shards if not entry.is_in(folder)]
        lost = frozenset(bad)
        phrases = [f"'{entry.file}' is {_state_of(folder / entry.file, entry)}" for entry in bad[:NAMED]]
        more = f", and {len(bad) - NAMED} more like that" if len(bad) > NAMED else ""
        if bad and not is_skipping:
            raise DamagedShardError(f"In '{folder.name}' {', '.join(phrases)}{more}: {CURE}, or set bad_pairs to skip.")
        kept = replace(self, shards=tuple(entry for entry in self.shards if entry not in lost and entry.count))
        if bad:
            missing = f"{self.count - kept.count} of {self.count}"
            logger.warning("Left out with %s pairs: in '%s' %s%s", missing, folder.name, ", ".join(phrases), more)
        if not kept.shards:
            raise DamagedShardError(f"'{folder.name}' holds no pair: {CURE}.")
        return kept


def differences(made_from: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """What is another, one phrase each; digests are not spelled out."""
    changed = {key: made_from.get(key, "not known") for key in wanted if made_from.get(key) != wanted[key]}
    return [
        f"the {key} is another" if len(wanted[key]) > LONGEST else f"{key} was {was} and is {wanted[key]}"
        for key, was in changed.items()
    ]


def _state_of(path: Path, entry: Entry) -> str:
    return f"cut off ({path.stat().st_size} of {entry.size} bytes)" if path.is_file() else "missing"


def has_index(folder: Path) -> bool:
    """Whether the folder holds encoded shards, all of them done."""
    return (folder / INDEX).is_file()


def load_index(folder: Path) -> ShardIndex:
    """Read what `ShardIndex.write` wrote.

    Args:
        folder: Of the shards.

    Returns:
        The index; the shards are not looked at.

    Raises:
        ValueError: It is damaged, or of another kind.
    """
    try:
        found = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if found["kind"] != KIND:
            raise ValueError(f"it is '{found['kind']}' and must be '{KIND}'")
        return ShardIndex(found["made_from"], tuple(Entry(**row) for row in found["shards"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"'{INDEX}' in '{folder.name}' cannot be used ({error}): delete it and {CURE}.") from error


def check_sources(index: ShardIndex, sources: Sequence[str], name: str) -> None:
    """Refuse encoded shards of pairs that have changed since.

    Args:
        index: Of the encoded shards.
        sources: What `Entry.source` should be, in order.
        name: Of their folder, for the message.

    Raises:
        ValueError: They are stale.
    """
    stale = [entry.file for entry, source in zip(index.shards, sources, strict=False) if entry.source != source]
    if len(index.shards) != len(sources):
        raise ValueError(f"'{name}' has {len(index.shards)} encoded shards and the pairs now make {len(sources)}: {CURE}.")
    if stale:
        raise ValueError(f"The pairs of {', '.join(stale[:NAMED])} in '{name}' have changed since they were encoded: {CURE}.")


def write_json(path: Path, content: Any) -> None:
    """Write a file that is whole or not there, whoever else writes it."""
    write_text(path, json.dumps(content, indent=1))
