"""Which pair stands where when encoded shards are streamed: a function of the seed and of the shards' counts alone."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

import torch

from .draws import generator_for


class Place(NamedTuple):
    """Where a pair lies."""

    shard: int
    """Number of the shard."""
    row: int
    """Number of the pair in it, from 0."""


class Buffer(NamedTuple):
    """A piece of an epoch's stream that is shuffled at a time."""

    epoch: int
    number: int
    """In the epoch."""


@dataclass(eq=False)
class ShardOrder:
    """The order of the pairs in each epoch.

    The shards of an epoch come in an order of its own; the stream of their pairs is cut into buffers, and the pairs of a buffer
    come in an order of its own. The epochs follow each other without a gap, so that each sees every pair exactly once.
    """

    counts: Sequence[int]
    """Pairs of each shard."""
    held_out: int
    """Pairs that are left out, the first ones of the first shards."""
    buffer_size: int
    """Pairs in a buffer."""
    seed: int
    _epoch: int = -1
    _shards: list[int] = field(default_factory=list)
    _ends: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        starts = accumulate(self.counts, initial=0)
        self.skipped = [min(count, max(0, self.held_out - start)) for count, start in zip(self.counts, starts, strict=False)]
        """Of each shard, pairs at its start that are held out."""
        self.total = sum(self.counts) - sum(self.skipped)
        """Pairs in an epoch."""

    def buffer_at(self, position: int) -> Buffer:
        """The buffer that the run's `position`-th pair is in."""
        epoch, within = divmod(position, self.total)
        return Buffer(epoch, within // self.buffer_size)

    def first_of(self, buffer: Buffer) -> int:
        """Position of a buffer's first pair in the run."""
        return buffer.epoch * self.total + self.start_of(buffer)

    def start_of(self, buffer: Buffer) -> int:
        """Position of a buffer's first pair in the epoch's stream."""
        return buffer.number * self.buffer_size

    def size_of(self, buffer: Buffer) -> int:
        """Pairs of a buffer; the last of an epoch has fewer."""
        return min(self.buffer_size, self.total - self.start_of(buffer))

    def after(self, buffer: Buffer) -> Buffer:
        """The next one."""
        is_last = self.start_of(buffer) + self.buffer_size >= self.total
        return Buffer(buffer.epoch + 1, 0) if is_last else Buffer(buffer.epoch, buffer.number + 1)

    def shuffled(self, buffer: Buffer) -> dict[int, int]:
        """Of each pair of a buffer: its position in the epoch's stream, and its position in the run."""
        order = torch.randperm(self.size_of(buffer), generator=generator_for("buffer", self.seed, *buffer)).tolist()
        start, first = self.start_of(buffer), self.first_of(buffer)
        return {start + place: first + offset for offset, place in enumerate(order)}

    def place(self, epoch: int, position: int) -> Place:
        """Where the pair at a position of an epoch's stream lies."""
        shards, ends = self._stream(epoch)
        number = bisect_right(ends, position)
        shard = shards[number]
        start = ends[number] - (self.counts[shard] - self.skipped[shard])
        return Place(shard, self.skipped[shard] + position - start)

    def _stream(self, epoch: int) -> tuple[list[int], list[int]]:
        """The shards of an epoch in order, and where each ends in its stream."""
        if epoch != self._epoch:
            order = torch.randperm(len(self.counts), generator=generator_for("shards", self.seed, epoch)).tolist()
            self._shards, self._epoch = order, epoch
            self._ends = list(accumulate(self.counts[shard] - self.skipped[shard] for shard in order))
        return self._shards, self._ends
