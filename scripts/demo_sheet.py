"""Pictures side by side, each with its caption.

HOST_PYTHON scripts/demo_sheet.py RESULT CAPTION PICTURE [CAPTION PICTURE ...]
"""

from __future__ import annotations

import sys

SIDE, MARGIN, CAPTION = 384, 12, 30


def main(result: str, *pairs: str) -> None:
    """Write the sheet; needs Pillow, which ComfyUI brings."""
    from PIL import Image, ImageDraw, ImageFont

    count = len(pairs) // 2
    sheet = Image.new("RGB", (MARGIN + count * (SIDE + MARGIN), CAPTION + SIDE + MARGIN), (24, 24, 24))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(16)
    for i, (caption, path) in enumerate(zip(pairs[::2], pairs[1::2], strict=True)):
        with Image.open(path) as file:
            picture = file.convert("RGB")
        scale = SIDE / max(picture.size)
        size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
        left = MARGIN + i * (SIDE + MARGIN)
        draw.text((left, 6), caption, (235, 235, 235), font)
        sheet.paste(picture.resize(size, Image.Resampling.LANCZOS), (left, CAPTION))
    sheet.save(result, quality=88)


if __name__ == "__main__":
    main(*sys.argv[1:])
