"""An optimizer that learns small convolutional networks in fewer steps than Adam: Muon, with Adam for what is no matrix.

Source: K. Jordan, "Muon: An optimizer for hidden layers in neural networks", 2024; the scale is arXiv:2502.16982's.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

# Source: the article's reference implementation.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
MOMENTUM = 0.95
TOGETHER = 2
"""Matrices of one shape that are turned at once."""
ADAM_SCALE = 0.2
"""Root mean square of Adam's usual steps, which Muon's are brought to: both then share one learning rate."""
BETAS, EPSILON = (0.9, 0.99), 1e-8
LEAST, MOST = 32, 2048
"""Rows and columns of what counts as a matrix: less is a vector or two, more is a table of embeddings. Adam has these."""


class Muon:
    """Steps of equal size in every direction of a weight matrix.

    Args:
        parameters: To train; `grad` is read.
        decay: Of the weights, relative to the learning rate.
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        import torch

        self.decay = decay
        shaped: dict[tuple[int, ...], list[Tensor]] = {}
        others = []
        for parameter in parameters:
            sides = parameter.shape[0], parameter[0].numel()
            if parameter.ndim > 1 and min(sides) >= LEAST and max(sides) <= MOST:
                shaped.setdefault(sides, []).append(parameter)
            else:
                others.append(parameter)
        parts = [group[place : place + TOGETHER] for group in shaped.values() for place in range(0, len(group), TOGETHER)]
        self.matrices = sorted(parts, key=lambda group: -sum(p.numel() * min(p.shape[0], p[0].numel()) for p in group))
        self.momenta = [torch.zeros(len(group), group[0].shape[0], group[0][0].numel()) for group in self.matrices]
        self.adam = torch.optim.AdamW(others, betas=BETAS, eps=EPSILON, weight_decay=0.0, fused=True)

    def step(self, learning_rate: float, run: Callable[..., Iterable[None]] = map) -> None:
        """One update of all parameters.

        Args:
            learning_rate: Of this step.
            run: As `map`; one that works in threads makes it quicker, and changes nothing.
        """
        for _ in run(self._turn, self.matrices, self.momenta, [learning_rate] * len(self.matrices)):
            pass
        for settings in self.adam.param_groups:
            settings["lr"] = learning_rate
        self.adam.step()

    def _turn(self, group: list[Tensor], momentum: Tensor, learning_rate: float) -> None:
        """Update some matrices of one shape."""
        import torch

        with torch.no_grad():
            gradient = torch.stack([p.grad.flatten(1) for p in group if p.grad is not None])
            momentum.lerp_(gradient, 1 - MOMENTUM)
            update = orthogonal(gradient.lerp_(momentum, MOMENTUM))
            size = learning_rate * ADAM_SCALE * math.sqrt(max(update.shape[1:]))
            for parameter, direction in zip(group, update, strict=True):
                parameter.mul_(1 - learning_rate * self.decay).add_(direction.view_as(parameter), alpha=-size)

    def state_dict(self) -> dict[str, Any]:
        """For `load_state_dict`."""
        return {"momenta": self.momenta, "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from another's state."""
        self.momenta = state["momenta"]
        self.adam.load_state_dict(state["adam"])


def orthogonal(matrices: Tensor) -> Tensor:
    """Bring all singular values of matrices (N, R, C) near 1, by Newton and Schulz's iteration."""
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if is_tall else x
