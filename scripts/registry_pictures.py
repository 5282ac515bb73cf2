"""The pack's icon and banner in the Comfy registry, cut from the demo's own contact sheet.

    python scripts/registry_pictures.py

It needs Pillow, so run it with ComfyUI's Python, in a clone. Writes docs/images/icon.png and docs/images/banner.jpg.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from demo_sheet import CAPTION, GROUND, MARGIN, SIDE, TITLE

if TYPE_CHECKING:
    from PIL.Image import Image

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "images"
SHEET = FOLDER / "demo_contact_sheet.jpg"
ICON = 400
"""Side in pixels, the most that the registry takes."""
BANNER = (1260, 540)
"""21:9, as the registry asks."""
NAME, WORDS = "#ffffff", "#b0b0b0"
HINT, FREE, CONTROLNEXT, CTRLORA = 1, 2, 3, 4
"""Columns of the sheet."""


def main() -> int:
    """Draw both."""
    from PIL import Image

    with Image.open(SHEET) as sheet:
        draw_icon(sheet).quantize(128).save(FOLDER / "icon.png", optimize=True)
        draw_banner(sheet).save(FOLDER / "banner.jpg", quality=88, optimize=True)
    return 0


def cut(sheet: Image, row: int, column: int, side: int) -> Image:
    """A picture of the sheet as a square of `side` pixels."""
    from PIL import Image

    left, top = MARGIN + column * (SIDE + MARGIN), MARGIN + row * (TITLE + CAPTION + SIDE + MARGIN) + TITLE + CAPTION - 2
    return sheet.crop((left, top, left + SIDE, top + SIDE)).resize((side, side), Image.Resampling.LANCZOS)


def draw_icon(sheet: Image) -> Image:
    """A hint on the left, and on the right what a control made of it: one outline in two halves."""
    icon = cut(sheet, 0, HINT, ICON)
    icon.paste(cut(sheet, 0, CTRLORA, ICON).crop((ICON // 2, 0, ICON, ICON)), (ICON // 2, 0))
    return icon


def draw_banner(sheet: Image) -> Image:
    """Hint, picture without control and with each, for two rows of the sheet, beside the pack's name."""
    from PIL import Image, ImageDraw, ImageFont

    side, gap = 190, 14
    banner = Image.new("RGB", BANNER, GROUND)
    draw = ImageDraw.Draw(banner)
    columns = {"Hint": HINT, "Without control": FREE, "ControlNeXt": CONTROLNEXT, "CtrLoRA": CTRLORA}
    left = BANNER[0] - len(columns) * (side + gap) - 12
    top = (BANNER[1] - 2 * side - gap) // 2 + 12
    for number, (title, column) in enumerate(columns.items()):
        x = left + number * (side + gap)
        draw.text((x, top - 12), title, WORDS, ImageFont.load_default(20), anchor="ls")
        for row in (0, 1):
            banner.paste(cut(sheet, row, column, side), (x, top + row * (side + gap)))
    draw.text((36, 250), "NextControl", NAME, ImageFont.load_default(64), anchor="ls")
    lines = "ControlNeXt and CtrLoRA\nfor ComfyUI: exact,\ntrainable in the graph"
    draw.multiline_text((38, 280), lines, WORDS, ImageFont.load_default(28), spacing=10)
    return banner


if __name__ == "__main__":
    sys.exit(main())
