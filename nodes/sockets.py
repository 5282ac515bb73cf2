"""Socket types of our own, and schemas that every supported host understands."""

from __future__ import annotations

import inspect
from typing import Any

from comfy_api.latest import io

CONTROLNEXT = io.Custom("CONTROLNEXT")
CTRLORA_BASE = io.Custom("CTRLORA_BASE")


def schema(**arguments: Any) -> io.Schema:
    """An `io.Schema` without the arguments that this host's version does not know.

    Args:
        arguments: Of the newest supported host's `io.Schema`, `search_aliases` among them.

    Returns:
        The schema.
    """
    known = inspect.signature(io.Schema).parameters
    return io.Schema(**{name: value for name, value in arguments.items() if name in known})
