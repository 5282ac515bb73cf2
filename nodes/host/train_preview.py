"""Previews during a training: hint, what the condition makes of it now, target; with the networks that are loaded anyway."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...training.encode import EncodedDataset, Item
from ...training.preview import grid, sample
from ...training.trainer import Trainer
from .backbone import share_with_autograd

ROWS = 4
"""Pairs in a preview."""


class PreviewPainter:
    """Paints the same held-out pairs with the same noise each time.

    Args:
        vae: Decodes; it is loaded for that only.
        encoded: The dataset.
        held_out: Its pairs to show.
        networks: To load again afterwards.
    """

    def __init__(self, vae: Any, encoded: EncodedDataset, held_out: Sequence[Item], networks: Sequence[ModelPatcher]) -> None:
        self.vae = vae
        self.encoded = encoded
        self.items = list(held_out[:ROWS])
        self.networks = list(networks)
        self._fixed: list[tuple[Tensor, Tensor]] = []

    def paint(self, trainer: Trainer) -> Tensor:
        """(3, H, W) in [0, 1]: a row for each pair."""
        empty = self.encoded.text(self.encoded.empty_text)[None]
        samples = []
        for row, item in enumerate(self.items):
            comfy.model_management.throw_exception_if_processing_interrupted()
            hints, context = self.encoded.latent(item.sides[0][1])[None], self.encoded.text(item.caption)[None]
            samples.append(sample(trainer, hints, context, empty, trainer.config.seed + row))
        with torch.no_grad():
            if not self._fixed:
                self._fixed = [(self._decode_hint(item), self._decode(self._target(item))) for item in self.items]
            painted = [self._decode(latent) for latent in samples]
        comfy.model_management.load_models_gpu(self.networks)
        for network in self.networks:
            share_with_autograd(getattr(network.model, "diffusion_model", network.model))
        return grid([[hint, own, target] for (hint, target), own in zip(self._fixed, painted, strict=True)])

    def _target(self, item: Item) -> Tensor:
        return self.encoded.latent(item.sides[0][0])[None]

    def _decode(self, latents: Tensor) -> Tensor:
        """(1, 4, h, w), scaled, to (3, H, W)."""
        return self.vae.decode(latents / self.encoded.scale)[0].movedim(-1, 0).cpu()  # HWC -> CHW

    def _decode_hint(self, item: Item) -> Tensor:
        """The hint through the VAE; it was encoded in [0, 1], where the host decodes from [-1, 1]."""
        return (self._decode(self.encoded.latent(item.sides[0][1])[None]) * 2 - 1).clamp(0, 1)
