"""A run of the fuzzer: many cases of several targets, counted and listed."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fuzz.cases import Target, Trial
from fuzz.judge import FAULTS, OK, OUTCOMES, REFUSED
from fuzz.workers import Task, run_tasks

SHARES = {"weights": 50, "dataset": 25, "shards": 10, "states": 8, "annotators": 7}
"""Cases of each target among a hundred."""
SHOWN = 12
"""Distinct faults of an outcome that are shown."""


def targets_of(names: list[str]) -> dict[str, Target]:
    """What is fuzzed, by name; the host and the pack are imported."""
    import nextcontrol
    import torch

    torch.set_num_threads(1)
    asyncio.run(nextcontrol.comfy_entrypoint())  # registers our folders
    found: dict[str, Target] = {}
    for name in names:
        module = __import__(f"fuzz.{name}", fromlist=["TARGET"])
        found[name] = module.TARGET()
    return found


def tasks_of(names: list[str], count: int) -> Iterator[Task]:
    """Names and numbers of so many cases, the targets taking turns by their shares."""
    total = sum(SHARES[name] for name in names)
    wanted = {name: max(1, round(count * SHARES[name] / total)) for name in names}
    for number in range(max(wanted.values())):
        yield from ((name, number) for name in names if number < wanted[name])


class Tally:
    """Outcomes of cases, and what differs among the faults."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self.faults: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        self.refusals: Counter[str] = Counter()
        self.verdicts: list[dict[str, str]] = []
        """Of the last case."""

    def add(self, task: Task, verdicts: list[dict[str, str]]) -> None:
        """Take note of a case."""
        target, number = task
        self.verdicts = verdicts
        outcomes = [verdict["outcome"] for verdict in verdicts]
        # A file is ok where something could be done with it: not every loader is meant for it.
        worst = OK if OK in outcomes and not set(outcomes) & set(FAULTS) else max(outcomes, key=OUTCOMES.index)
        self.counts[target]["cases"] += 1
        self.counts[target][worst] += 1
        for verdict in verdicts:
            if verdict["outcome"] in FAULTS:
                place = (verdict["outcome"], verdict["where"] or verdict["message"][:40])
                self.faults[place].append(verdict | {"case": f"{self.seed}:{target}:{number}"})
            elif verdict["outcome"] == REFUSED:
                self.refusals[verdict["where"]] += 1

    def table(self) -> str:
        """Markdown."""
        heads = ("target", "cases", *OUTCOMES)
        lines = [f"| {' | '.join(heads)} |", f"| {' | '.join(['---'] * len(heads))} |"]
        rows = dict(self.counts)
        if len(rows) > 1:
            rows["all"] = sum(self.counts.values(), Counter())
        lines += [f"| {name} | {' | '.join(str(row[head]) for head in heads[1:])} |" for name, row in rows.items()]
        return "\n".join(lines)

    def report(self, shown: int = SHOWN) -> str:
        """The distinct faults, the commonest first, with one case each."""
        lines = []
        for outcome in FAULTS:
            found = sorted(
                ((len(all_), all_[0]) for (one, _), all_ in self.faults.items() if one == outcome), key=lambda x: -x[0]
            )
            if found:
                lines.append(f"\n{outcome}: {len(found)} distinct")
            for count, first in found[:shown]:
                lines.append(f"* {count}x {first['where']}")
                lines.append(f"  {first['message'][:300]}")
                lines.append(f"  --case {first['case']} ({first['action']} of {first['made']})")
        return "\n".join(lines)

    @property
    def is_clean(self) -> bool:
        """No fault at all."""
        return not self.faults


class Campaign:
    """Targets that are ready."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.targets = targets_of(names)

    def run(self, count: int, seed: int, workers: int, numbers: list[Task] | None = None, *, is_silent: bool = False) -> Tally:
        """Try cases.

        Args:
            count: Of all targets together.
            seed: Of all cases.
            workers: Processes.
            numbers: Which ones, in place of `count`.
            is_silent: No progress on the error stream.

        Returns:
            What came of them.
        """
        tally, start = Tally(seed), time.monotonic()
        tasks = numbers if numbers is not None else tasks_of(self.names, count)
        found = run_tasks(tasks, lambda folder: Trial(self.targets, seed, folder), workers)
        for done, (task, verdicts) in enumerate(found, 1):
            tally.add(task, verdicts)
            if not is_silent and done % 500 == 0:
                sys.stderr.write(f"{done} cases in {time.monotonic() - start:.0f} s\n")
        return tally


def write_faults(tally: Tally, path: Path) -> None:
    """All faults, for other programs."""
    rows = [{"count": len(found), **found[0]} for found in tally.faults.values()]
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
