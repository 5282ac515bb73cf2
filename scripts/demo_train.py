"""Train the demo model, in pieces that can be stopped and go on where they were.

    python3 scripts/demo_train.py pictures
    python3 scripts/demo_train.py autoencoder
    python3 scripts/demo_train.py model
    python3 scripts/demo_train.py controls
    python3 scripts/demo_train.py measure

Each ends by itself; --minutes stops it before, and a run that was stopped or killed goes on when it is started again.
Pictures, states and results lie in a folder of the per-user cache, see --folder; to ship a result, copy it to demo/.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from host import find_host
from host_library import import_host, import_pack
from provide import SetupError, cache_home, say

INSIDE = "NEXTCONTROL_DEMO_TRAIN_INSIDE"
STEPS = {"pictures": 0, "autoencoder": 2400, "model": 10000, "controls": 0, "measure": 0}


def main(arguments: list[str]) -> int:
    """Parse, bring up the host's interpreter, and do one piece in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("piece", choices=list(STEPS), help="what to do")
    parser.add_argument(
        "--steps", type=int, help="of the whole piece; default: 2400 (autoencoder), 10000 (model), of each control its own"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after this time; default: at the end")
    parser.add_argument("--folder", type=Path, default=cache_home() / "demo-training", help="default: in the cache")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the processor; default: all")
    parser.add_argument("--only", default="", metavar="NAME", help="train one of the controls; measure the controls alone")
    parser.add_argument("--captions", type=int, default=48, help="pictures to measure; default: 48")
    parser.add_argument("--seed", type=int, default=1, help="of the measured pictures; default: 1")
    parser.add_argument("--comfyui", type=Path, help="an existing ComfyUI")
    parser.add_argument("--python", type=Path, help="the Python that runs it")
    options = parser.parse_args(arguments)
    try:
        if os.environ.get(INSIDE):
            run_piece(options)
            return 0
        host = find_host(options.comfyui, options.python)
    except SetupError as error:
        say(f"demo_train.py: {error}")
        return 1
    command = [str(host.python), "-B", __file__, *arguments, "--comfyui", str(host.comfyui)]
    return subprocess.run(command, env={**os.environ, INSIDE: "1"}, check=False).returncode


def run_piece(options: argparse.Namespace) -> None:
    """Inside the host's interpreter."""
    extent = options.threads, options.minutes, options.steps or STEPS[options.piece]
    from demo_train_pictures import prepare_pictures

    prepare_pictures(options.folder)
    if options.piece == "pictures":
        return
    import_host(options.comfyui, options.folder / "comfyui", is_cpu=True)
    import_pack()
    from nextcontrol.nodes.host.folders import register_folders

    register_folders()
    if options.piece == "autoencoder":
        from demo_train_autoencoder import train_autoencoder

        train_autoencoder(options.folder, *extent)
    elif options.piece == "controls":
        from demo_train_controls import train_controls

        train_controls(options.folder, options.minutes, options.steps, options.only)
    elif options.piece == "measure":
        from demo_train_measure import measure, measure_controls

        if not options.only:
            measure(options.folder, options.captions, options.seed)
        measure_controls(options.folder, options.captions // 4, options.seed)
    else:
        from demo_train_model import train_model

        train_model(options.folder, *extent)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
