"""Hints of CtrLoRA: pictures to scaled latents, in the range that the reference feeds its VAE."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from .hints import fit_hint
from .layout import Size
from .managed import models_in_use

LATENT_CHANNELS = 4


@dataclass(frozen=True)
class Posterior:
    """How a latent is taken from the VAE's posterior."""

    is_sampled: bool = False
    """A seeded sample, as the reference takes; else the mode."""
    seed: int = 0


def to_encoder_range(pixels: Tensor) -> Tensor:
    """Pixels as the host's VAE is to be given them: it maps [0, 1] to [-1, 1], and CtrLoRA's encoder was given [0, 1]."""
    return (pixels + 1) / 2


@dataclass(eq=False)
class GivenLatents:
    """Latents that another node has made, one for each row of a call."""

    latents: Tensor
    """(N, 4, h, w), not scaled."""

    def encode(self, _rows: Sequence[int], _size: Size) -> None:
        """They are encoded."""

    def latent(self, row: int, _size: Size) -> Tensor:
        """(1, 4, h, w)."""
        return self.latents[row : row + 1]

    def digest(self, row: int, size: Size) -> bytes:
        """Identifies the latent's content."""
        return _digest(self.latent(row, size))


@dataclass(eq=False)
class HintLatents:
    """The hints of one control, encoded once for each size; prompts of several areas take turns with theirs."""

    frames: Tensor
    """(N, H, W, 3), RGB in [0, 1]."""
    vae: Any
    posterior: Posterior
    _latents: dict[tuple[Size, int], Tensor] = field(default_factory=dict)
    _digests: dict[tuple[Size, int], bytes] = field(default_factory=dict)

    def encode(self, hints: Sequence[int], size: Size) -> None:
        """Make sure that these hints are encoded at a latent's size; the rest of the run's models are loaded again after."""
        missing = [hint for hint in dict.fromkeys(hints) if (size, hint) not in self._latents]
        if not missing:
            return
        loaded = models_in_use()
        pixels = fit_hint(self.frames[missing], size, is_area=True).movedim(1, -1)  # BCHW -> BHWC
        latents = self.vae.encode(to_encoder_range(pixels))
        if self.posterior.is_sampled:
            latents = self._sample(pixels, missing)
        comfy.model_management.load_models_gpu(loaded)
        if latents.shape[1:] != (LATENT_CHANNELS, *size):
            raise ValueError(
                f"The VAE makes latents {tuple(latents.shape[1:])} and CtrLoRA needs {(LATENT_CHANNELS, *size)}: "
                "connect the VAE of an SD1.5 checkpoint."
            )
        for hint, latent in zip(missing, latents.split(1), strict=True):
            self._latents[size, hint] = latent
            self._digests[size, hint] = _digest(latent)

    def latent(self, hint: int, size: Size) -> Tensor:
        """(1, 4, h, w), not yet scaled."""
        return self._latents[size, hint]

    def digest(self, hint: int, size: Size) -> bytes:
        """Identifies the latent's content."""
        return self._digests[size, hint]

    def _sample(self, pixels: Tensor, hints: list[int]) -> Tensor:
        """A sample of the posterior; the noise is a function of the seed and the hint's number, on any device."""
        stage = self.vae.first_stage_model
        moments = torch.cat([
            stage.quant_conv(stage.encoder(part.movedim(-1, 1).to(self.vae.device, self.vae.vae_dtype))).float()
            for part in pixels.split(1)
        ])  # fmt: skip
        mean, log_variance = moments.chunk(2, dim=1)
        noise = [
            torch.randn(mean.shape[1:], generator=torch.Generator().manual_seed(self.posterior.seed + hint)) for hint in hints
        ]
        return mean + (0.5 * log_variance.clamp(-30, 20)).exp() * torch.stack(noise).to(mean)


def _digest(latent: Tensor) -> bytes:
    content = latent.contiguous().cpu().float().numpy().tobytes()
    return hashlib.blake2b(content, digest_size=16).digest()
