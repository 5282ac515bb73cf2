"""Encode a dataset into tar shards, in parts that run side by side, and go on where they stopped.

Beside each finished shard lies a .json of the same name; when all are there, the part that sees it first writes the index.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from .chunks import Chunk
from .encoded_pair import PairEncoder
from .shard_index import ANEW, INDEX, Entry, ShardIndex, differences, has_index, write_json
from .tar_files import DamagedShardError, Sample, Written, write_samples

logger = logging.getLogger("nextcontrol")


class Part(NamedTuple):
    """What one of several processes or machines encodes: every `parts`-th shard."""

    number: int = 0
    """From 0."""
    parts: int = 1


WHOLE = Part()


class Progress(NamedTuple):
    """What a part has done."""

    encoded: int
    """Shards that it encoded now."""
    finished: int
    """Shards that were finished before, of its own."""
    open: int
    """Shards that other parts have not finished yet."""


def made_from(encoder: PairEncoder) -> dict[str, str]:
    """What decides the content of encoded shards besides the pairs, by name."""
    return {
        "VAE": encoder.pictures.identity,
        "text encoder": encoder.texts.identity,
        "hint form": encoder.hint_form,
        "resolution": str(encoder.settings.resolution),
        "mirrored": "yes" if encoder.settings.has_flip else "no",
        "precision": encoder.precision,
    }


def precompute(
    chunks: Sequence[Chunk],
    folder: Path,
    encoder: PairEncoder,
    part: Part = WHOLE,
    on_pair: Callable[[int, int, int], None] = lambda _pairs, _shard, _shards: None,
) -> Progress:
    """Encode the shards of a part that are not finished yet.

    Args:
        chunks: Of the whole dataset.
        folder: For the encoded shards.
        encoder: What encodes.
        part: Which shards are this process's.
        on_pair: Called after each pair with how many this process has encoded, the number of its shard, from 1, and how many
            shards are its own; may raise.

    Returns:
        What was done. The index is there when nothing is open.

    Raises:
        ValueError: The folder has shards of another encoder or other settings, or a pair cannot be used.
    """
    run = _Run(folder, encoder, made_from(encoder))
    run.check()
    own = chunks[part.number :: part.parts]
    encoded = pairs = 0
    for place, chunk in enumerate(own, 1):
        if run.finished(chunk, chunk.source()) is not None:
            continue
        (folder / INDEX).unlink(missing_ok=True)

        def count(place: int = place) -> None:
            nonlocal pairs
            pairs += 1
            on_pair(pairs, place, len(own))

        run.encode(chunk, count)
        encoded += 1
    entries = [run.finished(chunk) for chunk in chunks]
    done = [entry for entry in entries if entry is not None]
    if len(done) == len(chunks) and (encoded or not has_index(folder)):
        ShardIndex(run.made_from, tuple(done)).write(folder)
    return Progress(encoded, len(own) - encoded, len(chunks) - len(done))


@dataclass(frozen=True, eq=False)
class _Run:
    folder: Path
    encoder: PairEncoder
    made_from: Mapping[str, str]

    def check(self) -> None:
        """Refuse to mix shards of two encoders in one folder."""
        for path in sorted(self.folder.glob("shard-*.json")):
            about = _read_about(path)
            problems = differences(about["made_from"], self.made_from) if about else []
            if problems:
                raise ValueError(f"'{self.folder.name}' has encoded shards of other settings: {'; '.join(problems)}. {ANEW}")

    def finished(self, chunk: Chunk, source: str | None = None) -> Entry | None:
        """What is known of a shard, if it is finished and, where that is given, of the same files."""
        about = _read_about(self._about(chunk))
        entry = Entry(**about["entry"]) if about else None
        if entry is None or not entry.is_in(self.folder):
            return None
        if entry.left_out and self.encoder.settings.bad_pairs == "refuse":
            return None
        if source is not None and entry.source != source:
            logger.warning("'%s' is encoded anew: its pairs have changed", entry.file)
            return None
        return entry

    def encode(self, chunk: Chunk, on_pair: Callable[[], None]) -> None:
        """Write a shard, and then what is known of it."""
        self._about(chunk).unlink(missing_ok=True)
        source, left_out = chunk.source(), _LeftOut(self.encoder.settings.bad_pairs == "skip")
        try:
            written = write_samples(self.folder / chunk.file, self._samples(chunk, left_out, on_pair))
        except DamagedShardError as error:
            left_out.add(error)
            written = Written(0, 0, "")
            (self.folder / chunk.file).unlink(missing_ok=True)
        entry = Entry(chunk.file, source, written.count, written.size, written.digest, left_out.count)
        write_json(self._about(chunk), {"made_from": dict(self.made_from), "entry": asdict(entry)})

    def _samples(self, chunk: Chunk, left_out: _LeftOut, on_pair: Callable[[], None]) -> Iterator[Sample]:
        for number, pair in enumerate(chunk.pairs()):
            try:
                if isinstance(pair, ValueError):
                    raise pair
                yield self.encoder.sample(pair, f"{number:08d}")
            except ValueError as error:
                left_out.add(error)
            on_pair()

    def _about(self, chunk: Chunk) -> Path:
        return (self.folder / chunk.file).with_suffix(".json")


class _LeftOut:
    """Pairs that cannot be used: said and counted, or refused."""

    def __init__(self, is_skipping: bool) -> None:
        self.is_skipping = is_skipping
        self.count = 0

    def add(self, error: ValueError) -> None:
        """Take one more note.

        Raises:
            ValueError: That error, where it is not to be skipped.
        """
        if not self.is_skipping:
            raise error
        logger.warning("Left out: %s", error)
        self.count += 1


def _read_about(path: Path) -> dict[str, dict] | None:
    """What `_Run.encode` wrote, or None if it is not there or damaged."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return about if isinstance(about, dict) and {"made_from", "entry"} <= about.keys() else None
