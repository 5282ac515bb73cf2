"""The pair doctor: everything that makes a training fail or learn nothing, found before it starts."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ..models.foreign import shown
from .cache import file_digest
from .dataset import ASPECT_TOLERANCE, PairDataset
from .pairs import Pair
from .picture_files import UnreadablePictureError
from .pictures import Size, bucket_of, fit_picture, read_with_remarks, to_pixels
from .preview import grid

if TYPE_CHECKING:
    from PIL.Image import Image

THUMBNAIL = 128
"""Pixels, side of the copies that are compared and shown."""
LARGEST_COMPARED = 2048
"""Pixels, side beyond which pictures are reduced before they are compared; nothing is trained at more."""
CONSTANT = 2
"""Range of a picture that shows nothing, in steps of 255."""
EQUAL = 1
"""Largest difference of two pictures that count as one, in steps of 255."""
BRIGHT, DARK = 0.6, 0.4
"""Mean of a hint beyond which its ground is light or dark."""
LONGEST_CAPTION = 75
"""Words and signs; the text encoder reads 75 tokens, and rare words are several."""
LISTED = 20
LONGEST_LINE = 1500
"""Characters of the names in one line of the report."""
LONGEST_NAME = 300
"""Characters of a name, or of a reason, in the report."""
SHEET_ROWS = 12


@dataclass(eq=False)
class Report:
    """What was found."""

    name: str
    pairs: int
    orphans: tuple[str, ...]
    problems: dict[str, list[str]] = field(default_factory=dict)
    """Kind of problem to the pairs that have it, by name or with a reason."""
    buckets: Counter[Size] = field(default_factory=Counter)
    rows: list[tuple[bool, list[Tensor]]] = field(default_factory=list)
    """Whether a pair has a problem, and its thumbnails."""
    bad: set[str] = field(default_factory=set)
    """Names of the pairs that have a problem."""

    def add(self, kind: str, name: str, detail: str = "") -> None:
        """Note a problem of a pair; `detail` is listed in place of its name."""
        self.bad.add(name)
        self.problems.setdefault(kind, []).append(detail or name)

    def text(self) -> str:
        """Some lines, the verdict first."""
        lines = [
            f"{self.pairs} pairs in '{self.name}', {len(self.bad)} with something to look at, {len(self.orphans)} orphans."
        ]
        sizes = ", ".join(f"{width}x{height}: {count}" for (width, height), count in sorted(self.buckets.items()))
        lines.append(f"Sizes in training: {sizes}." if sizes else "No pair can be trained.")
        for kind, names in [*self.problems.items(), ("without a partner", list(self.orphans))]:
            if names:
                lines.append(f"{kind} ({len(names)}): {_some(names)}")
        return "\n".join(lines)

    def sheet(self) -> Tensor:
        """(H, W, 3): hint and target of some pairs in two columns of rows, those with a problem first."""
        shown = [pictures for _, pictures in sorted(self.rows, key=lambda row: not row[0])][:SHEET_ROWS]
        if not shown:
            return torch.zeros(THUMBNAIL, 2 * THUMBNAIL, 3)
        half = -(-len(shown) // 2)
        blank = [torch.zeros(3, THUMBNAIL, THUMBNAIL)] * 2
        sides = [*shown, *([blank] * (2 * half - len(shown)))]
        rows = [[*sides[row], *sides[row + half]] for row in range(half)]
        return grid(rows, THUMBNAIL).movedim(0, -1)  # CHW -> HWC


def _some(names: Sequence[str]) -> str:
    """The first of some names or reasons, as many as a line has room for, and how many there are beside them."""
    printable = [shown(name, LONGEST_NAME) for name in names[:LISTED]]
    ends = itertools.accumulate(map(len, printable))
    fitting = [name for name, end in zip(printable, ends, strict=True) if end <= LONGEST_LINE]
    more = f" and {len(names) - len(fitting)} more" if len(names) > len(fitting) else ""
    return ", ".join(fitting) + more


def check_pairs(
    dataset: PairDataset, background: str, on_item: Callable[[int, int], None] = lambda _done, _all: None
) -> Report:
    """Read every picture and caption of a dataset.

    Args:
        dataset: As found.
        background: Usual ground of this type of hint, "black" or "white"; empty if it has none or is not known.
        on_item: Called after each pair with how many are done, and of how many; may raise.

    Returns:
        What was found; nothing in the folder is changed.

    Raises:
        ValueError: The pairs lie in shards.
    """
    if dataset.shards is not None:
        raise ValueError(f"'{dataset.name}' lies in shards, and this needs a folder with source and target pictures.")
    pairs = dataset.pairs[: dataset.settings.subset or None]
    report = Report(dataset.name, len(pairs), dataset.orphans)
    targets: dict[str, str] = {}
    for problem in dataset.problems:
        report.add("row that cannot be read", problem)
    for done, pair in enumerate(pairs, 1):
        _check_caption(pair, report)
        try:
            target = _look_at(pair.target, pair.name)
            hint = _look_at(pair.hint, _name_in(dataset, pair.hint))
            first = targets.setdefault(file_digest(pair.target), pair.name)
        except UnreadablePictureError as error:
            report.add("unreadable", pair.name, error.what)
        except OSError as error:
            reason = f"'{shown(pair.name)}' cannot be opened ({shown(error.strerror)})"
            report.add("unreadable", pair.name, reason)
        else:
            if first != pair.name:
                report.add("the same target as another pair", pair.name)
            _check_pictures(pair, hint, target, dataset, background, report)
        on_item(done, len(pairs))
    return report


@dataclass(frozen=True, eq=False)
class _Look:
    """What is kept of a picture when it has been looked at."""

    size: Size
    small: Image
    """Of `LARGEST_COMPARED` at most."""
    is_blank: bool
    remarks: list[str]


def _look_at(path: Path, name: str) -> _Look:
    picture, remarks = read_with_remarks(path, name)
    # One colour, whichever: each channel is the same all over.
    is_blank = all(high - low <= CONSTANT for low, high in cast("tuple[tuple[int, int], ...]", picture.getextrema()))
    factor = -(-max(picture.size) // LARGEST_COMPARED)
    return _Look(picture.size, picture.reduce(factor) if factor > 1 else picture, is_blank, remarks)


def _name_in(dataset: PairDataset, path: Path) -> str:
    return path.relative_to(dataset.folder).as_posix() if path.is_relative_to(dataset.folder) else path.name


def _check_caption(pair: Pair, report: Report) -> None:
    if pair.problem:
        report.add("caption that cannot be read", pair.name, pair.problem)
    elif not pair.caption:
        report.add("no caption", pair.name)
    elif len(re.findall(r"\w+|[^\w\s]", pair.caption)) > LONGEST_CAPTION:
        report.add(f"caption of more than {LONGEST_CAPTION} words, the rest is not read", pair.name)


def _check_pictures(pair: Pair, hint: _Look, target: _Look, dataset: PairDataset, background: str, report: Report) -> None:
    settings = dataset.settings
    (hint_width, hint_height), (width, height) = hint.size, target.size
    found = []
    if abs(hint_width * height / (hint_height * width) - 1) > ASPECT_TOLERANCE:
        found.append("hint of another shape than its target")
    else:
        size = bucket_of(target.size, settings.resolution, settings.has_buckets)
        report.buckets[size] += 1
        if hint.size != target.size:
            found.append("hint of another size than its target, of the same shape")
        if width < size[0] or height < size[1]:
            found.append("smaller than it is trained at")
    own, beside = (fit_picture(look.small, (THUMBNAIL, THUMBNAIL), look is hint) for look in (hint, target))
    found += [f"blank {role}, one colour all over" for role, look in (("hint", hint), ("target", target)) if look.is_blank]
    if not hint.is_blank:
        found += _ground_of(to_pixels(own)[0].mean().item(), background)
    if hint.size == target.size and _is_same(hint.small, target.small):
        found.append("hint and target are the same picture")
    found += [f"{role} {remark}" for role, look in (("hint", hint), ("target", target)) for remark in look.remarks]
    for kind in found:
        report.add(kind, pair.name)
    if len(report.rows) < SHEET_ROWS or (found and sum(is_bad for is_bad, _ in report.rows) < SHEET_ROWS):
        report.rows.append((bool(found), [to_pixels(own)[0], to_pixels(beside)[0]]))


def _ground_of(mean: float, background: str) -> list[str]:
    if (background == "black" and mean > BRIGHT) or (background == "white" and mean < DARK):
        return [f"hint looks inverted, this type has a {background} ground"]
    return []


def _is_same(one: Image, other: Image) -> bool:
    from PIL import ImageChops

    return all(high <= EQUAL for _, high in cast("tuple[tuple[int, int], ...]", ImageChops.difference(one, other).getextrema()))
