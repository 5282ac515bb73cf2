"""What a trainer needs of a diffusion model, and nothing more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Backbone(Protocol):
    """A frozen diffusion model."""

    alphas: Tensor
    """(T,), cumulated: the signal's share of the variance at each timestep."""
    prediction: str
    """"eps" or "v"."""
    device: torch.device

    def predict(self, noisy: Tensor, timesteps: Tensor, context: Tensor, controls: Sequence[Tensor]) -> Tensor:
        """What the model predicts for noisy latents.

        Args:
            noisy: (B, 4, h, w).
            timesteps: (B,), integers below T.
            context: (B, L, D), text.
            controls: One (B, C, h', w') for each encoder block and one for the middle; empty for none. Gradients flow back
                into them and nowhere else.

        Returns:
            (B, 4, h, w), noise or v.
        """
        ...


class Batch(NamedTuple):
    """Pairs with everything that is drawn for them."""

    latents: Tensor
    """(B, 4, h, w), scaled latents of the targets."""
    hints: Tensor
    """(B, 4, h, w), scaled latents of the hints."""
    context: Tensor
    """(B, L, D), text."""
    noise: Tensor
    """(B, 4, h, w), standard normal."""
    timesteps: Tensor
    """(B,), integers."""
    names: tuple[str, ...]
    """Of the pairs, for messages."""

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        latents, hints, context, noise, timesteps = (field.to(device) for field in self[:5])
        return Batch(latents, hints, context, noise, timesteps, self.names)


class Source(Protocol):
    """Where the batches come from."""

    def batches(self, step: int) -> list[Batch]:
        """The batches of update `step`, a function of it alone."""
        ...
