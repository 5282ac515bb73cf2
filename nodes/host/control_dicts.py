"""What a control gives the host: lists of residuals by depth."""

from __future__ import annotations

import itertools

from torch import Tensor

Control = dict[str, list[Tensor | None]]
"""By "input", "middle" and "output"; the host takes residuals from the end of each list."""


def add_residuals(total: list[Tensor], residuals: list[Tensor]) -> list[Tensor]:
    """The sum of two lists, term by term."""
    return [a + b for a, b in zip(total, residuals, strict=True)]


def join_controls(control: Control, before: Control | None) -> Control:
    """The sum of two dictionaries of residuals, either of which may lack some."""
    if before is None:
        return control

    def add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return b if a is None else a if b is None else a + b

    names = dict.fromkeys((*control, *before))
    return {name: [add(a, b) for a, b in itertools.zip_longest(control.get(name, []), before.get(name, []))] for name in names}
