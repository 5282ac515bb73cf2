"""Sentences that the numbers choose: what a paper claims, and whether it shows here."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any, NamedTuple

from prove_metrics import METRICS, share_of_way

if TYPE_CHECKING:
    from collections.abc import Sequence

SAME = 0.02
"""Difference, as a part of the larger value, up to which two means are called equal."""
HALF = 0.5
"""Part of the way to the true pictures from which on a hint counts as followed."""
KEPT, LOST = 0.8, 0.5
"""Part of an effect from which on it is kept, and below which it is not."""
VERDICTS = {1: "Shown", 0: "Not decided", -1: "Not shown"}
Curves = list[list[Any]]
"""For each seed [step, metrics] at each look."""
TIME = "time"
"""In the place of a type of hint: steps without a control."""


class Claim(NamedTuple):
    """A sentence of a paper, held against the numbers."""

    paper: str
    verdict: int
    """1 shown, 0 not decided by these numbers, -1 not shown."""
    figures: str

    @property
    def text(self) -> str:
        """For the document."""
        return f"**{VERDICTS[self.verdict]}.** {self.paper} {self.figures}"


def order(first: Sequence[float], second: Sequence[float], is_higher_better: bool) -> int:
    """By a value for each seed: 1 if the first is better, -1 the second, 0 where ranges overlap or means are nearly equal."""
    one, other = statistics.mean(first), statistics.mean(second)
    high, low = (first, second) if one > other else (second, first)
    if abs(one - other) <= SAME * max(abs(one), abs(other)) or min(high) <= max(low):
        return 0
    return 1 if (one > other) == is_higher_better else -1


def compared(
    paper: str, names: tuple[str, str], first: Sequence[float], second: Sequence[float], condition: str = TIME, lead: str = ""
) -> Claim:
    """A claim that the first of two ways is the better one, as `condition` measures it."""
    title, is_higher_better = METRICS.get(condition, ("time of a step", False))
    verdict = order(first, second, is_higher_better)
    end = {1: "", 0: ": too near to tell", -1: ": the other way round"}[verdict]
    return Claim(paper, verdict, f"{_head(title, lead)}: {names[0]} {cell(first)}, {names[1]} {cell(second)}{end}.")


def part_kept(
    paper: str,
    whole: tuple[str, Sequence[float]],
    rest: tuple[str, Sequence[float]],
    none: Sequence[float],
    condition: str,
    lead: str = "",
) -> Claim:
    """A claim that the second way has the effect of the first, both against `none`."""
    start = statistics.mean(none)
    full, part = (statistics.mean(values) - start for _, values in (whole, rest))
    # An effect for the worse is none that could be kept.
    has_effect = full != 0 and (full > 0) == METRICS[condition].is_higher_better
    share = part / full if has_effect else 0.0
    verdict = 0 if not has_effect else 1 if share >= KEPT else 0 if share >= LOST else -1
    told = ", ".join(f"{name} {cell(values)}" for name, values in (whole, rest, ("no control", none)))
    end = f"{share:.0%} of the effect" if has_effect else "no effect to compare with"
    return Claim(paper, verdict, f"{_head(METRICS[condition].title, lead)}: {told}: {end}.")


def _head(title: str, lead: str) -> str:
    told = f"{lead}, {title}" if lead else title
    return told[0].upper() + told[1:]


def cell(values: Sequence[float]) -> str:
    """Mean, and the range where there are several."""
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


def values_at(curves: Curves, place: int, condition: str) -> list[float]:
    """Of each seed, at one look."""
    return [curve[place][1][condition] for curve in curves]


def over_the_run(curves: Curves, condition: str) -> list[float]:
    """Of each seed, the mean of all looks but the first: what is good early counts as much as at the end."""
    return [statistics.mean(look[1][condition] for look in curve[1:]) for curve in curves]


def steps_to_follow(curves: Curves, condition: str, none: Sequence[float], best: float) -> int | None:
    """The first look at which the mean over the seeds has come half of the way, or None."""
    for place, (step, _) in enumerate(curves[0]):
        if share_of_way(condition, statistics.mean(values_at(curves, place, condition)), statistics.mean(none), best) >= HALF:
            return int(step)
    return None
