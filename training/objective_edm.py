"""SVD's loss: noise levels from a distribution of their own, and a network whose input and output are scaled by the level.

Source: dvlab-research/ControlNeXt@ab4b3ac ControlNeXt-SVD-v2-Training/train_svd.py; arXiv:2206.00364 (preconditioning, Karras
sigmas); arXiv:2301.11093 (the schedule moves with the size of the picture).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

WEIGHTS = "weights"
"""Name of the extra that says how much each place of a latent counts: (B, 1, h, w)."""
HELD_OUT_PLACE = 0.5
"""Where held-out clips are looked at, as a part of the distribution. One place: each takes the memory of a whole clip."""


@dataclass(frozen=True)
class EdmObjective:
    """v, of noise levels that a cosine schedule gives, interpolated between two sizes of pictures. See `Objective`."""

    sigma_min: float = 0.002
    """Lowest noise level, as a standard deviation."""
    sigma_max: float = 700.0
    """Highest noise level, as a standard deviation."""
    sigma_data: float = 0.5
    """Standard deviation of the data, for the distribution alone."""
    image_size: float = 64.0
    """Side of the pictures that the schedule is made for."""
    noise_sizes: tuple[float, float] = (32.0, 64.0)
    """Sides of the pictures that it is moved to: for the highest level, and for the lowest."""
    rho: float = 7.0
    """Exponent of the sampling steps; the larger, the more of them at low noise."""

    @property
    def identity(self) -> str:
        """Prediction type and range of noise levels."""
        return f"v, continuous, sigma {self.sigma_min:.4g} to {self.sigma_max:.4g}"

    def level_at(self, place: Tensor) -> Tensor:
        """The noise level at a place of the distribution.

        Args:
            place: (N,), 0 for the highest level, 1 for the lowest; evenly distributed in training.

        Returns:
            (N,), fp32.
        """
        u = place.double()
        first, last = (2 * math.log(size / self.image_size) for size in self.noise_sizes)
        ratio = (1 - u) * self._shifted(u, first) + u * self._shifted(u, last)
        return (self.sigma_data * torch.exp(-ratio / 2)).float()

    def _shifted(self, u: Tensor, shift: float) -> Tensor:
        """Logarithm of the ratio of signal to noise, in the cosine schedule moved by `shift`, ends included."""
        # In this order: at place 0 there is most noise and so the lowest ratio.
        ends = (-2 * math.log(sigma / self.sigma_data) for sigma in (self.sigma_max, self.sigma_min))
        start, stop = (math.atan(math.exp(-(end - shift) / 2)) for end in ends)
        return -2 * torch.log(torch.tan(start + u * (stop - start))) + shift

    def draw(self, generator: torch.Generator) -> Tensor:
        """(1,), a sigma."""
        return self.level_at(torch.rand(1, generator=generator))

    def held_out(self) -> Tensor:
        """(1,), a sigma."""
        return self.level_at(torch.tensor([HELD_OUT_PLACE]))

    def add_noise(self, latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """Latents with noise of the given deviations, one a row."""
        return latents + _column(levels) * noise

    def network_input(self, noisy: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Latents of variance 1, and a quarter of the levels' logarithms."""
        return noisy / (_column(levels) ** 2 + 1).sqrt(), 0.25 * levels.log()

    def denoised(self, predicted: Tensor, noisy: Tensor, levels: Tensor) -> Tensor:
        """The clean latents that a prediction stands for."""
        sigma = _column(levels)
        return noisy / (sigma**2 + 1) - sigma / (sigma**2 + 1).sqrt() * predicted

    def loss(
        self, predicted: Tensor, latents: Tensor, noise: Tensor, levels: Tensor, gamma: float, extras: Mapping[str, Tensor]
    ) -> Tensor:
        """The mean squared error of the clean latents, times (1 + sigma^2) / sigma^2 and times `WEIGHTS` among the extras."""
        # Computed as the error of v, which is the same and leaves no small differences of large numbers.
        sigma = _column(levels)
        target = (noise.float() - sigma * latents.float()) / (sigma**2 + 1).sqrt()
        errors = (predicted.float() - target).square()
        if WEIGHTS in extras:
            errors = errors * extras[WEIGHTS]
        if gamma:  # arXiv:2303.09556, section 3.4, for v: the ratio of signal to noise is 1 / sigma^2
            errors = errors * (sigma**-2).clamp(max=gamma) / (sigma**-2 + 1)
        return errors.mean()

    def sigmas(self, steps: int) -> Tensor:
        """(steps,), from the highest level to the lowest (arXiv:2206.00364, equation 5)."""
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return torch.linspace(high, low, steps, dtype=torch.float64) ** self.rho

    def sample(self, predict: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int) -> Tensor:
        """Euler's method over Karras sigmas, as in the reference."""
        levels = [*self.sigmas(steps).tolist(), 0.0]
        x = noise * math.hypot(levels[0], 1)
        for now, later in itertools.pairwise(levels):
            given = torch.full((len(x),), now, device=x.device)
            clean = self.denoised(predict(x, given), x, given)
            x = clean + (x - clean) * (later / now)
        return x


def _column(levels: Tensor) -> Tensor:
    return levels.float()[:, None, None, None]
