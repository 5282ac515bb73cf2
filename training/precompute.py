"""Encode a dataset into tar shards, in parts that run side by side, and go on where they stopped.

Beside each finished shard lies a .json of the same name; when all are there, the part that sees it first writes the index.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from ..models.foreign import SMALL_FILE, shown
from .chunks import Chunk
from .durable import writing
from .encoded_pair import Checksum, PairEncoder
from .inside import own_place
from .shard_index import ANEW, INDEX, Entry, ShardIndex, differences, load_index, made_from_of, read_json, write_json
from .tar_files import DamagedShardError, Sample
from .tar_writer import Written, remove_left_overs, write_samples

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
        CannotWriteError: The disk is full, or the folder cannot be written to.
    """
    with writing(folder.name):
        remove_left_overs(folder)
    run = _Run(folder, encoder, made_from(encoder))
    run.check()
    own = chunks[part.number :: part.parts]
    encoded = pairs = 0
    for place, chunk in enumerate(own, 1):
        if run.finished(chunk, chunk.source()) is not None:
            continue
        with writing(INDEX):
            (folder / INDEX).unlink(missing_ok=True)

        def count(place: int = place) -> None:
            nonlocal pairs
            pairs += 1
            on_pair(pairs, place, len(own))

        run.encode(chunk, count)
        encoded += 1
    entries = [run.finished(chunk) for chunk in chunks]
    done = [entry for entry in entries if entry is not None]
    index = ShardIndex(run.made_from, tuple(done))
    if len(done) == len(chunks) and not _is_written(index, folder):
        index.write(folder)
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
            problems = differences(about.made_from, self.made_from) if about else []
            if problems:
                name = shown(self.folder.name)
                raise ValueError(f"'{name}' has encoded shards of other settings: {'; '.join(problems)}. {ANEW}")

    def finished(self, chunk: Chunk, source: str | None = None) -> Entry | None:
        """What is known of a shard, if it is finished and, where that is given, of the same files."""
        about = _read_about(self._about(chunk))
        entry = about.entry if about else None
        if entry is None or entry.file != chunk.file or entry.state_in(self.folder):
            return None
        if entry.left_out and self.encoder.settings.bad_pairs == "refuse":
            return None
        if source is not None and entry.source != source:
            logger.warning("'%s' is encoded anew: its pairs have changed", entry.file)
            return None
        return entry

    def encode(self, chunk: Chunk, on_pair: Callable[[], None]) -> None:
        """Write a shard, and then what is known of it."""
        place = own_place(self.folder, chunk.file)
        with writing(chunk.file):
            self._about(chunk).unlink(missing_ok=True)
        source, left_out = chunk.source(), _LeftOut(self.encoder.settings.bad_pairs == "skip")
        checksum = Checksum()
        try:
            written = write_samples(place, checksum.of(self._samples(chunk, left_out, on_pair), chunk.file))
        except DamagedShardError as error:
            left_out.add(error)
            written, checksum = Written(0, 0, ""), Checksum()
            with writing(chunk.file):
                place.unlink(missing_ok=True)
        entry = Entry(chunk.file, source, written.count, written.size, written.digest, left_out.count, str(checksum))
        if written.is_at(place):
            write_json(self.folder, self._about(chunk).name, {"made_from": dict(self.made_from), "entry": asdict(entry)})

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


class _About(NamedTuple):
    made_from: Mapping[str, str]
    entry: Entry


def _read_about(path: Path) -> _About | None:
    """What `_Run.encode` wrote, or None if it is not there or damaged."""
    try:
        about = read_json(path, largest=SMALL_FILE)
        return _About(made_from_of(about), Entry.from_row(about["entry"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_written(index: ShardIndex, folder: Path) -> bool:
    try:
        return load_index(folder) == index
    except ValueError:
        return False
