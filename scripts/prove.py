"""The papers' claims in small, on the demo model: trains, measures, and writes docs/proof.md with its figures.

    python3 scripts/prove.py [--quick] [--seeds N] [--stages NAMES] [--comfyui PATH]

Everything is done with the pack's own trainer, hints and nodes, on the pictures that the demo's controls were trained with.
Controls that ship in demo/ are used where they fit. What is done is kept in a folder of the per-user cache: a run that was
killed goes on, and the page is written from all that is there. The full run takes about an hour on two cores, --quick some
minutes. The figures need matplotlib, which is installed beside the host on the first call.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extras import Extra, find_extras
from host import find_host
from host_library import import_host, import_pack, pack_root
from host_server import has_accelerator
from provide import SetupError, cache_home, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prove_world import World

INSIDE, TOOLS = "NEXTCONTROL_PROVE_INSIDE", "NEXTCONTROL_PROVE_TOOLS"
STAGES = ("fidelity", "new_condition", "parts", "normalization", "two", "cost")
DOCUMENT = pack_root() / "docs" / "proof.md"
KINDS = ("controlnext", "ctrlora", "controlnet")
"""Of model files, and folders in demo/ that bring some."""


def main(arguments: list[str]) -> int:
    """Parse, bring up the host's interpreter, and prove in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps, few pictures, one seed")
    parser.add_argument("--seeds", type=int, help="of trainings and noise; default: 2, with --quick 1")
    parser.add_argument("--stages", default=",".join(STAGES), metavar="NAMES", help=f"some of {','.join(STAGES)}; default: all")
    parser.add_argument("--work", type=Path, default=cache_home() / "proof", help="where results are kept")
    parser.add_argument("--pictures", type=Path, default=cache_home() / "demo-training", help="of scripts/demo_train.py")
    parser.add_argument("--model", type=Path, default=pack_root() / "demo", help="folder of the demo model and its controls")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="default: docs/proof.md")
    parser.add_argument("--comfyui", type=Path, help="an existing ComfyUI")
    options = parser.parse_args(arguments)
    stages = options.stages.split(",")
    if unknown := [stage for stage in stages if stage not in STAGES]:
        parser.error(f"--stages has '{unknown[0]}', and there are {', '.join(STAGES)}")
    try:
        if os.environ.get(INSIDE):
            _inside(options, stages)
            return 0
        host = find_host(options.comfyui)
        tools = find_extras(host, "figures", [Extra("figures", "tools for figures", is_bare=True)], ["lib/matplotlib"])
    except (SetupError, FileNotFoundError) as error:
        say(f"prove.py: {error}")
        return 1
    device = "accelerator" if has_accelerator(host.python) else "cpu"
    command = [str(host.python), "-B", __file__, *arguments, "--comfyui", str(host.comfyui)]
    return subprocess.run(command, env={**os.environ, INSIDE: device, TOOLS: str(tools)}, check=False).returncode


def _inside(options: argparse.Namespace, stages: Sequence[str]) -> None:
    """In the host's interpreter."""
    sys.path.append(os.environ[TOOLS])
    import_host(options.comfyui, options.work / "host", is_cpu=os.environ[INSIDE] == "cpu")
    import_pack()
    from demo_train_pictures import prepare_pictures
    from prove_world import FULL, QUICK, load_world

    prepare_pictures(options.pictures)
    register(options.model)
    extent = QUICK if options.quick else FULL
    extent = replace(extent, seeds=options.seeds or extent.seeds)
    world = load_world(extent, options.work, options.pictures, options.model)
    command = "python3 scripts/prove.py" + " --quick" * options.quick + (f" --seeds {options.seeds}" if options.seeds else "")
    prove(world, stages, options.document, command)


def register(shipped: Path) -> None:
    """Tell the host where controls lie: ours, and those that ship."""
    import folder_paths
    from nextcontrol.nodes.host.folders import register_folders

    register_folders()
    for kind in KINDS:
        folder_paths.add_model_folder_path(kind, str(shipped / kind))


def prove(world: World, stages: Sequence[str], document: Path, command: str) -> None:
    """Run some stages, and write the page and its figures, in images/ beside it, from all that are done."""
    import prove_report
    import prove_stages
    from prove_plots import draw_figures

    for stage in stages:
        prove_stages.run(world, stage, say)
        results: dict[str, Any] = {name: found for name in STAGES if (found := prove_stages.kept(world, name)) is not None}
        about = {"pairs": len(world.pairs.captions), "held_out": len(world.held_out.captions)}
        document.parent.mkdir(parents=True, exist_ok=True)
        document.write_text(prove_report.document(results, world.extent, command, about), encoding="utf-8")
        draw_figures({stage: results[stage]}, document.parent / "images")
        if stage == "fidelity":
            _draw_sheet(world, document.parent / "images" / "proof_pictures.png")
        say(f"Written: {document}")


def _draw_sheet(world: World, path: Path) -> None:
    from prove_plots import SHOWN, draw_sheet
    from prove_sample import controls, draw

    rows = {"canny hint": world.hints["canny"], "palette hint": world.hints["palette"], "true picture": world.held_out.pictures}
    rows["no control"] = draw(world, [], 0, SHOWN)
    rows |= {name: draw(world, [use], 0, SHOWN) for name, use in controls(world).items()}
    draw_sheet(rows, path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
