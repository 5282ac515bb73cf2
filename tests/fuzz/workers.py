"""Processes that try cases one after the other, and who watches them: a case that hangs costs its worker, not the run."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import resource
import selectors
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from fuzz.judge import HANG, MEMORY, Verdict, short

SECONDS = 5.0
"""Of processor time that one action may take, or of waiting for something that does not come."""
MAKING_SECONDS = 60.0
"""For making the case itself."""
GIGABYTE = 1 << 30
MAKE = "make"
Task = tuple[str, int]
"""Name of the target and number of the case."""


@dataclass
class Worker:
    """A forked copy of this process."""

    process: int
    tasks: Any
    """Where its tasks are written."""
    answers: int
    """What it says."""
    stack: Path
    """Where it writes its stack when it is asked to."""
    task: Task | None = None
    action: str = ""
    made: str = ""
    since: tuple[float, float] = (0.0, 0.0)
    """Clock and processor time at the start of the action."""
    memory: int = 0
    rest: bytes = b""
    verdicts: list[dict[str, str]] = field(default_factory=list)


def run_tasks(
    tasks: Iterable[Task], enter: Callable[[Path], Callable[[Task], Iterator[dict[str, Any]]]], count: int
) -> Iterator[tuple[Task, list[dict[str, str]]]]:
    """Try cases in several processes.

    Args:
        tasks: Names and numbers.
        enter: Called once in each process with a folder of its own; gives what tries a case, and says what it does meanwhile.
        count: Processes.

    Yields:
        Tasks with their verdicts (see `Verdict`), as they come.
    """
    todo, workers, tried = iter(tasks), {}, set()
    with tempfile.TemporaryDirectory(prefix="nextcontrol-fuzz-") as room, selectors.DefaultSelector() as selector:

        def hire() -> None:
            if task := next(todo, None):
                worker = fork(enter, Path(tempfile.mkdtemp(dir=room)))
                workers[worker.answers] = worker
                selector.register(worker.answers, selectors.EVENT_READ)
                give(worker, task)

        def give(worker: Worker, task: Task | None) -> None:
            worker.task, worker.verdicts = task, []
            worker.action, worker.made, worker.since = MAKE, "", (time.monotonic(), processor_time(worker.process))
            with contextlib.suppress(BrokenPipeError):
                worker.tasks.write((json.dumps(worker.task) + "\n").encode())
                worker.tasks.flush()

        def dismiss(worker: Worker) -> None:
            selector.unregister(worker.answers)
            del workers[worker.answers]
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.process, signal.SIGKILL)
            os.waitpid(worker.process, 0)
            os.close(worker.answers)
            with contextlib.suppress(BrokenPipeError):
                worker.tasks.close()
            shutil.rmtree(worker.stack.parent, ignore_errors=True)

        try:
            for _ in range(count):
                hire()
            while any(worker.task for worker in workers.values()):
                for key, _ in selector.select(0.2):
                    worker = workers[key.fd]
                    data = os.read(worker.answers, 1 << 16)
                    *lines, worker.rest = (worker.rest + data).split(b"\n")
                    for line in lines:
                        if done := hear(worker, json.loads(line)):
                            yield worker.task, worker.verdicts
                            if done == "again":
                                give(worker, next(todo, None))
                    if not data:  # it has ended itself, or died
                        if worker.task and worker.action == MAKE:  # the system may have been short of memory
                            if worker.task in tried:
                                raise RuntimeError(f"Making {worker.task} ended two processes: {worker.stack.read_text()}")
                            tried.add(worker.task)
                            todo = chain([worker.task], todo)
                        elif worker.task and worker.action:
                            yield worker.task, [*worker.verdicts, fault(worker, MEMORY, "the process died")]
                        dismiss(worker)
                        hire()
                for worker in list(workers.values()):
                    if worker.task and (late := lateness(worker)):
                        if worker.action == MAKE:
                            raise RuntimeError(f"The case {worker.task} is not made after {MAKING_SECONDS:.0f} s.")
                        verdict = fault(worker, *late)
                        task = worker.task
                        dismiss(worker)
                        yield task, [*worker.verdicts, verdict]
                        hire()
        finally:
            for worker in list(workers.values()):
                dismiss(worker)


def hear(worker: Worker, said: dict[str, Any]) -> str:
    """Take note of what a worker says; "again" when it is done with its case, "last" if it ends with it."""
    if "action" in said:
        worker.action, worker.made = said["action"], said["made"]
        worker.since, worker.memory = (time.monotonic(), processor_time(worker.process)), resident(worker.process)
    elif "verdict" in said:
        worker.verdicts.append(said["verdict"])
    elif "done" in said:
        worker.action = ""
        return str(said["done"])
    return ""


def fault(worker: Worker, outcome: str, message: str) -> dict[str, str]:
    """The verdict on an action that did not end."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker.process, signal.SIGUSR1)
        time.sleep(0.3)
    frames = [line.strip() for line in worker.stack.read_text(errors="replace").splitlines() if line.startswith("  File ")]
    parts = [line.split('"') for line in frames[:12]]
    known = [f"{short(part[1])}:{part[2].split()[2]} {part[2].split()[-1]}" for part in parts if "/tests/" not in part[1]]
    return Verdict(outcome, worker.action, worker.made, message, " < ".join(known[:4])).as_dict()


