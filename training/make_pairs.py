"""Pairs from pictures: each gets the hint that a preprocessor makes of it. What is there already is left alone."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image
from torch import Tensor

from ..preprocessors.canvas import hint_size
from .durable import whole_file, write_text
from .inside import check_inside
from .pairs import pictures_in
from .pictures import UnreadablePictureError, fit_picture, from_pixels, read_picture, to_pixels

ROWS = "prompt.json"
ABOUT = "nextcontrol.json"
CAPTIONS = ("beside", "file_name", "none")


@dataclass(frozen=True)
class MakeSettings:
    """How pairs are made. A folder holds pairs of one kind."""

    hint_type: str
    """Name, a key of `PREPROCESSORS`."""
    options: dict[str, object]
    """Of the preprocessor, by name."""
    resolution: int = 512
    """Pixels, shorter side; both become multiples of 64."""
    captions: str = "beside"
    """Name: "beside" reads the .txt of a picture, "file_name" takes its name, "none" leaves it empty."""


@dataclass(frozen=True)
class MakeReport:
    """What was done."""

    made: int
    kept: int
    """Pairs that were there."""
    unreadable: tuple[str, ...]

    def text(self) -> str:
        """Some lines."""
        lines = [f"{self.made} pairs made, {self.kept} were there already."]
        if self.unreadable:
            lines += [f"{len(self.unreadable)} pictures left out:", *self.unreadable]
        return "\n".join(lines)


def seed_of(name: str) -> int:
    """A seed that depends on a file's name alone, whatever else is in its folder."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "little")


def make_pairs(
    pictures: Path,
    target: Path,
    roots: Sequence[Path],
    settings: MakeSettings,
    make_hint: Callable[[Tensor, int], Tensor],
    on_item: Callable[[int, int], None] = lambda _done, _all: None,
) -> MakeReport:
    """Make the pairs that are not there yet, in CtrLoRA's layout.

    Args:
        pictures: Folder, sub-folders included.
        target: Folder of the dataset.
        roots: See `check_inside`.
        settings: Written into the folder.
        make_hint: Maps (1, H, W, 3) in [0, 1] and a seed to a hint of the same size.
        on_item: Called after each picture with how many are done, and of how many; may raise.

    Returns:
        What was done.

    Raises:
        ValueError: There are no pictures, the two folders lie in each other, or the dataset was made with other settings.
        OSError: The disk is full.
    """
    if pictures.resolve().is_relative_to(target.resolve()) or target.resolve().is_relative_to(pictures.resolve()):
        raise ValueError(
            f"'{target.name}' and '{pictures.name}' lie in each other: choose a dataset folder beside the pictures."
        )
    found = list(pictures_in(pictures))
    if not found:
        raise ValueError(f"'{pictures.name}' holds no pictures: it needs .png, .jpg, .webp, .bmp or .tif files.")
    _check_same(target, settings)
    names = _names(found, pictures)
    rows = target / ROWS
    known = _targets_in(rows)
    made, unreadable = 0, []
    for done, path in enumerate(found, 1):
        name = names[path]
        try:
            if _make_one(check_inside(path, roots, name), name, target, roots, settings, make_hint) or name not in known:
                made += 1
        except UnreadablePictureError as error:
            unreadable.append(str(error))
            continue
        if name not in known:
            row = {"source": f"source/{name}.png", "target": f"target/{name}.png", "prompt": _caption(path, settings.captions)}
            with rows.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        on_item(done, len(found))
    return MakeReport(made, len(found) - made - len(unreadable), tuple(unreadable))


def _make_one(
    path: Path,
    name: str,
    folder: Path,
    roots: Sequence[Path],
    settings: MakeSettings,
    make_hint: Callable[[Tensor, int], Tensor],
) -> bool:
    """Make what is missing of a pair; whether anything was."""
    target, hint = folder / "target" / f"{name}.png", folder / "source" / f"{name}.png"
    for place in (target, hint):
        check_inside(place, roots, name)
    if target.exists() and hint.exists():
        return False
    if target.exists():
        picture = read_picture(target, name)
    else:
        picture = read_picture(path, name)
        height, width = hint_size(picture.height, picture.width, settings.resolution)
        picture = fit_picture(picture, (width, height), is_hint=False)
        _save(picture, target)
    pixels = to_pixels(picture).movedim(1, -1)  # BCHW -> BHWC
    _save(from_pixels(make_hint(pixels, seed_of(name))[0].movedim(-1, 0)), hint)
    return True


def _save(picture: Image, path: Path) -> None:
    with whole_file(path) as temporary:
        picture.save(temporary, "PNG")


def _names(found: Sequence[Path], folder: Path) -> dict[Path, str]:
    """Names without extension; with it where two pictures differ in nothing else."""
    stems = {path: path.relative_to(folder).with_suffix("").as_posix() for path in found}
    counts = Counter(stems.values())
    return {path: stem if counts[stem] == 1 else f"{stem}_{path.suffix[1:].lower()}" for path, stem in stems.items()}


def _caption(path: Path, captions: str) -> str:
    if captions == "file_name":
        return path.stem.replace("_", " ").replace("-", " ").strip()
    text = path.with_suffix(".txt")
    if captions == "none" or not text.is_file() or text.is_symlink():
        return ""
    return " ".join(text.read_text(encoding="utf-8", errors="replace").split())


def _targets_in(rows: Path) -> set[str]:
    """Names in prompt.json; a last line that a kill cut short is taken off."""
    if not rows.is_file():
        return set()
    text = rows.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_text(rows, whole)
    targets = (json.loads(line)["target"] for line in whole.splitlines() if line.strip())
    return {target.removeprefix("target/").removesuffix(".png") for target in targets}


def _check_same(folder: Path, settings: MakeSettings) -> None:
    own = {"hint_type": settings.hint_type, "options": settings.options, "resolution": settings.resolution}
    about = folder / ABOUT
    if about.is_file():
        there = json.loads(about.read_text(encoding="utf-8"))
        different = [f"{key} was {there.get(key)} and is {value}" for key, value in own.items() if there.get(key) != value]
        if different:
            raise ValueError(f"'{folder.name}' was made with other settings ({'; '.join(different)}): choose another folder.")
    elif folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"'{folder.name}' is there already and was not made here: choose another folder.")
    else:
        write_text(about, json.dumps(own))
