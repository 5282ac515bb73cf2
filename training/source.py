"""Batches from an encoded dataset: every draw is a function of the seed, the update and the place in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .backbone import Batch
from .config import TrainConfig
from .draws import Order, generator_for
from .encode import EncodedDataset, Item

HELD_OUT_TIMESTEPS = (0.2, 0.5, 0.8)
"""Where held-out pairs are looked at, as parts of the schedule."""


class PairSource:
    """What an update is trained on.

    Args:
        dataset: Encoded.
        items: Those of its pairs that are trained on.
        config: The run's settings.
        timesteps: Length of the model's schedule.
    """

    def __init__(self, dataset: EncodedDataset, items: Sequence[Item], config: TrainConfig, timesteps: int = 1000) -> None:
        self.dataset = dataset
        self.items = items
        self.config = config
        self.timesteps = timesteps
        buckets = [item.size for item in items]
        self.order = Order(buckets, config.group_size, config.seed, dataset.settings.repeats)

    def batches(self, step: int) -> list[Batch]:
        """See `training.backbone.Source.batches`. The same pairs and draws, however they are split into batches."""
        rows = [self._row(self.items[index], step, slot) for slot, index in enumerate(self.order.group(step))]
        size = self.config.batch_size
        return [stack(rows[start : start + size]) for start in range(0, len(rows), size)]

    def _row(self, item: Item, step: int, slot: int) -> Batch:
        generator = generator_for("draw", self.config.seed, step, slot)
        side, dropout = torch.rand(2, generator=generator).tolist()
        timestep = torch.randint(self.timesteps, (1,), generator=generator)
        target, hint = item.sides[int(side * len(item.sides))]
        latent = self.dataset.latent(target, generator)
        hints = self.dataset.latent(hint, generator)
        noise = torch.randn(latent.shape, generator=generator)
        is_dropped = dropout < self.dataset.settings.prompt_dropout
        context = self.dataset.text(self.dataset.empty_text if is_dropped else item.caption)
        return Batch(latent[None], hints[None], context[None], noise[None], timestep, (item.name,))


def held_out_batches(dataset: EncodedDataset, items: Sequence[Item], seed: int, timesteps: int = 1000) -> list[Batch]:
    """One batch for each held-out pair: its modes, at a few timesteps, with noise of its own."""
    batches = []
    for item in items:
        target, hint = item.sides[0]
        rows = []
        for place in HELD_OUT_TIMESTEPS:
            latent = dataset.latent(target)
            noise = torch.randn(latent.shape, generator=generator_for("held out", seed, item.name, place))
            timestep = torch.tensor([int(place * timesteps)])
            context = dataset.text(item.caption)
            rows.append(Batch(latent[None], dataset.latent(hint)[None], context[None], noise[None], timestep, (item.name,)))
        batches.append(stack(rows))
    return batches


def stack(rows: Sequence[Batch]) -> Batch:
    """Batches of one size as one."""
    fields = (torch.cat(parts) for parts in zip(*(row[:5] for row in rows), strict=True))
    latents, hints, context, noise, timesteps = fields
    names = dict.fromkeys(name for row in rows for name in row.names)
    return Batch(latents, hints, context, noise, timesteps, tuple(names))
