"""Many mixed prompts on one real server: what fails, and whether its memory grows.

    python3 tests/workflows/soak.py [--count 500] [--seed 0] [--release VERSION]

The same seed gives the same prompts: workflows of this pack with other seeds, strengths, ranges and sizes, all on the small
models that the tests use. Memory is the server's resident set, which goes up and down with each prompt: its lowest value in
the fifth of the prompts that comes after the first, which warms up, and in the last fifth.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "scripts"), str(ROOT / "tests"), str(Path(__file__).parent)]

from host import Host, find_host  # noqa: E402

KINDS = {
    "controlnext_sd15_canny": False, "demo_controlnext": False, "demo_ctrlora": False, "demo_two_conditions": False,
    "ctrlora_single": False, "ctrlora_with_native_controlnet": False, "ctrlora_two_conditions": True, "stack_regional": True,
    "stack_three_controls": True, "hints_gallery": False, "pose_from_any_detector": False,
}  # fmt: skip
"""Workflows, and whether the small checkpoint takes the place of a file that the tests do not have."""
PARTS, ROWS = 5, 10
"""Of the prompts in which memory is compared, and lines of the table."""


def mixed_prompt(source: random.Random) -> tuple[str, dict[str, dict[str, Any]]]:
    """One of the workflows with values of its own; its name and graph."""
    from demo_checkpoint import CHECKPOINT
    from demo_job import set_inputs
    from real_server import api_workflow

    name = source.choice(list(KINDS))
    graph = api_workflow(name)
    if KINDS[name]:
        set_inputs(graph, "ckpt_name", CHECKPOINT.partition("/")[2])
    start = source.choice([0.0, 0.0, 0.3])
    size = source.choice([64, 96, 128, 192])
    values = {
        "seed": source.randrange(10**6), "noise_seed": source.randrange(10**6), "strength": source.choice([0.0, 0.4, 1.0, 1.7]),
        "start_percent": start, "end_percent": source.choice([0.6, 1.0]), "cfg": source.choice([1.0, 4.0, 7.5]),
        "steps": source.choice([1, 2, 4]), "resolution": size,
        "batch_size": source.choice([1, 1, 2]), "sampler_name": source.choice(["euler", "dpmpp_2m", "euler_ancestral"]),
    }  # fmt: skip
    for key, value in values.items():
        set_inputs(graph, key, value)
    for key, value in (("width", size), ("height", source.choice([64, 128]))):
        set_inputs(graph, key, value, ("EmptyLatentImage",))
    return name, graph


def resident_bytes(base: Path) -> int:
    """Of the server in that folder, a child of this process."""
    import psutil

    for process in psutil.Process().children(recursive=True):
        if str(base) in process.cmdline():
            return int(process.memory_info().rss)
    raise LookupError(base)


def say(text: str) -> None:
    """A line of the table."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def soak(host: Host, count: int, seed: int) -> int:
    """Run the prompts and print the table.

    Returns:
        How many failed.
    """
    from host_server import Server
    from real_server import fill, wait

    source, begin = random.Random(seed), time.monotonic()  # noqa: S311 - a mixture, no secret
    failures: list[str] = []
    resident: list[int] = []
    with Server(host, ROOT) as server:
        fill(server)
        say(f"ComfyUI {host.version}, {count} prompts, seed {seed}\n\n{'prompts':>8}{'seconds':>9}{'MB':>8}{'failed':>8}")
        for number in range(1, count + 1):
            name, graph = mixed_prompt(source)
            try:
                entry = wait(server, server.post_json("/prompt", {"prompt": graph})["prompt_id"])
                failed = [data["exception_message"] for kind, data in entry["status"]["messages"] if kind == "execution_error"]
            except (RuntimeError, TimeoutError) as error:
                failed = [str(error)]
            failures += [f"{number} {name}: {text.strip()[:200]}" for text in failed]
            resident.append(resident_bytes(server.base))
            if number == count or number % max(1, count // ROWS) == 0:
                seconds = time.monotonic() - begin
                say(f"{number:>8}{seconds:>9.0f}{resident[-1] / 1e6:>8.0f}{len(failures):>8}")
    part = max(1, count // PARTS)
    warm, end = (min(piece) / 1e6 for piece in (resident[part : 2 * part] or resident, resident[-part:]))
    say(f"\nMemory after {part} prompts {warm:.0f} MB, at the end {end:.0f} MB ({100 * (end / warm - 1):+.1f} %).")
    say("\n".join([f"{len(failures)} of {count} prompts failed.", *failures]))
    return len(failures)


def main() -> int:
    """Find the host, go on in its Python, and soak it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500, metavar="N", help="prompts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--release", help="a version of ComfyUI in place of the pinned one")
    options = parser.parse_args()
    if options.count < 1:
        parser.error("--count is 1 or more")
    host = find_host(release=options.release)
    if Path(sys.executable) != host.python:  # which has torch and psutil
        return subprocess.run([str(host.python), *sys.argv], check=False).returncode
    return min(1, soak(host, options.count, options.seed))


if __name__ == "__main__":
    sys.exit(main())
