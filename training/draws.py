"""Random numbers as a function of what they are for: nothing to save, and nothing that a resumed run could get wrong."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch


def generator_for(*purpose: object) -> torch.Generator:
    """A stream of random numbers of its own for each purpose, on the CPU and so the same on any device."""
    digest = hashlib.blake2b("/".join(map(str, purpose)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@dataclass(eq=False)
class Order:
    """Which pairs an update sees.

    Every epoch goes once through all pairs in an order of its own. An update's pairs are of one bucket, since their latents are
    stacked; a bucket's last, incomplete update is filled up with its first pairs of the epoch.
    """

    buckets: Sequence[Hashable]
    """Of each pair; pairs of one bucket have one size."""
    group_size: int
    """Pairs in one update."""
    seed: int
    repeats: int = 1
    """How often an epoch sees each pair."""
    _epoch: int = -1
    _groups: list[list[int]] = field(default_factory=list)

    @property
    def groups_per_epoch(self) -> int:
        """Updates in an epoch."""
        return sum(-(-count * self.repeats // self.group_size) for count in Counter(self.buckets).values())

    def group(self, step: int) -> list[int]:
        """The pairs of update `step`, by their place in `buckets`."""
        epoch, place = divmod(step, self.groups_per_epoch)
        if epoch != self._epoch:
            self._groups, self._epoch = self._draw(epoch), epoch
        return self._groups[place]

    def _draw(self, epoch: int) -> list[list[int]]:
        members: dict[Hashable, list[int]] = {}
        for index, bucket in enumerate(self.buckets):
            members.setdefault(bucket, []).append(index)
        generator = generator_for("order", self.seed, epoch)
        groups = []
        for own in members.values():
            pairs = own * self.repeats
            order = [pairs[i] for i in torch.randperm(len(pairs), generator=generator).tolist()]
            while len(order) % self.group_size:
                order.append(order[len(order) - len(pairs)])
            groups += [order[start : start + self.group_size] for start in range(0, len(order), self.group_size)]
        return [groups[i] for i in torch.randperm(len(groups), generator=generator).tolist()]
