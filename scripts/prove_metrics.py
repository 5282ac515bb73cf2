"""How well pictures do what their hints ask for, judged by the hints' own detectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

TOLERANCE = 1
"""Pixels by which an edge may lie beside the hint's."""


class Metric(NamedTuple):
    """What is measured for one type of hint."""

    title: str
    is_higher_better: bool


METRICS: Mapping[str, Metric] = {
    "canny": Metric("edge F1", is_higher_better=True),
    "palette": Metric("palette error", is_higher_better=False),
    "grayscale": Metric("grayscale error", is_higher_better=False),
}


def measure(pictures: Tensor, hints: Mapping[str, Tensor], draw: Callable[[str, Tensor], Tensor]) -> dict[str, float]:
    """By type of hint, how well pictures (N, H, W, 3) fit the hints of the true ones, averaged over them."""
    return {
        condition: float((edge_f1 if condition == "canny" else hint_error)(draw(condition, pictures), wanted).mean())
        for condition, wanted in hints.items()
    }


def edge_f1(found: Tensor, wanted: Tensor, tolerance: int = TOLERANCE) -> Tensor:
    """F1 of edges: how many of those found lie at a wanted one, and the other way round.

    Args:
        found: (N, H, W, 3), white lines on black.
        wanted: Likewise.
        tolerance: Pixels that two edges may be apart, diagonally too.

    Returns:
        (N,), 1 where both have the same edges or none, 0 where one has none.
    """
    from torch.nn import functional as F

    one, other = (hint[..., 0] > 0.5 for hint in (found, wanted))

    def near(edges: Tensor) -> Tensor:
        return F.max_pool2d(edges[:, None].float(), 2 * tolerance + 1, stride=1, padding=tolerance)[:, 0] > 0

    precision, recall = ((a & near(b)).sum((1, 2)) / a.sum((1, 2)).clamp(min=1) for a, b in ((one, other), (other, one)))
    scores = 2 * precision * recall / (precision + recall).clamp(min=1e-9)
    return scores.where(one.any(2).any(1) | other.any(2).any(1), scores.new_ones(()))


def hint_error(found: Tensor, wanted: Tensor) -> Tensor:
    """(N,), mean absolute difference of hints (N, H, W, 3) in [0, 1]."""
    return (found - wanted).abs().mean((1, 2, 3))


def share_of_way(condition: str, value: float, none: float, best: float) -> float:
    """How far a control gets: 0 as without it or where there is no way, 1 as the true pictures behind the autoencoder."""
    way = best - none if METRICS[condition].is_higher_better else none - best
    return (value - none) / (best - none) if way > 0 else 0.0
