"""Train without ComfyUI's server and page.

    python3 scripts/train.py CONFIG.json [--comfyui PATH] [--base-directory PATH]

CONFIG.json names files as the nodes do, and settings as TrainConfig and DatasetSettings have them. What is left out is the
default:

    {"checkpoint": "v1-5-pruned-emaonly-fp16.safetensors", "base": "ctrlora_sd15_basecn700k.ckpt", "name": "my_condition",
     "dataset": {"folder": "my_pairs", "resolution": 512}, "training": {"steps": 1000, "precision": "bf16"}}

States and results are those of the training nodes: either goes on with what the other began. Ctrl-C or SIGTERM saves and stops.

On several GPUs, with Accelerate in ComfyUI's Python (see docs/distributed.md); accumulation_steps is shared out among them:

    accelerate launch --multi_gpu --num_processes 4 scripts/train.py CONFIG.json

Large datasets are encoded into tar shards first (see docs/large_datasets.md), by any number of processes side by side:

    python3 scripts/train.py CONFIG.json --precompute [--part I/N]
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from host import find_host
from host_library import import_host, import_pack
from host_server import ServerError, has_accelerator
from provide import SetupError, say

if TYPE_CHECKING:
    from nextcontrol.training.team import Team

INSIDE = "NEXTCONTROL_TRAIN_INSIDE"
INTERRUPTED = 130
SECONDS_BETWEEN_LINES = 5.0


def main(arguments: list[str]) -> int:
    """Parse, bring up the host's interpreter, and train in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, metavar="CONFIG.json", help="what to train")
    parser.add_argument("--comfyui", type=Path, help="an existing ComfyUI, with your models in it")
    parser.add_argument("--python", type=Path, help="the Python that runs it")
    parser.add_argument("--base-directory", type=Path, help="where models/ and input/ are, if not in that ComfyUI")
    parser.add_argument(
        "--patience",
        type=float,
        default=30.0,
        metavar="MINUTES",
        help="how long one of several processes waits for the others before it takes them for lost",
    )
    parser.add_argument("--precompute", action="store_true", help="encode the dataset into shards (docs/large_datasets.md)")
    parser.add_argument("--part", default="", metavar="I/N", help="with --precompute: the I-th of N parts, side by side")
    options = parser.parse_args(arguments)
    if os.environ.get(INSIDE):
        return train(options)
    try:
        host = find_host(options.comfyui, options.python)
        device = "cpu" if is_sent_to_cpu() or not has_accelerator(host.python) else "accelerator"
    except (SetupError, ServerError) as error:
        say(f"train.py: {error}")
        return 1
    base = options.base_directory or host.comfyui
    command = [str(host.python), "-B", __file__, str(options.config)]
    command += ["--comfyui", str(host.comfyui), "--base-directory", str(base), "--patience", str(options.patience)]
    command += ["--precompute"] * options.precompute + ["--part", options.part] * bool(options.part)
    return run_inside(command, {**os.environ, INSIDE: device})


def is_sent_to_cpu() -> bool:
    """Whether Accelerate's launcher was told to use no accelerator."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in {"1", "true"}


def run_inside(command: list[str], environment: dict[str, str]) -> int:
    """Go on in the host's interpreter; the exit status."""
    if "RANK" in os.environ and os.name == "posix":
        # A launcher signals and kills the process that it started: that has to be the one that trains.
        os.execve(command[0], command, environment)  # noqa: S606 - no shell is wanted
    child = subprocess.Popen(command, env=environment)
    # The terminal sends Ctrl-C to the child as well, which saves and ends; this one waits for it.
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    return child.wait()


def train(options: argparse.Namespace) -> int:
    """Inside the host's interpreter: train, and say what came of it in one sentence."""
    import_pack()
    try:
        text = read_config(options.config)
    except (ValueError, FileNotFoundError) as error:
        say(f"train.py: {error}")
        return 1
    if options.precompute:
        return precompute(text, options)
    from nextcontrol.training.team import open_team

    is_cpu = os.environ[INSIDE] == "cpu"
    try:
        # Before ComfyUI, which takes the device that is the current one then.
        team = open_team(is_cpu, options.patience * 60)
    except ValueError as error:
        say(f"train.py: {error}")
        return 1
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, team.ask_to_stop)
    import_host(options.comfyui, options.base_directory, is_cpu=is_cpu)
    status, message = train_with(team, text, options)
    if team.is_main or (status and not team.has_agreed):
        who = "" if team.has_agreed or team.share.processes == 1 else f" process {team.share.rank}:"
        say(f"train.py:{who} {message}" if status else message)
    if team.share.processes > 1 and status:
        os._exit(status)  # threads that still wait for the others would hold the process up
    team.close()
    return status


def read_config(path: Path) -> str:
    """Read a configuration, which some shells and editors write in other Unicode forms than UTF-8.

    Returns:
        Its text.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: It cannot be read.
    """
    from nextcontrol.models.foreign import SMALL_FILE, shown
    from nextcontrol.training.texts import read_text

    try:
        return read_text(path, str(path), SMALL_FILE)
    except FileNotFoundError as error:
        message = f"'{shown(path)}' cannot be read (there is no such file): give the path of a configuration."
        raise FileNotFoundError(message) from error


def train_with(team: Team, text: str, options: argparse.Namespace) -> tuple[int, str]:
    """Train in one of the processes.

    Returns:
        The exit status, and one sentence.
    """
    from nextcontrol.nodes.host.train_script import train_from_text

    register_places(options)
    try:
        files = train_from_text(text, say, team)
    except KeyboardInterrupt as error:
        team.tell(error)
        return INTERRUPTED, "stopped, the state is saved: run the same again to go on."
    except (ValueError, FileNotFoundError, RuntimeError, OSError) as error:
        team.tell(error)
        return 1, str(error)
    return 0, f"Trained: {', '.join(f'models/{name}' for name in files)}"


def register_places(options: argparse.Namespace) -> None:
    """Make known where models and datasets lie."""
    from nextcontrol.nodes.host.folders import register_folders
    from utils.extra_config import load_extra_path_config

    register_folders()
    for places in (options.base_directory / "extra_model_paths.yaml", options.comfyui / "extra_model_paths.yaml"):
        if places.is_file():
            load_extra_path_config(str(places))
            break


def precompute(text: str, options: argparse.Namespace) -> int:
    """Encode the dataset into shards, each process a part of them: no process talks to another."""
    is_cpu = os.environ[INSIDE] == "cpu"
    if not is_cpu and "LOCAL_RANK" in os.environ:
        import torch

        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # before ComfyUI, which takes the current one
    import_host(options.comfyui, options.base_directory, is_cpu=is_cpu)
    register_places(options)
    from nextcontrol.nodes.host.precompute import precompute_from_text, read_part

    try:
        say(precompute_from_text(text, read_part(options.part, os.environ), Pace().show))
    except KeyboardInterrupt:
        say("train.py: stopped, the finished shards are kept: run the same again to go on.")
        return INTERRUPTED
    except (ValueError, FileNotFoundError, RuntimeError, OSError) as error:
        say(f"train.py: {error}")
        return 1
    return 0


class Pace:
    """Shows a line of progress every few seconds, not more."""

    def __init__(self) -> None:
        self.shown = 0.0

    def show(self, text: str) -> None:
        """Say it, or not."""
        if time.monotonic() - self.shown >= SECONDS_BETWEEN_LINES:
            self.shown = time.monotonic()
            say(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
