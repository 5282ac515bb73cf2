"""Train a CtrLoRA without ComfyUI's server and page.

    python3 scripts/train.py CONFIG.json [--comfyui PATH] [--base-directory PATH]

CONFIG.json names files as the nodes do, and settings as TrainConfig and DatasetSettings have them. What is left out is the
default:

    {"checkpoint": "v1-5-pruned-emaonly-fp16.safetensors", "base": "ctrlora_sd15_basecn700k.ckpt", "name": "my_condition",
     "dataset": {"folder": "my_pairs", "resolution": 512}, "training": {"steps": 1000, "precision": "bf16"}}

States and results are those of the node 'Train CtrLoRA': either goes on with what the other began. Ctrl-C saves and stops.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

from host import find_host
from host_library import import_host, import_pack
from host_server import has_accelerator
from provide import SetupError, say

INSIDE = "NEXTCONTROL_TRAIN_INSIDE"
INTERRUPTED = 130


def main(arguments: list[str]) -> int:
    """Parse, bring up the host's interpreter, and train in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, metavar="CONFIG.json", help="what to train")
    parser.add_argument("--comfyui", type=Path, help="an existing ComfyUI, with your models in it")
    parser.add_argument("--python", type=Path, help="the Python that runs it")
    parser.add_argument("--base-directory", type=Path, help="where models/ and input/ are, if not in that ComfyUI")
    options = parser.parse_args(arguments)
    if os.environ.get(INSIDE):
        return train(options.config, options.comfyui, options.base_directory)
    try:
        host = find_host(options.comfyui, options.python)
    except SetupError as error:
        say(f"train.py: {error}")
        return 1
    device = "accelerator" if has_accelerator(host.python) else "cpu"
    base = options.base_directory or host.comfyui
    command = [
        str(host.python),
        "-B",
        __file__,
        str(options.config),
        "--comfyui",
        str(host.comfyui),
        "--base-directory",
        str(base),
    ]
    child = subprocess.Popen(command, env={**os.environ, INSIDE: device})
    # The terminal sends Ctrl-C to the child as well, which saves and ends; this one waits for it.
    signal.signal(signal.SIGINT, lambda *_: None)
    return child.wait()


def train(config: Path, comfyui: Path, base: Path) -> int:
    """Inside the host's interpreter: train, and say what came of it in one sentence."""
    try:
        text = config.read_text(encoding="utf-8")
    except OSError as error:
        say(f"train.py: '{config}' cannot be read ({error.strerror}).")
        return 1
    import_host(comfyui, base, is_cpu=os.environ[INSIDE] == "cpu")
    import_pack()
    from nextcontrol.nodes.host.folders import register_folders
    from nextcontrol.nodes.host.train_script import train_from_text
    from utils.extra_config import load_extra_path_config

    register_folders()
    for places in (base / "extra_model_paths.yaml", comfyui / "extra_model_paths.yaml"):
        if places.is_file():
            load_extra_path_config(str(places))
            break
    try:
        files = train_from_text(text, say)
    except KeyboardInterrupt:
        say("train.py: stopped, the state is saved: run the same again to go on.")
        return INTERRUPTED
    except (ValueError, FileNotFoundError, RuntimeError, OSError) as error:
        say(f"train.py: {error}")
        return 1
    say(f"Trained: {', '.join(f'models/{name}' for name in files)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
