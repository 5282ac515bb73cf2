"""Batches from an encoded dataset: every draw is a function of the seed, the update and the place in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

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
        group = self.order.group(step)
        rows = [self._row(self.items[group[slot]], step, slot) for slot in own_slots(self.config, share)]
        return in_batches(rows, self.config)

    def _row(self, item: Item, step: int, slot: int) -> Batch:
        dropout = self.dataset.settings.prompt_dropout
        return draw_row(CachedPair(self.dataset, item), step, slot, self.config.seed, self.objective, dropout, self.condition)


class KeptPair(Protocol):
    """A pair in its encoded form, wherever it is kept."""

    @property
    def name(self) -> str:
        """Of the pair."""
        ...

    @property
    def sides(self) -> int:
        """2 if it is also kept mirrored, else 1."""
        ...

    def latent(self, side: int, generator: torch.Generator | None = None) -> Tensor:
        """(4, h, w), scaled, of the target: a sample of the posterior, or its mode without a generator."""
        ...

    def hint(self, side: int, generator: torch.Generator | None = None) -> Tensor:
        """The hint as the method reads it; see `EncodedDataset.hint`."""
        ...

    def text(self, is_dropped: bool) -> dict[str, Tensor]:
        """Of the caption, or of the empty one; see `EncodedDataset.text`."""
        ...


class CachedPair:
    """A pair of an `EncodedDataset`."""

    def __init__(self, dataset: EncodedDataset, item: Item) -> None:
        self.dataset = dataset
        self.item = item
        self.name = item.name
        self.sides = len(item.sides)

    def latent(self, side: int, generator: torch.Generator | None = None) -> Tensor:
        """See `KeptPair.latent`."""
        return self.dataset.latent(self.item.sides[side][0], generator)

    def hint(self, side: int, generator: torch.Generator | None = None) -> Tensor:
        """See `KeptPair.hint`."""
        return self.dataset.hint(self.item.sides[side][1], generator)

    def text(self, is_dropped: bool) -> dict[str, Tensor]:
        """See `KeptPair.text`."""
        return self.dataset.text(self.dataset.empty_text if is_dropped else self.item.caption)


def own_slots(config: TrainConfig, share: Share) -> range:
    """The places in an update that a process computes."""
    own = config.accumulation_steps // share.processes * config.batch_size
    return range(share.rank * own, (share.rank + 1) * own)


def in_batches(rows: Sequence[Batch], config: TrainConfig) -> list[Batch]:
    """Rows in the order of their places, as the batches of the backward passes."""
    return [stack(rows[start : start + config.batch_size]) for start in range(0, len(rows), config.batch_size)]


def draw_row(
    pair: KeptPair, step: int, slot: int, seed: int, objective: Objective, prompt_dropout: float, condition: str = ""
) -> Batch:
    """Everything that is drawn for one place in one update.

    Args:
        pair: What is trained there.
        step: Of the update.
        slot: Place in it.
        seed: Of the run.
        objective: Draws the noise level.
        prompt_dropout: See `DatasetSettings`.
        condition: See `Batch.condition`.

    Returns:
        One row.
    """
    generator = generator_for("draw", seed, step, slot)
    side, dropout = torch.rand(2, generator=generator).tolist()
    level = objective.draw(generator)
    chosen = int(side * pair.sides)
    latent = pair.latent(chosen, generator)
    hints = pair.hint(chosen, generator)
    noise = torch.randn(latent.shape, generator=generator)
    return row_of(latent, hints, pair.text(dropout < prompt_dropout), noise, level, pair.name, condition)


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
    return [held_out_batch(CachedPair(dataset, item), seed, objective, condition) for item in items]


def held_out_batch(pair: KeptPair, seed: int, objective: Objective, condition: str = "") -> Batch:
    """One pair's mode, at a few noise levels."""
    latent, hints, texts = pair.latent(0), pair.hint(0), pair.text(is_dropped=False)
    rows = []
    for place, level in enumerate(objective.held_out().split(1)):
        noise = torch.randn(latent.shape, generator=generator_for("held out", seed, pair.name, place))
        rows.append(row_of(latent, hints, texts, noise, level, pair.name, condition))
    return stack(rows)


def stack(rows: Sequence[Batch]) -> Batch:
    """Batches of one size and one condition as one."""
    latents, hints, context, noise, levels = (torch.cat(parts) for parts in zip(*(row[:5] for row in rows), strict=True))
    extras = {name: torch.cat([row.extras[name] for row in rows]) for name in rows[0].extras}
    names = dict.fromkeys(name for row in rows for name in row.names)
    return Batch(latents, hints, context, noise, levels, tuple(names), extras, rows[0].condition)
