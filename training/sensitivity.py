"""Is it listening? How much worse the prediction gets when the hint is another picture's, or missing.

The loss says little about a control, since most of the noise can be predicted without one. These ratios start near 0 and rise
when the condition takes effect, however flat the loss is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
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
        held_out: Two or more batches of one pair each, sizes may differ.

    Returns:
        The three errors, averaged over the pairs.
    """
    backbone = trainer.backbone
    batches = [batch.to(backbone.device) for batch in held_out]
    errors = torch.zeros(3, device=backbone.device)
    for batch, other in zip(batches, [*batches[1:], batches[0]], strict=True):
        foreign = F.interpolate(other.hints, batch.hints.shape[-2:]) if other.hints.shape != batch.hints.shape else other.hints
        for i, hints in enumerate((batch.hints, foreign, None)):
            errors[i] += trainer.loss(batch, hints) / len(batches)
    return Sensitivity(*errors.tolist())
