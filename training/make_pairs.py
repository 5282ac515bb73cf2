"""Pairs from pictures: each gets the hint that a preprocessor makes of it. What is there already is left alone."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL.Image import Image
from torch import Tensor

from ..models.foreign import first_line, shown
from ..preprocessors.canvas import hint_size
from .durable import CannotWriteError, whole_file, writing
from .inside import check_inside, open_inside, own_place
from .made_files import LONGEST_REASON, PICTURE, ROWS, check_same, read_rows
from .pair_names import name_pairs
from .picture_files import EXTENSIONS, NOT_READ, UnreadablePictureError
from .pictures import fit_picture, from_pixels, read_picture, to_pixels
from .texts import caption_of, read_text

CAPTIONS = ("beside", "file_name", "none")
_OF_ITS_NAME = frozenset(
    {errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
)
"""Why a file cannot be written that has to do with its own name: the next one may well be."""


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


@dataclass(eq=False)
class MakeReport:
    """What was done; the three add up to all pictures that were found."""

    made: int = 0
    kept: int = 0
    """Pairs that were there."""
    left_out: list[str] = field(default_factory=list)
    """A sentence for each."""

    def text(self) -> str:
        """Some lines."""
        lines = [f"{self.made} pairs made, {self.kept} were there already."]
        if self.left_out:
            lines += [f"{len(self.left_out)} pictures left out:", *self.left_out]
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
        make_hint: Maps (1, H, W, 3) in [0, 1] and a seed to a hint of the same size. A ValueError of it is one picture's.
        on_item: Called after each picture with how many are done, and of how many; may raise.

    Returns:
        What was done.

    Raises:
        ValueError: There are no pictures, the two folders lie in each other, the dataset was made with other settings, or its
            files are damaged or links.
        CannotWriteError: The disk is full or not writable.
    """
    if pictures.resolve().is_relative_to(target.resolve()) or target.resolve().is_relative_to(pictures.resolve()):
        raise ValueError(
            f"'{target.name}' and '{pictures.name}' lie in each other: choose a dataset folder beside the pictures."
        )
    report = MakeReport()
    found = _find(pictures, report.left_out)
    if not found:
        first = f"; {report.left_out[0]}" if report.left_out else ": it needs .png, .jpg, .webp, .bmp, .tif or .avif files."
        raise ValueError(f"'{shown(pictures.name)}' holds no pictures that can be read{first}")
    for place in (ROWS, "source/x", "target/x"):
        own_place(target, place)
    own = {"hint_type": settings.hint_type, "options": settings.options, "resolution": settings.resolution}
    check_same(target, own)
    rows = read_rows(own_place(target, ROWS))
    recorded = {picture: name for name, picture in rows.items() if picture}
    names = name_pairs(list(found), recorded, rows.keys() - recorded.values())
    maker = _Maker(target, roots, settings, make_hint)
    for done, (picture, path) in enumerate(found.items(), 1):
        try:
            is_new = maker.make(path, picture, names[picture], is_listed=names[picture] in rows)
            report.made += is_new
            report.kept += not is_new
        except UnreadablePictureError as error:
            report.left_out.append(error.plain)
        except (ValueError, ArithmeticError, IndexError) as error:
            report.left_out.append(f"'{shown(names[picture])}': {first_line(error, LONGEST_REASON)}")
        on_item(done, len(found))
    return report


def _find(folder: Path, left_out: list[str]) -> dict[str, Path]:
    """Find the pictures below a folder; what is hidden is none of the user's.

    Args:
        folder: Looked through with its sub-folders.
        left_out: Gets a sentence for each picture and folder that cannot be read for what it is.

    Returns:
        By their paths in it, in order.
    """
    found: dict[str, Path] = {}

    def fail(error: OSError) -> None:
        name = Path(error.filename).relative_to(folder).as_posix()
        left_out.append(f"The folder '{shown(name)}' cannot be read ({shown(error.strerror)}): make it readable.")

    for place, folders, files in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in [*folders, *sorted(files)]:
            path = Path(place, name)
            relative, ending = path.relative_to(folder).as_posix(), path.suffix.lower()
            if name in folders:
                if path.is_symlink():
                    left_out.append(f"'{shown(relative)}' is a link to a folder: put the folder itself in its place.")
            elif name.startswith("."):
                continue
            elif ending in NOT_READ:
                left_out.append(f"'{shown(relative)}' is not read, for it is a {ending} file: save it as PNG, JPEG or WEBP.")
            elif ending in EXTENSIONS and not _is_text(relative):
                left_out.append(f"'{shown(relative)}' has a name that is not UTF-8: rename it.")
            elif ending in EXTENSIONS:
                found[relative] = path
    return {relative: found[relative] for relative in sorted(found, key=lambda relative: found[relative])}


def _is_text(name: str) -> bool:
    """Whether a name can be written into a file; the system gives bytes that are no text as halves of surrogate pairs."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True, eq=False)
class _Maker:
    folder: Path
    roots: Sequence[Path]
    settings: MakeSettings
    make_hint: Callable[[Tensor, int], Tensor]

    def make(self, path: Path, picture: str, name: str, is_listed: bool) -> bool:
        """Make what is missing of a pair, and list it.

        Args:
            path: Of the picture.
            picture: The same, in its folder.
            name: Of the pair.
            is_listed: Whether it has its row.

        Returns:
            Whether anything was missing.

        Raises:
            ValueError: It cannot be made; others may be.
            CannotWriteError: Nor can others.
        """
        real = check_inside(path, self.roots, picture)
        row = {"source": f"source/{name}.png", "target": f"target/{name}.png", "prompt": "", PICTURE: picture}
        if not is_listed:
            row["prompt"] = self._caption(path, picture)
        try:
            is_new = self._draw(real, name, own_place(self.folder, row["target"]), own_place(self.folder, row["source"]))
        except CannotWriteError as error:
            cause = error.__cause__
            if not isinstance(cause, OSError) or cause.errno not in _OF_ITS_NAME:
                raise
            raise ValueError(f"it cannot be written ({shown(cause.strerror)}): give it another, shorter name.") from error
        if not is_listed:
            with writing(ROWS), own_place(self.folder, ROWS).open("ab") as stream:
                stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        return is_new or not is_listed

    def _caption(self, path: Path, picture: str) -> str:
        if self.settings.captions == "file_name":
            return path.stem.replace("_", " ").replace("-", " ").strip()
        text, name = path.with_suffix(".txt"), f"{picture.rpartition('.')[0]}.txt"
        try:
            if self.settings.captions == "none" or not text.is_file() or text.is_symlink():
                return ""
            with open_inside(text, self.roots, name) as stream:
                return caption_of(read_text(stream, name), name)
        except OSError as error:
            raise ValueError(f"'{shown(name)}' cannot be read ({shown(error.strerror)}): make it readable.") from error

    def _draw(self, path: Path, name: str, target: Path, hint: Path) -> bool:
        has_target = _is_there(target)
        if has_target and _is_there(hint):
            return False
        picture = read_picture(target if has_target else path, name)
        if not has_target:
            height, width = hint_size(picture.height, picture.width, self.settings.resolution)
            picture = fit_picture(picture, (width, height), is_hint=False)
        drawn = self.make_hint(to_pixels(picture).movedim(1, -1), seed_of(name))[0].movedim(-1, 0)  # BCHW -> BHWC -> CHW
        if not has_target:
            _save(picture, target)
        _save(from_pixels(drawn), hint)
        return True


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # its folder may not be looked into; writing there says so
        return False


def _save(picture: Image, path: Path) -> None:
    with whole_file(path) as temporary:
        picture.save(temporary, "PNG")
