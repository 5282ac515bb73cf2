"""What every benchmark uses: kinds of step timed in alternation, and medians of their ratios."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

UNCOUNTED = 1
"""Rounds at the start that warm up."""


def alternate(steps: int, kinds: dict[str, Callable[[float], Any]]) -> dict[str, list[float]]:
    """Seconds of each kind of step, taken in turn; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for sigma in noise_levels(steps):
        for name, step in kinds.items():
            seconds[name].append(timed(step, sigma))
    bare = seconds["bare"][UNCOUNTED:]
    print(f"bare step: {statistics.median(bare):.3f} s", flush=True)
    return {name: values[UNCOUNTED:] for name, values in seconds.items()}


def noise_levels(steps: int) -> list[float]:
    """Another for each step, as in sampling, so that what is kept for a level does not help."""
    return [14 - 13.9 * i / (steps + UNCOUNTED - 1) for i in range(steps + UNCOUNTED)]


def report(title: str, ratios: list[float]) -> None:
    """One line: the median, and the range."""
    print(f"{title}: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})", flush=True)


def timed(step: Callable[[float], Any], sigma: float) -> float:
    """Seconds that a step takes, the device's work included."""
    import torch

    start = time.perf_counter()
    step(sigma)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def fill(network: Any) -> Any:
    """Random weights that keep the size of what passes through; speed does not depend on them."""
    for parameter in network.parameters():
        parameter.data.normal_(std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1)
    return network.eval()
