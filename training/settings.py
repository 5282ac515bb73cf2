"""Settings from the values that a configuration file has."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

Settings = TypeVar("Settings")


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
    given = dict(values)
    types = {field.name: type(field.default) for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    problems = [f"{name} is {what}" for name in given if name not in types]
    for name, kind in types.items():
        if name not in given:
            continue
        if kind is float and type(given[name]) is int:
            given[name] = float(given[name])
        if type(given[name]) is not kind:
            problems.append(f"{name} ({given[name]!r}) must be of the type {kind.__name__}")
    if problems:
        raise ValueError("; ".join(problems) + ".")
    return cls(**given)
