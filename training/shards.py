"""Batches from encoded tar shards: streamed, in memory no more than two buffers, and still a function of seed and update."""

from __future__ import annotations

import hashlib
import logging
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..models.foreign import first_line, shown
from .backbone import ALONE, Batch, Share
from .config import TrainConfig
from .encoded_pair import SHARD, EncodedPair, checked
from .objective import Objective
from .shard_index import CURE, Entry, ShardIndex
from .shard_order import Buffer, ShardOrder
from .source import draw_row, held_out_batch, in_batches, own_slots
from .tar_files import BadSampleError, DamagedShardError, Sample, open_shard, read_samples

logger = logging.getLogger("nextcontrol")

_ROW = "__row__"
"""Number of a sample in its shard, among its files."""
_CHUNK = 1 << 20
Loaded = dict[int, Sample]
"""Samples by their position in the run."""


@dataclass(frozen=True, eq=False)
class Shards:
    """Encoded shards on disk, and how their pairs are used."""

    folder: Path
    index: ShardIndex
    """Checked: every shard that it names is there."""
    scale: float
    """Factor from the VAE's latents to the model's."""
    empty: Mapping[str, Tensor]
    """The empty text; see `TextEncoder.encode`."""
    has_flip: bool
    prompt_dropout: float
    """As in `DatasetSettings`."""

    roots: Sequence[Path] = ()
    """Folders that a link may lead to; the shards' own if there are none."""
    channels: int = 0
    """Of the model's latents; 0 if nobody knows."""
    _seen: dict[str, Any] = field(default_factory=dict)
    """The shapes of the first pair, and by its name what is known of a shard."""

    def pair(self, sample: Sample) -> EncodedPair:
        """Return a pair, ready to be drawn from.

        Raises:
            DamagedShardError: It does not go with the model, or with the other pairs.
        """
        pair = EncodedPair(sample, self.scale, 1 + self.has_flip, self.empty)
        shapes = pair.shapes
        first = self._seen.setdefault("", shapes)
        if shapes != first or (self.channels and {shape[0] for shape in shapes} != {self.channels}):
            wanted = f"{self.channels} channels" if shapes == first else str(list(first[0]))
            raise DamagedShardError(
                f"The encoded pair '{shown(pair.name)}' has latents of {list(shapes[0])} and must have {wanted}: delete "
                f"'{sample.get(SHARD, 'its shard')}' and {CURE}."
            )
        return pair

    def read(self, entry: Entry) -> Iterator[Sample]:
        """Stream a shard.

        Args:
            entry: Of the index.

        Yields:
            As many samples as the index says, with their number in the shard; fewer where damaged ones are skipped.

        Raises:
            DamagedShardError: It has others than the index says, and that is not to be skipped.
        """
        before: Sample | None = None
        for number, found in enumerate(self._found(entry)):
            if isinstance(found, DamagedShardError):
                self._refuse(entry, found)
                continue
            # One is kept back: the last comes when all of the shard has been seen to be right.
            if before is not None:
                yield before
            before = found | {SHARD: entry.file, _ROW: number}
        if before is not None:
            yield before

    def trained(self, number: int, held_out: Sequence[int]) -> Iterator[Sample]:
        """Stream what is trained of a shard.

        Args:
            number: Of the shard.
            held_out: Of each shard, pairs at its start that are held out.

        Yields:
            As many samples as the index says: in the place of damaged ones come others of the shard once more, or of the
            next if it has none. It is a function of the files, the same for every process and after a resume.

        Raises:
            DamagedShardError: See `read`, or there is no other.
        """
        entries = self.index.shards
        left = entries[number].count - held_out[number]
        for other in (*range(number, len(entries)), *range(number)):
            has_any = True
            while left and has_any:
                has_any = False
                for sample in self.read(entries[other]):
                    if left and sample[_ROW] >= held_out[other]:
                        has_any = True
                        left -= 1
                        yield sample
        if left:
            raise DamagedShardError(f"'{shown(self.folder.name)}' holds no pair that can be read: delete it and {CURE}.")

    def first(self, count: int) -> Iterator[EncodedPair]:
        """The first pairs of the first shards."""
        for entry in self.index.shards:
            held_out = min(count, entry.count)
            count -= held_out
            if held_out:
                own = (sample for sample in self.read(entry) if sample[_ROW] < held_out)
                yield from map(self.pair, own)

    def _found(self, entry: Entry) -> Iterator[Sample | DamagedShardError]:
        """The samples of a shard, and an error in the place of everything that is not as the index says."""
        cure = f"delete it and {CURE}"
        count = checksum = 0
        try:
            if not entry.checksum:
                self._check_digest(entry, cure)
            for sample in read_samples(self.folder / entry.file, cure, self.roots):
                count += 1
                if entry.checksum and not isinstance(sample, BadSampleError):
                    try:
                        checksum = zlib.crc32(checked(sample, entry.file), checksum)
                    except BadSampleError as error:
                        yield error
                        continue
                yield sample
            if count != entry.count:
                raise DamagedShardError(f"The shard '{entry.file}' has {count} pairs and the index says {entry.count}: {cure}.")
            if entry.checksum and f"{checksum:08x}" != entry.checksum:
                raise DamagedShardError(f"The shard '{entry.file}' has other pairs than those of the index: {cure}.")
        except DamagedShardError as error:
            yield error

    def _refuse(self, entry: Entry, error: DamagedShardError) -> None:
        if not self.index.is_skipping:
            raise error
        if self._seen.setdefault(f"skipped {entry.file}", error) is error:
            logger.warning("Skipped, other pairs are trained in its place: %s", error)

    def _check_digest(self, entry: Entry, cure: str) -> None:
        """Read a shard whose pairs have no checksums once before it is used; again if it has changed since."""
        with open_shard(self.folder / entry.file, cure, self.roots) as stream:
            about = os.fstat(stream.fileno())
            state = about.st_ino, about.st_size, about.st_mtime_ns
            if self._seen.get(entry.file) == state:
                return
            digest = hashlib.blake2b(digest_size=20)
            try:
                while data := stream.read(_CHUNK):
                    digest.update(data)
            except OSError as error:
                raise DamagedShardError(f"The shard '{entry.file}' cannot be read ({first_line(error)}): {cure}.") from error
        if digest.hexdigest() != entry.digest:
            raise DamagedShardError(f"The shard '{entry.file}' is damaged, its digest is another: {cure}.")
        self._seen[entry.file] = state


