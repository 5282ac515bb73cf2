"""The loss: how well the noise in a picture is predicted.

Source: xyfJASON/ctrlora@b4422b4 ldm/models/diffusion/ddpm.py, `p_losses`, with logvar 0 and no variational term.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sd_alphas(steps: int = 1000, first: float = 0.00085, last: float = 0.012) -> Tensor:
    """Stable Diffusion's schedule: the square roots of beta are evenly spaced.

    Args:
        steps: T.
        first: beta at timestep 0.
        last: beta at timestep T - 1.

    Returns:
        (T,), cumulated products of 1 - beta.

    Source: xyfJASON/ctrlora@b4422b4 ldm/modules/diffusionmodules/util.py, `make_beta_schedule`.
    """
    betas = torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


def _factors(alphas: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    chosen = alphas.to(timesteps.device)[timesteps][:, None, None, None].float()
    return chosen.sqrt(), (1 - chosen).sqrt()


def add_noise(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas: Tensor) -> Tensor:
    """sqrt(a) * latents + sqrt(1 - a) * noise, with the `a` of each row's timestep.

    Args:
        latents: (B, 4, h, w).
        noise: Likewise.
        timesteps: (B,), integers.
        alphas: (T,), cumulated.

    Returns:
        (B, 4, h, w).
    """
    signal, spread = _factors(alphas, timesteps)
    return signal * latents + spread * noise


def target_of(prediction: str, latents: Tensor, noise: Tensor, timesteps: Tensor, alphas: Tensor) -> Tensor:
    """What the model should predict.

    Args:
        prediction: "eps" or "v".
        latents: (B, 4, h, w).
        noise: Likewise.
        timesteps: (B,), integers.
        alphas: (T,), cumulated.

    Returns:
        The noise, or sqrt(a) * noise - sqrt(1 - a) * latents.

    Source of v: arXiv:2202.00512, appendix D.
    """
    if prediction == "eps":
        return noise
    signal, spread = _factors(alphas, timesteps)
    return signal * noise - spread * latents


def min_snr_weights(prediction: str, timesteps: Tensor, alphas: Tensor, gamma: float) -> Tensor:
    """Weights that take the easy timesteps back.

    Args:
        prediction: "eps" or "v".
        timesteps: (B,), integers.
        alphas: (T,), cumulated.
        gamma: Ratio of signal to noise above which a timestep counts less.

    Returns:
        (B,): min(snr, gamma) / snr for noise, min(snr, gamma) / (snr + 1) for v.

    Source: arXiv:2303.09556, section 3.4.
    """
    chosen = alphas.to(timesteps.device)[timesteps].float()
    ratio = chosen / (1 - chosen)
    return ratio.clamp(max=gamma) / (ratio if prediction == "eps" else ratio + 1)


def mean_loss(predicted: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared error of each row, weighted, and averaged over the rows: a scalar in fp32."""
    rows = (predicted.float() - target.float()).square().flatten(1).mean(1)
    return (rows if weights is None else rows * weights).mean()