def lateness(worker: Worker) -> tuple[str, str] | None:
    """Outcome and message of an action that goes on for too long, or takes too much."""
    clock, used = time.monotonic() - worker.since[0], processor_time(worker.process) - worker.since[1]
    limit = MAKING_SECONDS if worker.action == MAKE else SECONDS
    # Others may be using the processors: waiting counts only where nothing is computed.
    if used > limit or (clock > limit and used < clock / 10) or clock > 6 * limit:
        return HANG, f"{clock:.0f} s, {used:.0f} s of them computing"
    if worker.action != MAKE and resident(worker.process) - worker.memory > 2 * GIGABYTE:
        return MEMORY, f"{(resident(worker.process) - worker.memory) / 1e9:.1f} GB more"
    return None


def fork(enter: Callable[[Path], Callable[[Task], Iterator[dict[str, Any]]]], folder: Path) -> Worker:
    """Start a worker; this process must have no threads of torch."""
    (task_end, task_start), (answer_end, answer_start) = os.pipe(), os.pipe()
    stack = folder / "stack.txt"
    stack.touch()
    child = os.fork()
    if child:
        os.close(task_end)
        os.close(answer_start)
        return Worker(child, os.fdopen(task_start, "wb"), answer_end, stack)
    try:
        os.close(task_start)
        os.close(answer_end)
        os.dup2(os.pipe()[0], 0)  # a question to the user is never answered
        with stack.open("w") as stream, os.fdopen(task_end, "rb") as tasks, os.fdopen(answer_start, "wb") as answers:
            faulthandler.enable(stream)
            faulthandler.register(signal.SIGUSR1, stream, all_threads=False)
            serve(enter(folder), tasks, answers)
    except BaseException:  # noqa: BLE001 - the child must not return into the parent's code
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def serve(try_case: Callable[[Task], Iterator[dict[str, Any]]], tasks: Any, answers: Any) -> None:
    """A worker's life: case after case until there is none, or until one has left it in disorder."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 5 * GIGABYTE, resource.getrlimit(resource.RLIMIT_AS)[1]))
    while (task := json.loads(tasks.readline() or "null")) is not None:
        for said in try_case(tuple(task)):
            answers.write((json.dumps(said) + "\n").encode())
            answers.flush()
            if said.get("done") == "last":
                return


def processor_time(process: int) -> float:
    """Seconds that a process has computed."""
    try:
        parts = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")


def resident(process: int | str) -> int:
    """Bytes of main memory that a process has."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0
