"""The states of a run: after a kill at any moment the last one is intact."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..models.foreign import first_line, parse_json, shown
from .sealed import DamagedFileError, read_sealed, write_sealed

logger = logging.getLogger("nextcontrol")

STATE = re.compile(r"^state-(\d{8})\.state$")
"""Not .safetensors: the folder lies among the model files, and no combo should list it."""
_ABOUT = "nextcontrol.state"


class State(NamedTuple):
    """Everything that a run needs to go on."""

    step: int
    """Updates done."""
    tensors: dict[str, Tensor]
    about: dict[str, Any]
    """Whatever is no tensor."""


class StateStore:
    """The states of one run in a folder.

    Args:
        folder: Of the run.
        keep: How many states stay, the last ones.
        guard: Called before anything is written; raises where another process has taken over.
    """

    def __init__(self, folder: Path, keep: int, guard: Callable[[], None] = lambda: None) -> None:
        self.folder = folder
        self.keep = keep
        self.guard = guard

    def save(self, state: State) -> None:
        """Write a state, and only then drop others: older ones, and those of a later step that could not be read.

        Raises:
            CannotWriteError: It cannot be written; the states that are there stay.
        """
        self.guard()
        own = self._path(state.step)
        write_sealed(own, state.tensors, {_ABOUT: json.dumps(state.about)})
        older = [path for step, path in self._found() if step < state.step]
        later = [path for step, path in self._found() if step > state.step]
        for path in (*later, *older[self.keep - 1 :]):
            _delete(path)

    def has(self, step: int) -> bool:
        """Whether the state of that step is there."""
        return self._path(step).is_file()

    def load(self, problem: Callable[[State], str] = lambda _state: "") -> State | None:
        """Find the newest state that can be used.

        Args:
            problem: Says what is wrong inside a state whose file is whole; empty if nothing is. May raise.

        Returns:
            The state, or None if there is none.

        Raises:
            DamagedFileError: There are states, and none can be used.
        """
        for state in self._states():
            if reason := problem(state):
                _warn(self._path(state.step).name, reason)
            else:
                return state
        if self._found():
            raise DamagedFileError(
                f"No saved state in '{shown(self.folder.name)}' can be read (the log says why): train under another name, or "
                "delete that folder to start again."
            )
        return None

    def _states(self) -> Iterator[State]:
        """Newest first; what cannot be read is left out with a warning."""
        return filter(None, (_read(step, path) for step, path in self._found()))

    def _path(self, step: int) -> Path:
        return self.folder / f"state-{step:08d}.state"

    def _found(self) -> list[tuple[int, Path]]:
        """Newest first."""
        if not self.folder.is_dir():
            return []
        matches = ((STATE.match(path.name), path) for path in self.folder.iterdir())
        return sorted(((int(match[1]), path) for match, path in matches if match and path.is_file()), reverse=True)


def _read(step: int, path: Path) -> State | None:
    try:
        tensors, metadata = read_sealed(path, [_ABOUT])
        about = parse_json(metadata[_ABOUT])
        if not isinstance(about, dict):
            raise DamagedFileError("its header holds no object")
    except (ValueError, KeyError) as error:
        _warn(path.name, first_line(error))
        return None
    return State(step, tensors, about)


def _delete(path: Path) -> None:
    """Delete a state, unless another program reads it, as on Windows: the newer one is written, and nothing is lost."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("'%s' cannot be deleted: %s", path.name, first_line(error))


def _warn(name: str, reason: str) -> None:
    logger.warning("'%s' is damaged (%s): the one before it is looked at", name, reason)
