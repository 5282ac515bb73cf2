"""One training of a name at a time, across processes and machines that share a folder.

The system's own lock on a file says for certain whether another process of this machine, or of one that the file system
connects, holds it, and ends with that process however it ends. Some file systems keep such locks on one machine: there the
file's content says who trains, and its time, renewed while the training lives, whether that one still does.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from ..models.foreign import read_small_json, shown
from .durable import CannotWriteError, new_name, writing

BEAT_SECONDS = 15.0
"""Between two signs of life."""
DEAD_SECONDS = 180.0
"""Without a sign of life, after which a training on another machine counts as dead."""
_TRIES = 100
"""To open a file that its owner deletes at the same time; some file systems give an open file another number at each look."""
_FAR = 1 << 30
"""The byte that is locked on Windows: beyond the content, which others may read."""


class TakenError(ValueError):
    """A training of that name is under way."""


class LockLostError(CannotWriteError):
    """Another process has taken over, after this one had given no sign of life."""


class RunLock:
    """Held while a training runs.

    Args:
        path: Of the lock's file; the folder above it is made.
        name: Of the training, for messages.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name
        self._run = uuid.uuid4().hex
        self._number: int | None = None
        self._ended = threading.Event()

    def __enter__(self) -> RunLock:
        """Take it.

        Returns:
            Itself.

        Raises:
            TakenError: Somebody else has it; the message says who.
            CannotWriteError: The folder cannot be written to.
        """
        with writing(self.name):
            self._number, is_certain = self._open()
            try:
                self._check_free(is_certain)
                self._sign()
            except BaseException:
                os.close(self._number)
                raise
        threading.Thread(target=self._beat, name="nextcontrol.lock", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Give it back, whatever has happened."""
        assert self._number is not None
        self._ended.set()
        is_own = self._is_own()
        with suppress(OSError):
            if is_own:
                os.ftruncate(self._number, 0)
                if os.name != "nt":
                    self.path.unlink()
        os.close(self._number)
        with suppress(OSError):  # Windows deletes no open file; the folder of a training that has saved nothing goes too
            if is_own and os.name == "nt":
                self.path.unlink()
            self.path.parent.rmdir()

    def check(self) -> None:
        """Make sure before something is written that the lock is still held.

        Raises:
            LockLostError: Somebody else has it.
        """
        owner = self._read()
        if owner and owner.get("run") != self._run:
            raise LockLostError(
                f"The training of '{shown(self.name)}' has been taken over by {_title(owner)}, since this process gave no sign "
                f"of life for {DEAD_SECONDS:.0f} seconds: it stops here and writes nothing more."
            )

    def _open(self) -> tuple[int, bool]:
        """The open file, and whether the system says for certain that no other process of this machine has it."""
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        for attempt in range(1, _TRIES + 1):
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                number = os.open(self.path, flags, 0o666)
            except FileNotFoundError:
                if attempt == _TRIES:
                    raise
                continue  # the folder's owner has deleted it in this moment
            try:
                is_certain = lock_file(number)
            except BlockingIOError as error:
                os.close(number)
                raise TakenError(self._taken(self._read() or {}, 0)) from error
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(number), self.path.stat()) or attempt == _TRIES:
                    return number, is_certain
            os.close(number)  # its owner has deleted it in this moment
        raise TakenError(self._taken({}, 0))

    def _check_free(self, is_certain: bool) -> None:
        owner = self._read()
        if owner and not (is_certain and owner.get("machine") == machine_id()):
            # Signs of life from the future are those of a clock that has been set back since.
            left = DEAD_SECONDS - abs(self._silence())
            if left > 0:
                raise TakenError(self._taken(owner, left))

    def _silence(self) -> float:
        """Seconds since the last sign of life, by the clock of the file system: machines differ in theirs."""
        now = new_name(self.path)
        now.open("xb").close()
        try:
            return now.stat().st_mtime - self.path.stat().st_mtime
        finally:
            now.unlink()

    def _taken(self, owner: dict[str, Any], left: float) -> str:
        wait = f" (if that one is gone, {left:.0f} seconds more)" if left else ""
        return (
            f"'{shown(self.name)}' is being trained by {_title(owner)}: wait for its end{wait}, stop it there, or choose "
            "another name."
        )

    def _sign(self) -> None:
        assert self._number is not None
        since = time.strftime("%Y-%m-%d %H:%M")
        own = {"run": self._run, "machine": machine_id(), "host": platform.node(), "process": os.getpid(), "since": since}
        os.ftruncate(self._number, 0)
        os.lseek(self._number, 0, os.SEEK_SET)
        os.write(self._number, json.dumps(own).encode())
        os.fsync(self._number)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with suppress(OSError):  # a network that is gone for a moment
                if self._is_own():
                    os.utime(self.path)

    def _is_own(self) -> bool:
        return (self._read() or {}).get("run") == self._run

    def _read(self) -> dict[str, Any] | None:
        try:
            owner = read_small_json(self.path)
        except (OSError, ValueError):
            return None
        return owner if isinstance(owner, dict) else None


def _title(owner: dict[str, Any]) -> str:
    if not owner:
        return "another process"
    host, process, since = (shown(owner.get(key, "?"), 40) for key in ("host", "process", "since"))
    return f"process {process} on '{host}' since {since}"


def machine_id() -> str:
    """Return what tells this machine, as it runs since it was started, from every other; containers on it share it."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{platform.node()} {uuid.getnode():x}"


def lock_file(number: int) -> bool:
    """Lock an open file for this process, until the file is closed.

    Args:
        number: Of the file.

    Returns:
        False where the file system knows no locks.

    Raises:
        BlockingIOError: Another process has locked it.
    """
    try:
        _system_lock()(number)
    except (BlockingIOError, PermissionError) as error:
        raise BlockingIOError(*error.args) from error
    except OSError:
        return False
    return True


def _system_lock() -> Callable[[int], None]:
    if os.name == "nt":
        import msvcrt

        def lock(number: int) -> None:
            os.lseek(number, _FAR, os.SEEK_SET)
            msvcrt.locking(number, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        import fcntl

        def lock(number: int) -> None:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)

    return lock
