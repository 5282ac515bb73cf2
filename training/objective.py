"""The loss: how well the noise in a picture is predicted.

Source: xyfJASON/ctrlora@b4422b4 ldm/models/diffusion/ddpm.py, `p_losses`, with logvar 0 and no variational term.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

HELD_OUT_TIMESTEPS = (0.2, 0.5, 0.8)
"""Where held-out pairs are looked at, as parts of the schedule."""
IDENTIFYING_PLACES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Where two schedules are compared, as parts of them."""


class Objective(Protocol):
    """How noise is added, and what the model predicts."""

    @property
    def identity(self) -> str:
        """What a resumed run has to have in common, in words: rounded, so that another version of a library changes nothing."""
        ...

    def draw(self, generator: torch.Generator) -> Tensor:
        """(1,), a noise level for training: a timestep, or a sigma."""
        ...

    def held_out(self) -> Tensor:
        """(N,), levels at which held-out pairs are looked at."""
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """(B, 4, h, w), latents at their levels (B,)."""
        ...

    def network_input(self, noisy: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        """What the network sees of noisy latents and of their levels: (B, 4, h, w) and (B,)."""
        ...

    def loss(
        self, predicted: Tensor, latents: Tensor, noise: Tensor, levels: Tensor, gamma: float, extras: Mapping[str, Tensor]
    ) -> Tensor:
        """The scalar loss of a prediction; `gamma` is min-SNR's, 0 for none."""
        ...

    def sample(self, predict: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int) -> Tensor:
        """Latents from standard normal noise, (B, 4, h, w).

        Args:
            predict: Maps noisy latents (B, 4, h, w) and levels (B,) to the prediction.
            noise: Where it starts.
            steps: Evaluations.

        Returns:
            (B, 4, h, w), scaled latents.
        """
        ...


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


class DiscreteObjective:
    """Stable Diffusion's: a schedule of timesteps, and noise or v as what is predicted. See `Objective`.

    Args:
        alphas: (T,), cumulated: the signal's share of the variance at each timestep.
        prediction: "eps" or "v".
        timesteps: (T,), what the model is told at each step of the schedule, where that is not the step's number: a distilled
            model has few steps, far from each other.
    """

    def __init__(self, alphas: Tensor, prediction: str = "eps", timesteps: Tensor | None = None) -> None:
        self.alphas = alphas
        self.prediction = prediction
        self.timesteps = timesteps

    @property
    def identity(self) -> str:
        """Prediction type, timesteps, and noise levels at some of them."""
        last = len(self.alphas) - 1
        places = [round(last * part) for part in IDENTIFYING_PLACES]
        told = places if self.timesteps is None else self.timesteps[places].tolist()
        kept = self.alphas[places].double()
        sigmas = ((1 - kept) / kept).sqrt().tolist()
        levels = ", ".join(f"{sigma:.4g} at {timestep}" for sigma, timestep in zip(sigmas, told, strict=True))
        return f"{self.prediction}, {len(self.alphas)} steps, sigma {levels}"

    def draw(self, generator: torch.Generator) -> Tensor:
        """(1,), a timestep."""
        return torch.randint(len(self.alphas), (1,), generator=generator)

    def held_out(self) -> Tensor:
        """(3,), timesteps."""
        return torch.tensor([int(place * len(self.alphas)) for place in HELD_OUT_TIMESTEPS])

    def add_noise(self, latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """(B, 4, h, w)."""
        return add_noise(latents, noise, levels, self.alphas)

    def network_input(self, noisy: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        """The latents as they are, and what the model is told of their levels."""
        return noisy, levels if self.timesteps is None else self.timesteps.to(levels.device)[levels]

    def loss(
        self,
        predicted: Tensor,
        latents: Tensor,
        noise: Tensor,
        levels: Tensor,
        gamma: float,
        extras: Mapping[str, Tensor],  # noqa: ARG002 - for other objectives
    ) -> Tensor:
        """A scalar."""
        weights = min_snr_weights(self.prediction, levels, self.alphas, gamma) if gamma else None
        return mean_loss(predicted, target_of(self.prediction, latents, noise, levels, self.alphas), weights)

    def sample(self, predict: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int) -> Tensor:
        """DDIM without added noise (arXiv:2010.02502, equation 12)."""
        x = noise
        places = torch.linspace(len(self.alphas) - 1, 0, steps + 1).round().long().tolist()
        for now, later in itertools.pairwise(places):
            predicted = predict(x, torch.full((len(x),), now, device=x.device))
            signal, spread = (float(part) ** 0.5 for part in (self.alphas[now], 1 - self.alphas[now]))
            if self.prediction == "v":
                clean, predicted = signal * x - spread * predicted, spread * x + signal * predicted
            else:
                clean = (x - spread * predicted) / signal
            x = float(self.alphas[later]) ** 0.5 * clean + float(1 - self.alphas[later]) ** 0.5 * predicted
        return clean
