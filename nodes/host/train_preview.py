"""Previews during a training: hint, what the condition makes of it now, target; with the networks that are loaded anyway."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...training.backbone import Batch
from ...training.preview import grid, sample
from ...training.trainer import Trainer
from .backbone import share_with_autograd
from .train_data import TrainData

logger = logging.getLogger("nextcontrol")

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
        self.places = [0] if data.frames == 1 else [data.frames // 2, data.frames - 1]
        """Rows of a pair that are shown; the first frame of a clip is the reference."""
        self._fixed: list[tuple[Tensor, Tensor]] = []
        self._is_short = False

    def paint(self, trainer: Trainer) -> Tensor | None:
        """Paint a picture, (3, H, W) in [0, 1]: a row for each pair, or two of a clip; None where there is no memory for it."""
        if self._is_short:
            return None
        try:
            return self._paint(trainer)
        except comfy.model_management.OOM_EXCEPTION:  # the training itself fits
            self._is_short = True
            logger.warning("There is no memory for previews at step %d: the training goes on without them.", trainer.step)
            comfy.model_management.soft_empty_cache()
            return None
        finally:
            comfy.model_management.load_models_gpu(self.networks)
            for network in self.networks:
                share_with_autograd(getattr(network.model, "diffusion_model", network.model))

    def _paint(self, trainer: Trainer) -> Tensor:
        samples = []
        for row, pair in enumerate(self.pairs):
            comfy.model_management.throw_exception_if_processing_interrupted()
            first = self._first(pair)
            samples.append(
                sample(
                    trainer,
                    first.hints,
                    first.context,
                    self.data.empty,
                    trainer.config.seed + row,
                    first.latents.shape[1:],
                    first.extras,
                    first.condition,
                    self.data.empty_extras,
                    self.data.is_empty_controlled,
                )
            )
        with torch.no_grad():
            if not self._fixed:
                self._fixed = [
                    (self._show_hint(pair.hints[place, None]), self._decode(pair.latents[place, None]))
                    for pair in self.pairs
                    for place in self.places
                ]
            painted = [self._decode(latents[place, None]) for latents in samples for place in self.places]
        return grid([[hint, own, target] for (hint, target), own in zip(self._fixed, painted, strict=True)])

    def _first(self, pair: Batch) -> Batch:
        """A pair at the first of its noise levels: one row, or the frames of the clip."""

        def part(rows: Tensor) -> Tensor:
            return rows[: len(rows) * self.data.frames // len(pair.latents)]

        latents, hints, context, noise, levels = map(part, pair[:5])
        extras = {name: part(rows) for name, rows in pair.extras.items()}
        return Batch(latents, hints, context, noise, levels, pair.names, extras, pair.condition)

    def _decode(self, latents: Tensor) -> Tensor:
        """(1, 4, h, w), scaled, to (3, H, W)."""
        return self.vae.decode(latents / self.data.scale)[0].movedim(-1, 0).cpu()  # HWC -> CHW

    def _show_hint(self, hints: Tensor) -> Tensor:
        """Pixels as they are, a latent through the VAE; it was encoded in [0, 1], where the host decodes from [-1, 1]."""
        return hints[0] if hints.shape[1] == PIXEL_CHANNELS else (self._decode(hints) * 2 - 1).clamp(0, 1)
