"""A set-up in steps that the user can follow: what is running, for how long, and where its output is kept."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from provide import SetupError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

SILENCE_SECONDS = 10.0
# Lines of pip that say what goes on; the rest is for the log.
NEWS = ("Collecting ", "Downloading ", "Using cached ", "Building ", "Preparing ", "Installing ", "WARNING: Retrying", "ERROR:")
# Settings of the user that would send an install elsewhere are off; his index, proxy and certificates stay.
PIP_ENVIRONMENT = {
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_NO_INPUT": "1",
    "PIP_PROGRESS_BAR": "off",
    "PIP_USER": "0",
}


class Steps:
    """Counted steps on stderr: one line that updates on a terminal, a line now and then elsewhere."""

    def __init__(self, total: int, log: Path) -> None:
        self.total = total
        self.log = log
        self._number = 0
        self._title = ""
        self._start = self._shown = 0.0
        self._is_terminal = sys.stderr.isatty()
        log.write_text("", encoding="utf-8")

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Announce the next step and, when its block ends, how long it took."""
        self._number += 1
        self._title = title
        self._start = time.monotonic()
        self._show("...")
        try:
            yield
        except BaseException:
            if self._is_terminal:
                sys.stderr.write("\n")
            raise
        self._show("done", is_last=True)

    def run(self, command: Sequence[str | Path], environment: dict[str, str] | None = None) -> tuple[int, list[str]]:
        """Run a command to its end, its output going to the log.

        Returns:
            The exit status and the last 20 lines of output.
        """
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            close_fds=False,  # the lock of provide.hold_lock goes along
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        try:
            tail = self._follow(process)
            return process.wait(), tail
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()

    def _follow(self, process: subprocess.Popen[str]) -> list[str]:
        lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=_read_lines, args=(process, lines), daemon=True).start()
        tail: deque[str] = deque(maxlen=20)
        note = "..."
        with self.log.open("a", encoding="utf-8") as log:
            while True:
                try:
                    line = lines.get(timeout=1.0)
                except queue.Empty:
                    # Nothing new, but the seconds go on.
                    self._update(note)
                    continue
                if line is None:
                    return list(tail)
                log.write(line)
                if text := line.strip():
                    tail.append(text)
                if text.startswith(NEWS):
                    note = text
                self._update(note)

    def pip(self, python: Path, arguments: Sequence[str | Path], what: str, otherwise: str) -> None:
        """Run `pip` of an interpreter.

        Args:
            python: The interpreter whose pip runs.
            arguments: Of pip, from its command on.
            what: The packages, as named in the error.
            otherwise: What the user can do apart from repairing the connection.

        Raises:
            SetupError: pip failed.
        """
        # Downloads are unpacked beside the log: /tmp is often too small for torch, and is not ours to litter.
        temporary = self.log.with_suffix(".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        places = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))
        try:
            status, tail = self.run([python, "-I", "-m", "pip", *arguments], {**PIP_ENVIRONMENT, **places})
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        if status:
            reasons = [line for line in tail if line.startswith("ERROR:")] or tail or [f"exit status {status}"]
            reason = reasons[-1].removeprefix("ERROR: ").rstrip(".")
            message = (
                f"pip could not get {what} ({reason}): check the connection, the proxy and pip's own settings, "
                f"then run this again{otherwise}; pip's output is in '{self.log}'."
            )
            raise SetupError(message)

    def _update(self, note: str) -> None:
        pause = 0.1 if self._is_terminal else SILENCE_SECONDS
        if time.monotonic() - self._shown >= pause:
            self._show(note)

    def _show(self, note: str, *, is_last: bool = False) -> None:
        self._shown = time.monotonic()
        seconds = self._shown - self._start
        text = f"[{self._number}/{self.total}] {self._title}: {note}"
        width = shutil.get_terminal_size().columns - 12 if self._is_terminal else 110
        text = f"{text[:width]} ({seconds:.0f} s)"
        if self._is_terminal:
            text = f"\r{text:<{width + 8}}"
        sys.stderr.write(text + ("\n" if is_last or not self._is_terminal else ""))
        sys.stderr.flush()


def _read_lines(process: subprocess.Popen[str], lines: queue.SimpleQueue[str | None]) -> None:
    for line in process.stdout or ():
        lines.put(line)
    lines.put(None)
