"""Is it listening? How much worse the prediction gets when the hint is another picture's, or missing.

The loss says little about a control, since most of the noise can be predicted without one. These ratios start near 0 and rise
when the condition takes effect, however flat the loss is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from .backbone import Batch
from .trainer import Trainer


@dataclass(frozen=True)
class Sensitivity:
    """Errors on the held-out pairs, same noise and timesteps each time."""

    true: float
    """Loss with each pair's own hint."""
    shuffled: float
    """With the hint of another pair."""
    none: float
    """Without a control."""
    by_condition: Mapping[str, Sensitivity] = field(default_factory=dict)
    """The same for each condition alone, where there are several."""

    @property
    def shuffled_ratio(self) -> float:
        """How much worse another picture's hint is, as a fraction."""
        return self.shuffled / self.true - 1

    @property
    def none_ratio(self) -> float:
        """How much worse no control is, as a fraction; below 0 while a control still does harm."""
        return self.none / self.true - 1


@torch.no_grad()
def measure(trainer: Trainer, held_out: Sequence[Batch]) -> Sensitivity:
    """Look at the held-out pairs.

    Args:
        trainer: Its weights are not changed.
        held_out: Batches of one pair each, sizes may differ; see `with_partners`.

    Returns:
        The three errors, averaged over the pairs that have a partner.
    """
    errors = {name: _errors(trainer, own) for name, own in with_partners(held_out).items()}
    every = {name: Sensitivity(*own.mean(0).tolist()) for name, own in errors.items()}
    true, shuffled, none = torch.cat(list(errors.values())).mean(0).tolist()
    return Sensitivity(true, shuffled, none, every if len(every) > 1 else {})


def with_partners(held_out: Sequence[Batch]) -> dict[str, list[Batch]]:
    """The batches by condition, without conditions of one pair: a wrong hint is that of another pair of the same condition."""
    found: dict[str, list[Batch]] = {}
    for batch in held_out:
        found.setdefault(batch.condition, []).append(batch)
    return {name: own for name, own in found.items() if len(own) > 1}


def _errors(trainer: Trainer, held_out: Sequence[Batch]) -> Tensor:
    """(pairs, 3), for each pair with its own hint, the next pair's, and none."""
    batches = [batch.to(trainer.backbone.device) for batch in held_out]
    rows = []
    for batch, other in zip(batches, [*batches[1:], batches[0]], strict=True):
        foreign = F.interpolate(other.hints, batch.hints.shape[-2:]) if other.hints.shape != batch.hints.shape else other.hints
        rows.append(torch.stack([trainer.loss(batch, hints) for hints in (batch.hints, foreign, None)]))
    return torch.stack(rows)
