"""When a control acts, and how strongly: a part of sampling, and a curve over it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

CURVES = ("constant", "ease in", "ease out", "ease in-out")
SAMPLES = 257
"""Points at which the model's schedule is read."""
# At 0 and 1 the host answers with numbers outside its schedule, so that a range that begins or ends there has no bound.
INSIDE = 1e-6


@dataclass(eq=False)
class Schedule:
    """The active part of sampling in percents, 0 to 1, and the shape of the strength inside it."""

    start: float
    end: float
    curve: str = "constant"
    """One of `CURVES`: full all the time, from 0 to full, from full to 0, or from 0 to full to 0."""
    _range: tuple[float, float] = (float("inf"), 0.0)
    _sigmas: list[float] = field(default_factory=list)

    def copy(self) -> Schedule:
        """The same settings, not yet of any model."""
        return Schedule(self.start, self.end, self.curve)

    def begin(self, percent_to_sigma: Callable[[float], float]) -> None:
        """Translate percents with the schedule of the model that runs."""
        self._range = (percent_to_sigma(self.start), percent_to_sigma(self.end))
        if self.curve != "constant":
            percents = np.linspace(self.start, self.end, SAMPLES).clip(INSIDE, 1 - INSIDE)
            self._sigmas = [percent_to_sigma(float(percent)) for percent in percents]

    def factor(self, sigma: float) -> float:
        """The multiplier of the strength at a noise level; 0 outside the active part."""
        if not self._range[1] <= sigma <= self._range[0]:
            return 0.0
        if self.curve == "constant":
            return 1.0
        # Noise falls while sampling goes on; np.interp wants it rising.
        place = float(np.interp(-sigma, [-value for value in self._sigmas], np.linspace(0, 1, SAMPLES)))
        return _smooth({"ease in": place, "ease out": 1 - place, "ease in-out": 1 - abs(2 * place - 1)}[self.curve])


def _smooth(x: float) -> float:
    """The cubic from 0 to 1 that starts and ends level."""
    return x * x * (3 - 2 * x)
