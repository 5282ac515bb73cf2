"""Pictures in rows, each with its caption.

HOST_PYTHON scripts/demo_sheet.py RESULT < ROWS

ROWS is JSON: a list of `Row`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from host import Host

SIDE, MARGIN, CAPTION, TITLE = 176, 10, 22, 30
GROUND, BRIGHT, DIM = (24, 24, 24), (240, 240, 240), (170, 170, 170)


class Row(TypedDict):
    """What is shown beside each other."""

    title: str
    pictures: list[tuple[str, str]]
    """Caption and file."""


def write_sheet(host: Host, path: Path, rows: list[Row]) -> Path:
    """Draw the rows with the host's Python.

    Returns:
        `path`.

    Raises:
        SetupError: It cannot be drawn.
    """
    from provide import SetupError

    command = [str(host.python), "-B", str(Path(__file__).resolve()), str(path)]
    answer = subprocess.run(command, input=json.dumps(rows), capture_output=True, text=True, check=False)
    if answer.returncode:
        message = f"The contact sheet cannot be drawn: {(answer.stderr.strip().splitlines() or ['no reason given'])[-1]}"
        raise SetupError(message)
    return path


def main(result: str) -> None:
    """Write the sheet; needs Pillow, which ComfyUI brings."""
    from PIL import Image, ImageDraw, ImageFont

    rows = json.load(sys.stdin)
    columns = max(len(row["pictures"]) for row in rows)
    height = TITLE + CAPTION + SIDE + MARGIN
    sheet = Image.new("RGB", (MARGIN + columns * (SIDE + MARGIN), MARGIN + len(rows) * height), GROUND)
    draw = ImageDraw.Draw(sheet)
    for i, row in enumerate(rows):
        top = MARGIN + i * height
        draw.text((MARGIN, top), row["title"], BRIGHT, ImageFont.load_default(16))
        for j, (caption, path) in enumerate(row["pictures"]):
            with Image.open(path) as file:
                picture = file.convert("RGB")
            scale = SIDE / max(picture.size)
            size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
            left = MARGIN + j * (SIDE + MARGIN)
            draw.text((left, top + TITLE - 2), caption, DIM, ImageFont.load_default(13))
            sheet.paste(picture.resize(size, Image.Resampling.LANCZOS), (left, top + TITLE + CAPTION - 2))
    sheet.save(result, quality=90)


if __name__ == "__main__":
    main(*sys.argv[1:])
