"""Settings from the values that a configuration file has."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from ..models.foreign import shown

Settings = TypeVar("Settings")
LARGEST_NUMBER, LONGEST_TEXT, LISTED = 1 << 63, 1000, 5
"""Of a setting; and how many unknown names a message lists."""


def settings_from(cls: type[Settings], values: Mapping[str, Any], what: str) -> Settings:
    """An object of a dataclass whose fields all have a default.

    Args:
        cls: The dataclass; it checks itself when it is made.
        values: By name; what is left out has its default.
        what: "no ... of ...", for a name that is unknown.

    Returns:
        Checked.

    Raises:
        ValueError: A name is unknown, a type is wrong, or the settings contradict each other.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"'{shown(values)}' is no object with settings, as {{}}.")
    given = dict(values)
    types = {field.name: type(field.default) for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = [name for name in given if name not in types]
    problems = [f"{shown(name)} is {what}" for name in unknown[:LISTED]]
    for name, kind in types.items():
        if name not in given:
            continue
        value = given[name]
        # A number that no setting needs would overflow somewhere; NaN is not smaller than anything.
        if isinstance(value, int | float) and not abs(value) < LARGEST_NUMBER:
            problems.append(f"{name} ({shown(value, 40)}) must be a smaller number")
        elif isinstance(value, str) and (len(value) > LONGEST_TEXT or not value.isprintable()):
            problems.append(f"{name} ('{shown(value)}') must be one short line")
        elif kind is float and type(value) is int:
            given[name] = float(value)
        elif type(value) is not kind:
            problems.append(f"{name} ({shown(repr(value))}) must be of the type {kind.__name__}")
    if problems:
        raise ValueError("; ".join(problems) + ".")
    return cls(**given)
