"""The host's SVD as a trainer sees it: rows are frames, and those of one clip know of each other."""

from __future__ import annotations

from collections.abc import Mapping

import comfy.model_base
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...training.backbone import Control
from ...training.clip_encode import NUMBERS, REFERENCE
from .backbone import HostBackbone, check_unpatched
from .ctrlora_hint import LATENT_CHANNELS
from .noise_schedule import objective_of
from .unet_structure import is_video

CHANNELS = 8
"""Of the UNet's input: noisy latent and latent of the reference."""


class HostVideoBackbone(HostBackbone):
    """As `HostBackbone`, for clips.

    Args:
        model: Loaded, see `training_mode`.
        checkpointing: As for `HostBackbone`.
    """

    def predict(self, noisy: Tensor, times: Tensor, context: Tensor, control: Control, extras: Mapping[str, Tensor]) -> Tensor:
        """See `training.backbone.Backbone.predict`.

        Args:
            noisy: (B * F, 4, h, w), clip by clip.
            times: (B * F,).
            context: (B, 1, D), embeddings of the references.
            control: Of the frames.
            extras: With `REFERENCE` and `NUMBERS`, one row for each clip.

        Returns:
            (B * F, 4, h, w).
        """
        frames = self._frames(noisy, extras)
        reference = extras[REFERENCE].to(noisy).repeat_interleave(frames, 0)
        seen = torch.cat([noisy, reference], dim=1)
        return super().predict(seen, times, context.repeat_interleave(frames, 0), control, extras)

    def _frames(self, noisy: Tensor, extras: Mapping[str, Tensor]) -> int:
        return len(noisy) // len(extras[REFERENCE])

    def _vector(self, noisy: Tensor, extras: Mapping[str, Tensor]) -> Tensor:
        """(B * F, D), the three numbers as the host tells them to the UNet."""
        numbers = extras[NUMBERS]
        told = self.model.embedder(numbers.flatten()).reshape(len(numbers), -1)
        return told.repeat_interleave(self._frames(noisy, extras), 0)


def build_backbone(model: ModelPatcher, checkpointing: bool) -> HostBackbone:
    """The backbone for a model of any family."""
    return (HostVideoBackbone if is_video(model) else HostBackbone)(model, checkpointing)


def check_video_model(model: ModelPatcher) -> None:
    """Refuse a model that this backbone does not run as the host does.

    Args:
        model: From any loader, with a UNet that has a time axis.

    Raises:
        ValueError: It is a relative of SVD, such as SV3D, reads other channels, is sampled in another way, or carries patches.
    """
    if type(model.model) is not comfy.model_base.SVD_img2vid:
        raise ValueError(
            f"The model is of the family {type(model.model).__name__} and SVD is the only video model that training knows: "
            "load an SVD checkpoint."
        )
    unet = model.model.diffusion_model
    if (read := unet.input_blocks[0][0].in_channels) != CHANNELS or unet.out_channels != LATENT_CHANNELS:
        raise ValueError(
            f"The model reads {read} channels and returns {unet.out_channels}, where SVD reads {CHANNELS} and returns "
            f"{LATENT_CHANNELS}: load an SVD checkpoint."
        )
    check_unpatched(model)
    objective_of(model)
