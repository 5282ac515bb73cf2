"""The main job, from nothing: a photo through our nodes, ComfyUI's sampler and its HTTP API.

    python3 scripts/demo.py

sets up a private ComfyUI on the first run (see host.py), starts it without a window, and writes the photo, its hint and the
result to demo_output/. With your own files:

    python3 scripts/demo.py --checkpoint sd15.safetensors --controlnext controlnet.safetensors --unet unet.safetensors
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from demo_checkpoint import CHECKPOINT, CONTROL, ROOT, UNET, demo_models, link_file
from demo_job import Graph, fetch_pictures, read_workflow, run_job, set_inputs
from host import find_host
from host_client import ServerError
from host_server import Server
from provide import SetupError, say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from host import Host

WORKFLOW = ROOT / "workflows" / "api" / "controlnext_sd15_canny.json"
PHOTO = ROOT / "demo" / "astronaut.png"
SHEET = "contact_sheet.jpg"
# The option, the input of a workflow that it fills, and where its file goes below models/. A folder for each: files of
# different kinds often have the same name.
MODELS = (
    ("checkpoint", "ckpt_name", "checkpoints", ""),
    ("controlnext", "control_file", "controlnext", "control/"),
    ("unet", "unet_file", "controlnext", "unet/"),
)
# Random weights gain nothing from size and patience: a small picture in few steps, and a control that can be seen.
SMALL = {"resolution": 256, "steps": 10, "strength": 2.0}
RANDOM = (
    "The weights are random, because no trained model comes with the pack: the picture shows that photo, hint, control and "
    "sampler work together, not what a trained control draws. Give real files with --checkpoint, --controlnext and --unet."
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
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="a checkpoint of your own; default: random weights")
    parser.add_argument("--controlnext", type=Path, metavar="FILE", help="a ControlNeXt module of your own")
    parser.add_argument("--unet", type=Path, metavar="FILE", help="the UNet weights that belong to it")
    parser.add_argument("--workflow", type=Path, metavar="FILE", default=WORKFLOW, help="a workflow, in API format")
    parser.add_argument("--image", type=Path, metavar="FILE", default=PHOTO, help="the photo; default: demo/astronaut.png")
    parser.add_argument("--prompt", help="text in place of the workflow's prompt")
    parser.add_argument("--seed", type=int, help="in place of the workflow's")
    parser.add_argument("--comfyui", type=Path, metavar="FOLDER", help="a ComfyUI of your own; default: a private one")
    parser.add_argument("--python", type=Path, metavar="FILE", help="the Python that runs it")
    parser.add_argument("--output", type=Path, metavar="FOLDER", default=Path("demo_output"), help="default: demo_output")
    parser.add_argument("--keep-open", action="store_true", help="leave the server up, to look at it in a browser")
    return parser.parse_args(arguments)


def check_options(options: argparse.Namespace) -> None:
    """Refuse what cannot work, before anything is set up.

    Raises:
        SetupError: A file is missing, or the workflow needs one that is not given.
    """
    for name in ("checkpoint", "controlnext", "unet", "image"):
        path = getattr(options, name)
        if path is not None and not path.is_file():
            message = f"--{name} '{path}' does not exist: give the path of a file."
            raise SetupError(message)
    if options.checkpoint and not options.controlnext:
        message = "--checkpoint needs --controlnext: the demo's own control has random weights and would spoil the picture."
        raise SetupError(message)


def is_random(options: argparse.Namespace) -> bool:
    """Whether the checkpoint is the demo's."""
    return options.checkpoint is None


def prepare(graph: Graph, options: argparse.Namespace) -> None:
    """Adapt a workflow to the command line."""
    if is_random(options):
        for name, value in SMALL.items():
            set_inputs(graph, name, value)
    if options.seed is not None:
        set_inputs(graph, "seed", options.seed)
        set_inputs(graph, "noise_seed", options.seed)
    if options.prompt is not None:
        texts = {node["inputs"]["positive"][0] for node in graph.values() if "positive" in node["inputs"]}
        for node in texts & graph.keys():
            set_inputs({node: graph[node]}, "text", options.prompt, ("CLIPTextEncode",))
    if options.image != PHOTO:
        set_inputs(graph, "image", options.image.name, ("LoadImage",))


def add_models(server: Server, graph: Graph, options: argparse.Namespace) -> None:
    """Put the weights where the workflow asks for them, or make it ask for them where they are.

    Raises:
        ServerError: The workflow needs other files than the demo has.
    """
    own = dict(zip(("checkpoint", "controlnext", "unet"), (CHECKPOINT, CONTROL, UNET), strict=True))
    folder = demo_models(server.host) if is_random(options) else None
    for option, name, kind, inside in MODELS:
        path: Path | None = getattr(options, option)
        if path is not None:
            link_file(path, server.base / "models" / kind / inside / path.name)
            set_inputs(graph, name, f"{inside}{path.name}")
        elif folder is not None and (option != "unet" or options.controlnext is None):
            link_file(folder / own[option], server.base / "models" / own[option])
            set_inputs(graph, name, own[option].partition("/")[2])
        elif option == "unet":
            set_inputs(graph, name, "none")


def make_sheet(host: Host, folder: Path, photo: Path, pictures: list[tuple[str, Path]]) -> Path:
    """Photo and pictures side by side.

    Returns:
        The sheet.

    Raises:
        SetupError: It cannot be drawn.
    """
    shown = [("Photo", photo), *((title, path) for title, path in pictures if path.suffix in {".png", ".jpg", ".webp"})]
    command = [str(host.python), "-B", str(ROOT / "scripts" / "demo_sheet.py"), str(folder / SHEET)]
    for title, path in shown:
        command += [title, str(path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        message = f"The contact sheet cannot be drawn: {(answer.stderr.strip().splitlines() or ['no reason given'])[-1]}"
        raise SetupError(message)
    return folder / SHEET


def run(options: argparse.Namespace) -> None:
    """The whole job."""
    check_options(options)
    graph = read_workflow(options.workflow)
    prepare(graph, options)
    watch = Stopwatch()
    with watch.part("Finding or setting up ComfyUI"):
        host = find_host(options.comfyui, options.python)
    if is_random(options):
        with watch.part("Finding or making the weights"):
            demo_models(host)
    options.output.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with watch.part(f"Starting ComfyUI {host.version}"):
            server = stack.enter_context(Server(host, ROOT))
        with watch.part("Uploading the photo, linking the weights"):
            server.upload_image(options.image)
            add_models(server, graph, options)
        with watch.part(f"Running {options.workflow.name}"):
            entry = run_job(server, graph)
        with watch.part("Fetching the pictures"):
            pictures = fetch_pictures(server, graph, entry["outputs"], options.output)
            sheet = make_sheet(host, options.output, options.image, pictures)
        print(f"\n{watch.table()}\n", *(path.resolve() for _, path in pictures), sheet.resolve(), sep="\n", flush=True)
        if is_random(options):
            print(f"\n{RANDOM}", flush=True)
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
