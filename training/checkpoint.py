"""The states of a run: after a kill at any moment the last one is intact."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .durable import write_tensors

logger = logging.getLogger("nextcontrol")

STATE = re.compile(r"^state-(\d{8})\.state$")
"""Not .safetensors: the folder lies among the model files, and no combo should list it."""


class State(NamedTuple):
    """Everything that a run needs to go on."""

    step: int
    """Updates done."""
    tensors: dict[str, Tensor]
    about: dict[str, Any]
    """Whatever is no tensor."""


class StateStore:
    """The states of one run in a folder, the last `keep` of them."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, state: State) -> None:
        """Write a state, and only then drop older ones.

        Raises:
            OSError: It cannot be written; the states that are there stay.
        """
        about = json.dumps(state.about)
        write_tensors(self._path(state.step), state.tensors, {"nextcontrol.state": about})
        for _, path in self._found()[self.keep :]:
            path.unlink(missing_ok=True)

    def has(self, step: int) -> bool:
        """Whether the state of that step is there."""
        return self._path(step).is_file()

    def load(self) -> State | None:
        """The newest state that can be read, or None. What a killed run left half-written is removed."""
        if self.folder.is_dir():
            for left_over in self.folder.glob(".*.part"):
                left_over.unlink(missing_ok=True)
        states = (_read(step, path) for step, path in self._found())
        return next((state for state in states if state is not None), None)

    def _path(self, step: int) -> Path:
        return self.folder / f"state-{step:08d}.state"

    def _found(self) -> list[tuple[int, Path]]:
        """Newest first."""
        if not self.folder.is_dir():
            return []
        matches = ((STATE.match(path.name), path) for path in self.folder.iterdir())
        return sorted(((int(match[1]), path) for match, path in matches if match), reverse=True)


def _read(step: int, path: Path) -> State | None:
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["nextcontrol.state"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - the reader is no dictionary
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        logger.warning("'%s' is damaged (%s): the state before it is used", path.name, error)
        return None
    return State(step, tensors, about)