class _Wanted(NamedTuple):
    buffer: Buffer
    share: Share


class ShardSource:
    """What an update is trained on; a `training.backbone.Source`.

    Every process streams all shards and keeps the samples of its own rows alone. While a buffer is trained on, the next one is
    read.

    Args:
        shards: On disk.
        config: The run's settings; `validation_pairs` pairs at the start of the first shard are never trained on.
        objective: Draws the noise levels.
        buffer_size: Pairs that are shuffled at a time.
        condition: See `Batch.condition`.

    Raises:
        ValueError: No pair is left to train on.
    """

    def __init__(
        self, shards: Shards, config: TrainConfig, objective: Objective, buffer_size: int, condition: str = ""
    ) -> None:
        self.shards = shards
        self.config = config
        self.objective = objective
        self.condition = condition
        entries = shards.index.shards
        self.order = ShardOrder([entry.count for entry in entries], config.validation_pairs, buffer_size, config.seed)
        if self.order.total < 1:
            held, found = config.validation_pairs, shards.index.count
            raise ValueError(f"'{shards.folder.name}' has {found} pairs and validation_pairs is {held}: hold out fewer.")
        self._reader = ThreadPoolExecutor(1, "shards")  # one thread, and so one stream
        self._now: tuple[_Wanted | None, Loaded] = None, {}
        self._next: tuple[_Wanted, Future[Loaded]] | None = None
        self._stream: Iterator[Sample] = iter(())
        self._at: tuple[int, int] | None = None
        """Epoch and position of the stream."""

    def batches(self, step: int, share: Share = ALONE) -> list[Batch]:
        """See `training.backbone.Source.batches`."""
        rows = []
        for slot in own_slots(self.config, share):
            pair = self.shards.pair(self._sample(step * self.config.group_size + slot, share))
            dropout = self.shards.prompt_dropout
            rows.append(draw_row(pair, step, slot, self.config.seed, self.objective, dropout, self.condition))
        return in_batches(rows, self.config)

    def held_out(self) -> list[Batch]:
        """One batch for each pair that is held out."""
        pairs = self.shards.first(self.config.validation_pairs)
        return [held_out_batch(pair, self.config.seed, self.objective, self.condition) for pair in pairs]

    def _sample(self, position: int, share: Share) -> Sample:
        wanted = _Wanted(self.order.buffer_at(position), share)
        if self._now[0] != wanted:
            self._now = None, {}
            self._now = wanted, self._load(wanted)
        return self._now[1][position]

    def _load(self, wanted: _Wanted) -> Loaded:
        future = self._next[1] if self._next and self._next[0] == wanted else self._reader.submit(self._read, wanted)
        self._next = None
        loaded = future.result()
        after = _Wanted(self.order.after(wanted.buffer), wanted.share)
        if self.order.first_of(after.buffer) < self.config.steps * self.config.group_size:
            self._next = after, self._reader.submit(self._read, after)
        return loaded

    def _read(self, wanted: _Wanted) -> Loaded:
        """Stream a buffer; runs in the reader's thread."""
        buffer, slots = wanted.buffer, own_slots(self.config, wanted.share)
        positions, loaded = self.order.shuffled(buffer), {}
        start = self.order.start_of(buffer)
        if self._at != (buffer.epoch, start):
            self._stream = self._samples(buffer.epoch, start)
        self._at = None
        for place in range(start, start + len(positions)):
            sample = next(self._stream)
            if positions[place] % self.config.group_size in slots:
                loaded[positions[place]] = sample
        self._at = buffer.epoch, start + len(positions)
        return loaded

    def _samples(self, epoch: int, position: int) -> Iterator[Sample]:
        """An epoch's stream from a position on. Shards before it are not opened."""
        while position < self.order.total:
            place = self.order.place(epoch, position)
            held_out = self.order.skipped
            for number, sample in enumerate(self.shards.trained(place.shard, held_out), held_out[place.shard]):
                if number >= place.row:
                    yield sample
                    position += 1
