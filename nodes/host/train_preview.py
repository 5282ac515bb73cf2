"""Previews during a training: hint, what the condition makes of it now, target; with the networks that are loaded anyway."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...training.preview import grid, sample
from ...training.trainer import Trainer
from .backbone import share_with_autograd
from .train_data import TrainData

PIXEL_CHANNELS = 3
ROWS = 4
"""Pairs in a preview; more where there are more conditions."""


class PreviewPainter:
    """Paints the same held-out pairs with the same noise each time.

    Args:
        vae: Decodes; it is loaded for that only.
        data: The held-out pairs, and what belongs to them.
        networks: To load again afterwards.
    """

    def __init__(self, vae: Any, data: TrainData, networks: Sequence[ModelPatcher]) -> None:
        self.vae = vae
        self.data = data
        rows = max(ROWS, len({pair.condition for pair in data.held_out}))  # the first ones are of different conditions
        self.pairs = list(data.held_out[:rows])
        self.networks = list(networks)
        self._fixed: list[tuple[Tensor, Tensor]] = []

    def paint(self, trainer: Trainer) -> Tensor:
        """(3, H, W) in [0, 1]: a row for each pair."""
        samples = []
        for row, pair in enumerate(self.pairs):
            comfy.model_management.throw_exception_if_processing_interrupted()
            extras = {name: rows[:1] for name, rows in pair.extras.items()}
            seed, shape = trainer.config.seed + row, pair.latents.shape[1:]
            samples.append(
                sample(
                    trainer,
                    pair.hints[:1],
                    pair.context[:1],
                    self.data.empty,
                    seed,
                    shape,
                    extras,
                    pair.condition,
                    self.data.empty_extras,
                )
            )
        with torch.no_grad():
            if not self._fixed:
                self._fixed = [(self._show_hint(pair.hints[:1]), self._decode(pair.latents[:1])) for pair in self.pairs]
            painted = [self._decode(latent) for latent in samples]
        comfy.model_management.load_models_gpu(self.networks)
        for network in self.networks:
            share_with_autograd(getattr(network.model, "diffusion_model", network.model))
        return grid([[hint, own, target] for (hint, target), own in zip(self._fixed, painted, strict=True)])

    def _decode(self, latents: Tensor) -> Tensor:
        """(1, 4, h, w), scaled, to (3, H, W)."""
        return self.vae.decode(latents / self.data.scale)[0].movedim(-1, 0).cpu()  # HWC -> CHW

    def _show_hint(self, hints: Tensor) -> Tensor:
        """Pixels as they are, a latent through the VAE; it was encoded in [0, 1], where the host decodes from [-1, 1]."""
        return hints[0] if hints.shape[1] == PIXEL_CHANNELS else (self._decode(hints) * 2 - 1).clamp(0, 1)
