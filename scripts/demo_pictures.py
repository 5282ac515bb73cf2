"""The pictures in demo/demo_pictures: what the demo's live training learns from.

    HOST_PYTHON scripts/demo_pictures.py FOLDER

FOLDER is that of `scripts/demo_train.py pictures`. What is held out from the demo's controls is not among them.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from demo_train_controls import parts_of, write_picture

TARGET = Path(__file__).resolve().parents[1] / "demo" / "demo_pictures"
COUNT = 128
PLAIN = re.compile(r"[a-z0-9 ]+")
ALIKE = re.compile(r"face|heart|arrow|mailbox|bubble|moon|banknote|sun behind|speaker|cat with|thirty|tray|chart")
"""Of these the set has many that differ little."""


def main(folder: str) -> None:
    """Write them, on white, each named by its caption."""
    pictures, captions, _ = parts_of(Path(folder))
    named = zip(pictures, captions, strict=True)
    wanted = [(picture, name) for picture, name in named if PLAIN.fullmatch(name) and not ALIKE.search(name)]
    TARGET.mkdir(parents=True, exist_ok=True)
    for picture, name in wanted[:: len(wanted) // COUNT][:COUNT]:
        write_picture(picture, TARGET / f"{name.replace(' ', '_')}.webp", quality=82, method=6)


if __name__ == "__main__":
    main(*sys.argv[1:])
