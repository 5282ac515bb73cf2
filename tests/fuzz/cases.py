"""One case: made from a seed and a number, tried action by action, judged."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from fuzz.judge import ESCAPE, FAULTS, MEMORY, OK, RAW, Verdict, judge, place_of, problem_of_text
from fuzz.workers import GIGABYTE, MAKE, Task, resident

CANARY = "canary of what no case may read"
_STARTING = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "socket.connect", "pty.spawn")


class Made(NamedTuple):
    """A case that is ready."""

    how: str
    """How it was made, in a few words."""
    actions: Mapping[str, Callable[[], Any]]
    """What is done with it, in order, by name."""


class Room(NamedTuple):
    """Where a case lies."""

    folder: Path
    """Its own, empty before each case."""
    outside: Path
    """A folder that it may not touch, with `secret.*` files."""


class Target(Protocol):
    """What is fuzzed. Made before the processes are forked, so that all share what takes long."""

    name: str
    is_watched: bool
    """Whether even opening a file outside is an escape."""

    def enter(self, room: Room) -> None:
        """Called once in each process."""

    def make(self, draw: random.Random, room: Room) -> Made:
        """Write the case into the folder."""


class Trial:
    """Tries cases in one process.

    Args:
        targets: By name.
        seed: Of all cases.
        folder: Of this process.
    """

    def __init__(self, targets: Mapping[str, Target], seed: int, folder: Path) -> None:
        self.targets, self.seed = targets, seed
        self.room = Room(folder / "case", folder / "outside")
        self.room.folder.mkdir()
        write_outside(self.room.outside)
        self.notes: list[str] = []
        self.seen: list[str] = []
        self.is_watching = self.is_running = False
        logger = logging.getLogger("nextcontrol")
        logger.addHandler(_Listener(self.notes))
        logger.setLevel(logging.INFO)
        logger.propagate = False
        sys.addaudithook(self._hear)
        for target in targets.values():
            target.enter(self.room)
        self.kept = listing(self.room.outside)

    def __call__(self, task: Task) -> Iterator[dict[str, Any]]:
        """Try a case, saying what is done."""
        name, number = task
        target = self.targets[name]
        self._clear()
        draw = random.Random(f"{self.seed}:{name}:{number}")  # noqa: S311 - cases, not secrets
        self.is_watching = target.is_watched
        try:
            made = target.make(draw, self.room)
        except Exception as error:  # noqa: BLE001 - a fault of the fuzzer's own
            trace = traceback.extract_tb(error.__traceback__)[-1]
            yield {
                "verdict": Verdict(RAW, MAKE, "", repr(error)[:1000], f"the fuzzer: {trace.filename}:{trace.lineno}").as_dict()
            }
            yield {"done": "again"}
            return
        is_spoilt = False
        for action, run in made.actions.items():
            yield {"action": action, "made": made.how}
            verdict = self._judge(action, made.how, run)
            is_spoilt = is_spoilt or verdict.outcome in FAULTS
            yield {"verdict": verdict.as_dict()}
        self._clear()
        yield {"done": "last" if is_spoilt else "again"}

    def _judge(self, action: str, made: str, run: Callable[[], Any]) -> Verdict:
        import torch

        self.notes.clear()
        self.seen.clear()
        before = start_peak()
        self.is_running = True
        outcome, message, where = OK, "", ""
        try:
            with torch.inference_mode():
                result = run()
            if isinstance(result, str) and (problem := problem_of_text(result)):
                outcome, message = RAW, f"[{problem}] in the text {result[:200]!r}"
        except BaseException as error:  # noqa: BLE001 - judged
            outcome, message, where = judge(error)
            if outcome == RAW and not where:
                where = place_of(error)
        finally:
            self.is_running = False
        if outcome not in FAULTS and (notes := [note for note in self.notes if problem_of_text(note, 1200)]):
            outcome, message, where = RAW, f"[log] {notes[0][:200]!r}", "log " + notes[0][:0]
        grown = peak() - before
        if grown > GIGABYTE:
            outcome, message = MEMORY, f"{grown / 1e9:.1f} GB more; {message}"
        changed = self.kept ^ listing(self.room.outside)
        if self.seen or changed:
            outcome, message = ESCAPE, f"{self.seen[:2]} {sorted(changed)[:2]} {message}"
        return Verdict(outcome, action, made, message[:1500], where)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_running:
            return
        if event.startswith(_STARTING):
            self.seen.append(f"{event} {str(arguments)[:100]}")
        elif self.is_watching and event == "open" and isinstance(arguments[0], (str, bytes)):
            path = os.fsdecode(arguments[0])
            self.is_running = False
            if os.path.realpath(path).startswith(str(self.room.outside)):
                self.seen.append(f"open {path[-100:]}")
            self.is_running = True

    def _clear(self) -> None:
        for path in self.room.folder.iterdir():
            free(path)


class _Listener(logging.Handler):
    def __init__(self, notes: list[str]) -> None:
        super().__init__(logging.INFO)
        self.notes = notes

    def emit(self, record: logging.LogRecord) -> None:
        """Keep what a user would read."""
        self.notes.append(record.getMessage())


def write_outside(folder: Path) -> None:
    """What no case may read or change."""
    from PIL import Image

    folder.mkdir()
    for name in ("secret.txt", "secret.json", "secret.jsonl", "index.json", "prompt.json"):
        (folder / name).write_text(f'{{"{CANARY}": 1}}\n')
    Image.new("RGB", (64, 64), (201, 3, 77)).save(folder / "secret.png")


def listing(folder: Path) -> set[tuple[str, int, int]]:
    """Names, sizes and times."""
    found = ((path, path.lstat()) for path in folder.rglob("*"))
    return {(path.name, status.st_size, status.st_mtime_ns) for path, status in found}


def free(path: Path) -> None:
    """Delete a file or folder, whatever its rights."""
    if path.is_dir() and not path.is_symlink():
        path.chmod(0o700)
        for inner in path.rglob("*"):
            if inner.is_dir() and not inner.is_symlink():
                inner.chmod(0o700)
        shutil.rmtree(path)
    else:
        path.unlink()


def start_peak() -> int:
    """Begin a measurement of the largest memory; what is in use now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return resident("self")


def peak() -> int:
    """The most memory since `start_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


__all__ = ["CANARY", "MAKE", "Made", "Room", "Target", "Trial"]
