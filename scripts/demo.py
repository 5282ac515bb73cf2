"""The main job, from nothing: controls on the demo model, through ComfyUI's sampler and its HTTP API, in under two minutes.

    python3 scripts/demo.py

sets up a private ComfyUI on the first run (see host.py), starts it without a window, queues the demo workflows of workflows/,
trains a new condition in a minute, and writes a contact sheet to demo_output/. The same on SD1.5, with your own files:

    python3 scripts/demo.py --checkpoint sd15.safetensors --ctrlora-base base.ckpt --ctrlora-canny canny.ckpt

What no file is given for is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from demo_graph import CONTROLS
from demo_job import fetch_pictures, run_job
from demo_plan import TRAINING, Job, plan
from demo_sheet import write_sheet
from host import find_host
from host_client import ServerError
from host_server import Server, link_file
from private_host import ROOT
from provide import SetupError, say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from demo_sheet import Row

SHEET = "contact_sheet.jpg"
ABOUT = (
    "The demo model draws small emoji and is here to show that the controls work. The same on SD1.5: --checkpoint, with the "
    "control files that you have; see --help."
)


class Stopwatch:
    """How long each part took."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, float]] = []

    @contextlib.contextmanager
    def part(self, title: str) -> Iterator[None]:
        """Time a block."""
        print(f"{title} ...", flush=True)
        start = time.monotonic()
        yield
        self.parts.append((title, time.monotonic() - start))

    def table(self) -> str:
        """One line for each part and the sum."""
        total = ("All together", sum(seconds for _, seconds in self.parts))
        return "\n".join(f"{seconds:7.1f} s  {title}" for title, seconds in [*self.parts, total])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="an SD1.5 checkpoint; default: the demo model")
    parser.add_argument("--controlnext", type=Path, metavar="FILE", help="a ControlNeXt module for edges")
    parser.add_argument("--unet", type=Path, metavar="FILE", help="the UNet weights that belong to it")
    parser.add_argument("--ctrlora-base", type=Path, metavar="FILE", help="a CtrLoRA base; the training starts from it too")
    parser.add_argument("--ctrlora-canny", type=Path, metavar="FILE", help="a CtrLoRA for edges")
    parser.add_argument("--ctrlora-palette", type=Path, metavar="FILE", help="a CtrLoRA for colours")
    parser.add_argument("--no-training", action="store_true", help="leave the live training out")
    parser.add_argument("--workflow", type=Path, metavar="FILE", help="run this one instead: any workflow for SD1.5")
    parser.add_argument("--image", type=Path, metavar="FILE", help="take the hints from this picture")
    parser.add_argument("--prompt", help="draw this")
    parser.add_argument("--seed", type=int, help="in place of the workflows'")
    parser.add_argument("--comfyui", type=Path, metavar="FOLDER", help="a ComfyUI of your own; default: a private one")
    parser.add_argument("--python", type=Path, metavar="FILE", help="the Python that runs it")
    parser.add_argument("--output", type=Path, metavar="FOLDER", default=Path("demo_output"), help="default: demo_output")
    parser.add_argument("--keep-open", action="store_true", help="leave the server up, to look at it in a browser")
    return parser.parse_args(arguments)


def check_options(options: argparse.Namespace) -> None:
    """Refuse files that are not there, before anything is set up.

    Raises:
        SetupError: Naming the first.
    """
    for name in ("checkpoint", *(control.option for control in CONTROLS), "image"):
        path = getattr(options, name)
        if path is not None and not path.is_file():
            message = f"--{name.replace('_', '-')} '{path}' does not exist: give the path of a file."
            raise SetupError(message)


def add_files(server: Server, options: argparse.Namespace) -> None:
    """Put the user's files where the workflows look for them, and the pictures that any of them asks for."""
    if options.checkpoint:
        server.add_model("checkpoints", options.checkpoint)
    for control in CONTROLS:
        path: Path | None = getattr(options, control.option)
        if path is not None:
            link_file(path, server.base / "models" / control.folder / control.option / path.name)
    pictures = sorted((ROOT / "demo").glob("*.png")) if options.workflow else []
    for picture in [*pictures, *filter(None, [options.image])]:
        server.upload_image(picture)


def run_row(server: Server, job: Job, folder: Path) -> Row:
    """Queue the workflows of a row one after the other and fetch what they show.

    Returns:
        The row of the sheet. What several workflows share is computed once by ComfyUI, and shown once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Path] = {}
    for graph in job.graphs:
        entry = run_job(server, graph)
        for title, path in fetch_pictures(server, graph, entry["outputs"], folder):
            found.setdefault(title, path)
    titles = [title for title in job.shown if title in found] or list(found)
    return {"title": job.title, "pictures": [(title, str(found[title])) for title in titles]}


def keep_training(server: Server, folder: Path) -> list[Path]:
    """What the training has made, copied out of the server's folder, which is removed at the end."""
    made = sorted((server.base / "models" / "ctrlora").glob("*.safetensors"))
    return [Path(shutil.copy(path, folder)) for path in made if not path.is_symlink()]


def run(options: argparse.Namespace) -> None:
    """The whole job."""
    check_options(options)
    jobs, left_out = plan(options)
    watch = Stopwatch()
    with watch.part("Finding or setting up ComfyUI"):
        host = find_host(options.comfyui, options.python)
    options.output.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with watch.part(f"Starting ComfyUI {host.version}"):
            server = stack.enter_context(Server(host, ROOT))
        add_files(server, options)
        rows, made = [], []
        for job in jobs:
            with watch.part(job.title):
                rows.append(run_row(server, job, options.output / job.folder))
            if job.name == TRAINING:
                made = keep_training(server, options.output)
        sheet = write_sheet(host, options.output / SHEET, rows)
        print(f"\n{watch.table()}\n", *made, sheet.resolve(), sep="\n", flush=True)
        if left_out:
            print(f"\nLeft out, because no file was given: {'; '.join(left_out)}.", flush=True)
        if options.checkpoint is None:
            print(f"\n{ABOUT}", flush=True)
        if options.keep_open:
            keep_open(server)


def keep_open(server: Server) -> None:
    """Wait for Ctrl-C, or for the server's end."""
    print(f"\nComfyUI is at {server.address}, with the pack's workflows under Templates. Ctrl-C ends it.", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(2)
            server.get_json("/system_stats")


def main(arguments: list[str] | None = None) -> int:
    """Run; every failure is one sentence."""
    options = parse(arguments)
    # A stopped demo must not leave its server behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run(options)
    except (SetupError, ServerError) as error:
        say(f"demo.py: {error}")
        return 1
    except OSError as error:
        say(f"demo.py: {error}.")
        return 1
    except KeyboardInterrupt:
        say("\ndemo.py: stopped.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
