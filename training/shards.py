"""Batches from encoded tar shards: streamed, in memory no more than two buffers, and still a function of seed and update."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from .backbone import ALONE, Batch, Share
from .config import TrainConfig
from .encoded_pair import EncodedPair
from .objective import Objective
from .shard_index import CURE, Entry, ShardIndex
from .shard_order import Buffer, ShardOrder
from .source import draw_row, held_out_batch, in_batches, own_slots
from .tar_files import DamagedShardError, Sample, read_samples

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

    def pair(self, sample: Sample) -> EncodedPair:
        """A pair, ready to be drawn from."""
        return EncodedPair(sample, self.scale, 1 + self.has_flip, self.empty)

    def read(self, entry: Entry) -> Iterator[Sample]:
        """Stream a shard.

        Args:
            entry: Of the index.

        Yields:
            As many samples as the index says.

        Raises:
            DamagedShardError: It has others than the index says.
        """
        cure = f"delete it and {CURE}"
        count = 0
        for sample in read_samples(self.folder / entry.file, cure):
            count += 1
            yield sample
        if count != entry.count:
            raise DamagedShardError(f"The shard '{entry.file}' has {count} pairs and the index says {entry.count}: {cure}.")

    def first(self, count: int) -> Iterator[EncodedPair]:
        """The first pairs of the first shards."""
        for entry in self.index.shards:
            for sample in self.read(entry):
                if count <= 0:
                    return
                count -= 1
                yield self.pair(sample)


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
            for number, sample in enumerate(self.shards.read(self.shards.index.shards[place.shard])):
                if number >= place.row:
                    yield sample
                    position += 1
