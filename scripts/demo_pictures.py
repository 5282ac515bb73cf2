"""The pictures in demo/demo_pictures: what the demo's live training learns from.

    HOST_PYTHON scripts/demo_pictures.py FOLDER

FOLDER is that of `scripts/demo_train.py pictures`. Every 17th subject is kept out, as from the training of the demo's controls.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from demo_train_pictures import SUBJECTS, load_pictures

TARGET = Path(__file__).resolve().parents[1] / "demo" / "demo_pictures"
COUNT = 128
HELD_OUT, EVERY = 8, 17
PLAIN = re.compile(r"[a-z0-9 ]+")
ALIKE = re.compile(r"face|heart|arrow|mailbox|bubble|moon|banknote|sun behind|speaker|cat with|thirty|tray|chart")
"""Of these the set has many that differ little."""


def main(folder: str) -> None:
    """Write them, on white, each named by its caption."""
    from PIL import Image

    pictures, rows = load_pictures(Path(folder))
    subjects = [(picture, row["caption"]) for picture, row in zip(pictures, rows, strict=True) if row["group"] in SUBJECTS]
    known = [subject for place, subject in enumerate(subjects) if place % EVERY != HELD_OUT]
    wanted = [(picture, name) for picture, name in known if PLAIN.fullmatch(name) and not ALIKE.search(name)]
    TARGET.mkdir(parents=True, exist_ok=True)
    for picture, name in wanted[:: len(wanted) // COUNT][:COUNT]:
        image = Image.fromarray(picture)
        ground = Image.new("RGBA", image.size, "white")
        ground.alpha_composite(image)
        ground.convert("RGB").save(TARGET / f"{name.replace(' ', '_')}.webp", quality=82, method=6)


if __name__ == "__main__":
    main(*sys.argv[1:])
