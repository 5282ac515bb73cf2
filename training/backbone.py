"""What a trainer needs of a diffusion model, and nothing more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..models.injection import Site
from .objective import Objective


@dataclass(frozen=True, eq=False)
class Control:
    """How a method enters the diffusion model. Gradients flow back into these tensors and nowhere else."""

    residuals: Sequence[Tensor] = ()
    """As ControlNet: one (B, C, h', w') for each encoder block and one for the middle, added to what the decoder reads."""
    site: Site | None = None
    """As ControlNeXt: where `inject` changes a feature."""
    inject: Callable[[Tensor], Tensor] | None = None
    """Maps the feature (B, C, h', w') to the feature with the control added, out of place."""
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    """Trained weights of the diffusion model, by its own names, in the place of its own."""


NO_CONTROL = Control()


class Backbone(Protocol):
    """A frozen diffusion model."""

    device: torch.device

    @property
    def objective(self) -> Objective:
        """How its noise is added and what it predicts."""
        ...

    def predict(self, noisy: Tensor, times: Tensor, context: Tensor, control: Control, extras: Mapping[str, Tensor]) -> Tensor:
        """What the model predicts.

        Args:
            noisy: (B, 4, h, w), from `Objective.network_input`.
            times: (B,), likewise.
            context: (B, L, D), text.
            control: What is added.
            extras: See `Batch.extras`.

        Returns:
            (B, 4, h, w), in the terms of the objective.
        """
        ...


class Batch(NamedTuple):
    """Pairs with everything that is drawn for them."""

    latents: Tensor
    """(B, 4, h, w), scaled latents of the targets."""
    hints: Tensor
    """(B, 4, h, w), scaled latents of the hints; or (B, 3, H, W), their pixels in [0, 1]: as the method reads them."""
    context: Tensor
    """(B, L, D), text."""
    noise: Tensor
    """(B, 4, h, w), standard normal."""
    timesteps: Tensor
    """(B,), noise levels in the objective's terms: timesteps, or sigmas."""
    names: tuple[str, ...]
    """Of the pairs, for messages."""
    extras: Mapping[str, Tensor] = {}
    """Whatever else the diffusion model or the objective reads, by name, one row each."""
    condition: str = ""
    """Which condition the hints are of, where a method trains several."""

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        latents, hints, context, noise, timesteps = (field.to(device) for field in self[:5])
        extras = {name: tensor.to(device) for name, tensor in self.extras.items()}
        return Batch(latents, hints, context, noise, timesteps, self.names, extras, self.condition)


class Share(NamedTuple):
    """The part of an update that one of several processes computes."""

    rank: int = 0
    """Number of the process."""
    processes: int = 1
    """Of them all; they divide the backward passes of an update."""


ALONE = Share()


class Source(Protocol):
    """Where the batches come from."""

    def batches(self, step: int, share: Share = ALONE) -> list[Batch]:
        """The batches of update `step`, or the share of them that a process computes: a function of both alone.

        The shares together, in order, are the batches of one process.
        """
        ...
