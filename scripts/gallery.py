"""Every type of hint on one photograph, as one picture.

    python3 scripts/gallery.py [--models FOLDER] [--photo FILE] [--output FILE] [--comfyui PATH]

Types whose network is not in FOLDER/annotators are left out and named. Without --models those are all that need one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from host import find_host
from host_library import import_host, import_pack
from host_server import has_accelerator
from provide import SetupError, say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from PIL.Image import Image

INSIDE = "NEXTCONTROL_GALLERY_INSIDE"
ROOT = Path(__file__).resolve().parents[1]
PHOTO, DRAWING = ROOT / "demo" / "astronaut.png", ROOT / "demo" / "astronaut_lineart.png"
RESOLUTION = 512
COLUMNS, SIDE, MARGIN, TITLE = 5, 240, 10, 24


def main(arguments: list[str]) -> int:
    """Parse, bring up the host's interpreter, and draw in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="ComfyUI's models folder")
    parser.add_argument("--photo", type=Path, default=PHOTO, help="default: demo/astronaut.png")
    parser.add_argument("--output", type=Path, default=Path("hints_gallery.jpg"), help="default: hints_gallery.jpg")
    parser.add_argument("--comfyui", type=Path, help="an existing ComfyUI")
    options = parser.parse_args(arguments)
    return draw_inside(__file__, arguments, options, lambda: draw(options.photo, options.output))


def draw_inside(script: str, arguments: list[str], options: argparse.Namespace, draw: Callable[[], None]) -> int:
    """Bring up the host's interpreter for a script, and draw in it.

    Args:
        script: Its file.
        arguments: Of its command line.
        options: The same, parsed: `models`, `comfyui`, and `photo` if there is one.
        draw: Called in the host's interpreter, with host and pack imported.

    Returns:
        The exit status.
    """
    if os.environ.get(INSIDE):
        with tempfile.TemporaryDirectory() as base:
            if options.models:
                (Path(base) / "models").symlink_to(options.models.resolve(), target_is_directory=True)
            import_host(options.comfyui, Path(base), is_cpu=os.environ[INSIDE] == "cpu")
            import_pack()
            draw()
        return 0
    try:
        check(options)
        host = find_host(options.comfyui)
    except SetupError as error:
        say(f"{Path(script).name}: {error}")
        return 1
    device = "accelerator" if has_accelerator(host.python) else "cpu"
    command = [str(host.python), "-B", script, *arguments, "--comfyui", str(host.comfyui)]
    return subprocess.run(command, env={**os.environ, INSIDE: device}, check=False).returncode


def check(options: argparse.Namespace) -> None:
    """Refuse what cannot work.

    Raises:
        SetupError: The photograph or the folder is not there.
    """
    photo = getattr(options, "photo", PHOTO)
    if not photo.is_file():
        message = f"--photo '{photo}' does not exist: give the path of a picture."
        raise SetupError(message)
    if options.models and not options.models.is_dir():
        message = f"--models '{options.models}' does not exist: give the path of ComfyUI's models folder."
        raise SetupError(message)


def draw(photo: Path, output: Path) -> None:
    """Make the hints and write the sheet."""
    import torch
    from nextcontrol.nodes.host.folders import register_folders

    register_folders()
    with torch.inference_mode():
        frames = read(photo)
        tiles = [("photograph", frames), *hints_of(frames)]
    sheet(tiles).save(output, quality=82)
    print(f"{len(tiles) - 1} types of hint: {output}")


def hints_of(frames: Any) -> Iterator[tuple[str, Any]]:
    """Title and hint of each type whose network is there."""
    from nextcontrol.nodes.host.make_hints import open_network
    from nextcontrol.preprocessors.table import PREPROCESSORS

    for name, row in PREPROCESSORS.items():
        try:
            networks = [open_network(row.task)] if row.task else []
            options = {argument: open_network(task) for argument, task in row.annotators.items()}
        except (FileNotFoundError, ImportError) as error:
            print(f"Left out: {name}. {error}")
            continue
        options |= {argument: read(DRAWING) for argument in row.hints}
        yield name.replace("_", " "), row.make(frames, RESOLUTION, *networks, **options)


def read(path: Path) -> Any:
    """(1, H, W, 3) in [0, 1]."""
    from nextcontrol.training.pictures import read_picture, to_pixels

    return to_pixels(read_picture(path.resolve(), path.name)).movedim(1, -1).contiguous()  # BCHW -> BHWC


def sheet(tiles: list[tuple[str, Any]]) -> Image:
    """Titled pictures in rows."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    rows = -(-len(tiles) // COLUMNS)
    size = (MARGIN + COLUMNS * (SIDE + MARGIN), MARGIN + rows * (TITLE + SIDE + MARGIN))
    result, font = Image.new("RGB", size, (24, 24, 24)), ImageFont.load_default(14)
    pen = ImageDraw.Draw(result)
    for index, (title, pixels) in enumerate(tiles):
        left, top = (MARGIN + place * step for place, step in zip(
            (index % COLUMNS, index // COLUMNS), (SIDE + MARGIN, TITLE + SIDE + MARGIN), strict=True
        ))  # fmt: skip
        pen.text((left, top), title, (235, 235, 235), font)
        picture = Image.fromarray((pixels[0].cpu().numpy() * 255 + 0.5).astype(np.uint8))
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        result.paste(picture, (left, top + TITLE))
    return result


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
