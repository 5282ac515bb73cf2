"""What things cost, as ratios: medians of rounds taken in alternation in one run.

python3 scripts/bench.py SUBJECT [--steps N] [--comfyui PATH]

Each subject is a file bench_SUBJECT.py with a function `measure(steps)`, which runs inside the host's interpreter.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from host import find_host
from host_library import import_host, import_pack
from host_server import has_accelerator
from provide import SetupError, say

INSIDE = "NEXTCONTROL_BENCH_INSIDE"
SUBJECTS = ("controlnext", "ctrlora", "hints", "shards", "stack", "train", "video")


def main(arguments: list[str]) -> int:
    """Parse, bring up the host's interpreter, and measure in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=SUBJECTS, help="what to measure")
    parser.add_argument("--steps", type=int, default=12, help="steps of each kind, after one that is not counted")
    parser.add_argument("--comfyui", type=Path, help="an existing ComfyUI")
    options = parser.parse_args(arguments)
    if os.environ.get(INSIDE):
        with tempfile.TemporaryDirectory() as base:
            import_host(options.comfyui, Path(base), is_cpu=os.environ[INSIDE] == "cpu")
            import_pack()
            import torch

            with torch.inference_mode():
                importlib.import_module(f"bench_{options.subject}").measure(options.steps)
        return 0
    try:
        host = find_host(options.comfyui)
    except SetupError as error:
        say(f"bench.py: {error}")
        return 1
    device = "accelerator" if has_accelerator(host.python) else "cpu"
    command = [str(host.python), "-B", __file__, options.subject, "--steps", str(options.steps), "--comfyui", str(host.comfyui)]
    return subprocess.run(command, env={**os.environ, INSIDE: device}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
