"""What a folder of encoded shards holds, from what and by what it was encoded."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..models.foreign import first_line, parse_json, shown
from .cache import digest_of
from .durable import write_text
from .inside import check_inside, open_inside, own_place
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
LARGEST_INDEX = 1 << 26
"""Bytes, which 200,000 shards take."""
LEAST_BYTES = 1024
"""Of a pair in a shard: a header and a block."""
_MOST_BYTES = 1 << 50
"""Of a shard."""
_NAME = re.compile(r"shard-([0-9]{6,9})\.tar")
_DIGEST = re.compile(r"[0-9a-f]{0,128}")


def file_name(number: int) -> str:
    """The name of an encoded shard."""
    return f"shard-{number:06d}.tar"


@dataclass(frozen=True)
class Entry:
    """One encoded shard.

    Raises:
        ValueError: It describes no shard of ours.
    """

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
    checksum: str = ""
    """Of its pairs' checksums; empty in shards of before there were any."""

    def __post_init__(self) -> None:
        numbers, texts = (self.count, self.size, self.left_out), (self.file, self.source, self.digest, self.checksum)
        if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
            raise ValueError("a shard has a value of a wrong type")
        match = _NAME.fullmatch(self.file)
        if match is None or file_name(int(match[1])) != self.file:
            raise ValueError(f"'{shown(self.file)}' is no name of a shard, such as '{file_name(0)}'")
        if not 0 <= self.count * LEAST_BYTES <= self.size <= _MOST_BYTES or not 0 <= self.left_out <= _MOST_BYTES:
            raise ValueError(f"'{self.file}' cannot have {self.count} pairs in {self.size} bytes and {self.left_out} left out")
        if not all(_DIGEST.fullmatch(text) for text in texts[1:]):
            raise ValueError(f"a digest of '{self.file}' is none")

    @classmethod
    def from_row(cls, row: Any) -> Entry:
        """Return an entry that a file has.

        Args:
            row: What lies in its place.

        Returns:
            Checked.

        Raises:
            ValueError: It is none; a short reason.
        """
        known = {field.name for field in fields(cls)}
        if not isinstance(row, dict) or not {"file", "source", "count", "size", "digest"} <= row.keys() <= known:
            raise ValueError("a shard is described by other names")
        return cls(**row)

    def state_in(self, folder: Path, roots: Sequence[Path] = ()) -> str:
        """What is wrong with the file, without reading it: "missing" and the like; empty if nothing is."""
        if not self.count:
            return ""
        try:
            path = check_inside(folder / self.file, roots or (folder,), self.file)
            size = path.stat().st_size if path.is_file() else None
        except ValueError:
            return "a link that leads out"
        except OSError as error:
            return f"not readable ({first_line(error)})"
        if size is None:
            return "missing"
        return "" if size == self.size else f"cut off ({size} of {self.size} bytes)"


@dataclass(frozen=True)
class ShardIndex:
    """All shards of a folder."""

    made_from: Mapping[str, str]
    """Encoders and settings, by name."""
    shards: tuple[Entry, ...]
    is_skipping: bool = False
    """Whether pairs that turn out to be damaged are skipped; else they are refused."""

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
        write_json(folder, INDEX, whole)

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

    def check_files(self, folder: Path, is_skipping: bool, roots: Sequence[Path] = ()) -> ShardIndex:
        """Make sure that every shard is there in its full size.

        Args:
            folder: Of the shards.
            is_skipping: Leave out those that are not, and say so; else refuse.
            roots: Folders that a link may lead to; the shards' own if there are none.

        Returns:
            What is left, with one shard or more.

        Raises:
            DamagedShardError: One is missing or cut off.
        """
        states = {entry.file: state for entry in self.shards if (state := entry.state_in(folder, roots))}
        bad = [entry for entry in self.shards if entry.file in states]
        lost = frozenset(bad)
        phrases = [f"'{entry.file}' is {states[entry.file]}" for entry in bad[:NAMED]]
        more = f", and {len(bad) - NAMED} more like that" if len(bad) > NAMED else ""
        if bad and not is_skipping:
            raise DamagedShardError(f"In '{folder.name}' {', '.join(phrases)}{more}: {CURE}, or set bad_pairs to skip.")
        own = tuple(entry for entry in self.shards if entry not in lost and entry.count)
        kept = replace(self, shards=own, is_skipping=is_skipping)
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
        f"the {key} is another" if len(wanted[key]) > LONGEST else f"{key} was {shown(was, 40)} and is {wanted[key]}"
        for key, was in changed.items()
    ]


def has_index(folder: Path) -> bool:
    """Whether the folder holds encoded shards, all of them done."""
    return (folder / INDEX).is_file()


def load_index(folder: Path, roots: Sequence[Path] = ()) -> ShardIndex:
    """Read what `ShardIndex.write` wrote.

    Args:
        folder: Of the shards.
        roots: Folders that a link may lead to; the shards' own if there are none.

    Returns:
        The index; the shards are not looked at.

    Raises:
        ValueError: It is damaged, of another kind, or leads elsewhere.
    """
    try:
        found = read_json(folder / INDEX, roots)
        if not isinstance(found, dict) or found.get("kind") != KIND:
            kind = found.get("kind") if isinstance(found, dict) else type(found).__name__
            raise ValueError(f"it is '{shown(kind, 40)}' and must be '{KIND}'")
        rows = found.get("shards")
        if not isinstance(rows, list):
            raise ValueError("it has no list of shards")
        index = ShardIndex(made_from_of(found), tuple(map(Entry.from_row, rows)))
        if len({entry.file for entry in index.shards}) < len(rows):
            raise ValueError("it has a shard twice")
        if found.get("pairs", index.count) != index.count:
            raise ValueError(f"its shards have {index.count} pairs, and it says {shown(found['pairs'], 20)}")
        return index
    except (ValueError, OSError) as error:
        raise ValueError(
            f"'{INDEX}' in '{shown(folder.name)}' cannot be used ({first_line(error)}): delete it and {CURE}."
        ) from error


def made_from_of(found: Mapping[str, Any]) -> dict[str, str]:
    """Return what shards were made from.

    Args:
        found: What a file says of them.

    Returns:
        Encoders and settings, by name.

    Raises:
        ValueError: It is none; a short reason.
    """
    made_from = found.get("made_from")
    if not isinstance(made_from, dict) or not all(isinstance(value, str) for value in made_from.values()):
        raise ValueError("it does not say what its shards were made from")
    return made_from


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


def write_json(folder: Path, name: str, content: Any) -> None:
    """Write a file that is whole or not there, whoever else writes it; nothing is written through a link.

    Raises:
        CannotWriteError: The disk is full, or the folder cannot be written to.
        ValueError: A link has its place.
    """
    write_text(own_place(folder, name), json.dumps(content, indent=1))


def read_json(path: Path, roots: Sequence[Path] = (), largest: int = LARGEST_INDEX) -> Any:
    """Read a file that lies beside the shards.

    Args:
        path: Of the file.
        roots: Folders that a link may lead to; its own if there are none.
        largest: Bytes.

    Returns:
        What it holds.

    Raises:
        OSError: It cannot be opened.
        ValueError: It leads elsewhere, is too large, or no JSON.
    """
    with open_inside(path, roots or (path.parent,), path.name) as stream:
        data = stream.read(largest + 1)
    if len(data) > largest:
        raise ValueError(f"it has more than {largest} bytes")
    return parse_json(data)
