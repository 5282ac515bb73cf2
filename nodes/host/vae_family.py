"""Whether a VAE is SDXL's: its tensors have the names and shapes of SD1.5's, what it makes of colours has not."""

from __future__ import annotations

import itertools
from typing import Any
from weakref import WeakKeyDictionary

import comfy.latent_formats
import comfy.model_management
import torch
from torch import Tensor, nn

PROBE_SIDE = 64
"""Pixels of a patch."""
# The host's own linear maps from latents to colours, which its previews use, were fitted for each family. Of an autoencoder
# that follows SDXL's map exactly, SD1.5's gives colours with a correlation of 0.25 to the true ones, and the other way 0.10.
LEAST_CORRELATION = 0.7
LEAST_LEAD = 0.4

_known: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def is_sdxl_vae(vae: Any) -> bool:
    """Look at the latents of eight plain colours.

    Args:
        vae: The host's, with 4 latent channels.

    Returns:
        True only where they are clearly SDXL's; asked once for each network.
    """
    stage = getattr(vae, "first_stage_model", None)
    if not isinstance(stage, nn.Module):
        return False
    if stage not in _known:
        loaded = comfy.model_management.loaded_models(only_currently_used=True)
        colors = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)))
        latents = vae.encode(colors[:, None, None].expand(-1, PROBE_SIDE, PROBE_SIDE, -1)).mean(dim=(2, 3)).float().cpu()
        comfy.model_management.load_models_gpu(loaded)
        own = _correlation(latents, colors, comfy.latent_formats.SD15())
        other = _correlation(latents, colors, comfy.latent_formats.SDXL())
        _known[stage] = other > LEAST_CORRELATION and other - own > LEAST_LEAD
    return _known[stage]


def _correlation(latents: Tensor, colors: Tensor, latent_format: Any) -> float:
    """Of the colours that a family's map gives (N, 4) latents with the true ones, (N, 3)."""
    found = latents * latent_format.scale_factor @ torch.tensor(latent_format.latent_rgb_factors)
    return float(torch.corrcoef(torch.stack([found.flatten(), colors.flatten()]))[0, 1].nan_to_num())
