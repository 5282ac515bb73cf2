"""Whether a VAE is SD1.5's or SDXL's: tensors have the same names and shapes, what they make of colours has not."""

from __future__ import annotations

import itertools
from typing import Any
from weakref import WeakKeyDictionary

import comfy.latent_formats
import comfy.model_management
import torch
from torch import Tensor, nn

from ...models.injection import Family
from .managed import models_in_use

PROBE_SIDE = 64
"""Pixels of a patch."""
# The host's own linear maps from latents to colours, which its previews use, were fitted for each family. Of an autoencoder
# that follows SDXL's map exactly, SD1.5's gives colours with a correlation of 0.25 to the true ones, and the other way 0.10.
LEAST_CORRELATION = 0.7
LEAST_LEAD = 0.4

_known: WeakKeyDictionary[nn.Module, Family | None] = WeakKeyDictionary()


def is_sdxl_vae(vae: Any) -> bool:
    """Whether a VAE with 4 latent channels is clearly SDXL's."""
    return family_of_vae(vae) == "sdxl"


def family_of_vae(vae: Any) -> Family | None:
    """Look at the latents of eight plain colours.

    Args:
        vae: The host's, with 4 latent channels.

    Returns:
        "sd15" or "sdxl" only where they are clearly that family's; asked once for each network.
    """
    stage = getattr(vae, "first_stage_model", None)
    if not isinstance(stage, nn.Module):
        return None
    if stage not in _known:
        loaded = models_in_use()
        colors = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)))
        latents = vae.encode(colors[:, None, None].expand(-1, PROBE_SIDE, PROBE_SIDE, -1)).mean(dim=(2, 3)).float().cpu()
        comfy.model_management.load_models_gpu(loaded)
        own = _correlation(latents, colors, comfy.latent_formats.SD15())
        other = _correlation(latents, colors, comfy.latent_formats.SDXL())
        family: Family = "sd15" if own > other else "sdxl"
        is_clear = max(own, other) > LEAST_CORRELATION and abs(own - other) > LEAST_LEAD
        _known[stage] = family if is_clear else None
    return _known[stage]


def _correlation(latents: Tensor, colors: Tensor, latent_format: Any) -> float:
    """Of the colours that a family's map gives (N, 4) latents with the true ones, (N, 3)."""
    found = latents * latent_format.scale_factor @ torch.tensor(latent_format.latent_rgb_factors)
    return float(torch.corrcoef(torch.stack([found.flatten(), colors.flatten()]))[0, 1].nan_to_num())
