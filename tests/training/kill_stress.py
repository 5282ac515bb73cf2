"""Kill a training at random moments and let it go on: the weights have to be those of a run that nobody killed.

    python tests/training/kill_stress.py [--kills 20] [--seed 0]

With a Python that has torch, safetensors, numpy and Pillow; ComfyUI is not needed. Systems without fork are left out.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STEPS = 16


def train(work: Path, pairs: Path) -> None:
    """One life of the run, from the last state to the end."""
    import torch
    from tiny_training import tiny_run

    torch.set_num_threads(1)
    run = tiny_run(work, pairs, steps=STEPS, ema_decay=0.9, accumulation_steps=2, schedule="cosine", warmup_steps=5)
    run.resume()
    run.train()


def fork(work: Path, pairs: Path) -> int:
    """A process with one life of the run; the parent has used no thread of torch, so that it may be copied."""
    child = os.fork()
    if child:
        return child
    try:
        train(work, pairs)
    except BaseException as error:  # noqa: BLE001 - the child must not return into the parent's code
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def result(work: Path) -> tuple[str, str]:
    """Digests of the weights and of the losses."""
    import json

    lines = [json.loads(line) for line in (work / "lora.training" / "metrics.jsonl").read_text().splitlines()]
    losses = [(line["step"], line.get("loss"), line.get("sensitivity_shuffled")) for line in lines]
    weights = hashlib.sha256((work / "lora.safetensors").read_bytes()).hexdigest()
    return weights, hashlib.sha256(repr(losses).encode()).hexdigest()


def kill_until_it_ends(work: Path, pairs: Path, most: int, moment: Callable[[], float]) -> int | None:
    """Start a run again and again, and kill it each time, until it gets to its end.

    Args:
        work: Folder of the run.
        pairs: Folder of the dataset.
        most: Kills, after which it is left alone.
        moment: Seconds until the next kill.

    Returns:
        How many kills hit it; None if it ended in another way.
    """
    killed = 0
    while True:
        child = fork(work, pairs)
        if killed < most:
            time.sleep(moment())
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if status == 0:
            return killed
        if status != signal.SIGKILL:
            return None
        killed += 1


def main(arguments: list[str]) -> int:
    """Train once undisturbed, once with kills, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "scripts")]
    from host_library import import_pack

    import_pack()
    import tiny_training

    draw = random.Random(options.seed)  # noqa: S311 - moments, not secrets
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pairs = tiny_training.write_pairs(folder / "pairs")
        start = time.monotonic()
        if os.waitpid(fork(folder / "whole", pairs), 0)[1]:
            return 1
        seconds, killed, runs = time.monotonic() - start, 0, 0
        whole = result(folder / "whole")
        while killed < options.kills or not runs:
            runs += 1
            work = folder / f"killed_{runs}"
            kills = kill_until_it_ends(work, pairs, options.kills - killed, lambda: draw.uniform(0, seconds / 2))
            if kills is None:
                return 1
            if result(work) != whole:
                sys.stdout.write(f"run {runs}, killed {kills} times: OTHER WEIGHTS OR LOSSES\n")
                return 1
            killed += kills
        sys.stdout.write(f"{killed} kills in {runs} run{'s' * (runs > 1)}: the same weights and losses\n")
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
