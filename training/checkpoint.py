"""Files that are whole or not there, and the states of a run: after a kill at any moment the last one is intact."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

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


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file that has its name only when it is complete and on the disk.

    Args:
        path: Replaced if it is there.
        tensors: On the CPU.
        metadata: Strings for the header.

    Raises:
        OSError: The disk is full or not writable; what was at `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, temporary, metadata=dict(metadata))
        temporary.chmod(mode)  # the library makes files that their owner alone can read
        put_in_place(temporary, path)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in the same way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        temporary.write_text(text, encoding="utf-8")
        put_in_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    """Of its own for each process, of one run or of several that share a folder, on one machine or on several."""
    return path.with_name(f".{path.name}.{os.environ.get('RANK', '0')}.{os.getpid()}.part")


def put_in_place(temporary: Path, path: Path) -> None:
    """Give a finished file its name, with both on the disk."""
    with temporary.open("rb+") as stream:
        os.fsync(stream.fileno())
    temporary.replace(path)
    with suppress(OSError):  # Windows has no way to flush a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


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
