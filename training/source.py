"""Batches from an encoded dataset: every draw is a function of the seed, the update and the place in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .backbone import ALONE, Batch, Share
from .config import TrainConfig
from .draws import Order, generator_for
from .encode import EncodedDataset, Item
from .objective import Objective


class PairSource:
    """What an update is trained on.

    Args:
        dataset: Encoded.
        items: Those of its pairs that are trained on.
        config: The run's settings.
        objective: Draws the noise levels.
        condition: See `Batch.condition`.
    """

    def __init__(
        self,
        dataset: EncodedDataset,
        items: Sequence[Item],
        config: TrainConfig,
        objective: Objective,
        condition: str = "",
    ) -> None:
        self.dataset = dataset
        self.items = items
        self.config = config
        self.objective = objective
        self.condition = condition
        buckets = [item.size for item in items]
        self.order = Order(buckets, config.group_size, config.seed, dataset.settings.repeats)

    def batches(self, step: int, share: Share = ALONE) -> list[Batch]:
        """See `training.backbone.Source.batches`. The same pairs and draws, however they are split into batches."""
        size = self.config.batch_size
        own = self.config.accumulation_steps // share.processes * size
        slots = range(share.rank * own, (share.rank + 1) * own)
        group = self.order.group(step)
        rows = [self._row(self.items[group[slot]], step, slot) for slot in slots]
        return [stack(rows[start : start + size]) for start in range(0, len(rows), size)]

    def _row(self, item: Item, step: int, slot: int) -> Batch:
        generator = generator_for("draw", self.config.seed, step, slot)
        side, dropout = torch.rand(2, generator=generator).tolist()
        level = self.objective.draw(generator)
        target, hint = item.sides[int(side * len(item.sides))]
        latent = self.dataset.latent(target, generator)
        hints = self.dataset.hint(hint, generator)
        noise = torch.randn(latent.shape, generator=generator)
        is_dropped = dropout < self.dataset.settings.prompt_dropout
        texts = self.dataset.text(self.dataset.empty_text if is_dropped else item.caption)
        return row_of(latent, hints, texts, noise, level, item.name, self.condition)


def row_of(
    latent: Tensor, hint: Tensor, texts: dict[str, Tensor], noise: Tensor, level: Tensor, name: str, condition: str = ""
) -> Batch:
    """One pair as a batch.

    Args:
        latent: (4, h, w).
        hint: (4, h, w) or (3, H, W).
        texts: From `EncodedDataset.text`: "context" (L, D), and what goes into the extras.
        noise: (4, h, w).
        level: (1,).
        name: Of the pair.
        condition: See `Batch.condition`.

    Returns:
        Every field with one row.
    """
    extras = {key: tensor[None] for key, tensor in texts.items() if key != "context"}
    return Batch(latent[None], hint[None], texts["context"][None], noise[None], level, (name,), extras, condition)


def held_out_batches(
    dataset: EncodedDataset, items: Sequence[Item], seed: int, objective: Objective, condition: str = ""
) -> list[Batch]:
    """One batch for each held-out pair: its modes, at a few noise levels, with noise of its own."""
    batches = []
    for item in items:
        target, hint = item.sides[0]
        latent, hints, texts = dataset.latent(target), dataset.hint(hint), dataset.text(item.caption)
        rows = []
        for place, level in enumerate(objective.held_out().split(1)):
            noise = torch.randn(latent.shape, generator=generator_for("held out", seed, item.name, place))
            rows.append(row_of(latent, hints, texts, noise, level, item.name, condition))
        batches.append(stack(rows))
    return batches


def stack(rows: Sequence[Batch]) -> Batch:
    """Batches of one size and one condition as one."""
    latents, hints, context, noise, levels = (torch.cat(parts) for parts in zip(*(row[:5] for row in rows), strict=True))
    extras = {name: torch.cat([row.extras[name] for row in rows]) for name in rows[0].extras}
    names = dict.fromkeys(name for row in rows for name in row.names)
    return Batch(latents, hints, context, noise, levels, tuple(names), extras, rows[0].condition)
