"""The pair doctor: everything that makes a training fail or learn nothing, found before it starts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .cache import file_digest
from .dataset import ASPECT_TOLERANCE, PairDataset
from .pairs import Pair
from .pictures import Size, UnreadablePictureError, bucket_of, fit_picture, read_picture, to_pixels
from .preview import grid

THUMBNAIL = 128
"""Pixels, side of the copies that are compared and shown."""
CONSTANT = 2 / 255
"""Range of a hint that shows nothing."""
EQUAL = 1 / 255
"""Largest difference of two pictures that count as one."""
BRIGHT, DARK = 0.6, 0.4
"""Mean of a hint beyond which its ground is light or dark."""
LONGEST_CAPTION = 75
"""Words and signs; the text encoder reads 75 tokens, and rare words are several."""
LISTED = 20
SHEET_ROWS = 12


@dataclass(eq=False)
class Report:
    """What was found."""

    name: str
    pairs: int
    orphans: tuple[str, ...]
    problems: dict[str, list[str]] = field(default_factory=dict)
    """Kind of problem to the names of the pairs that have it."""
    buckets: Counter[Size] = field(default_factory=Counter)
    rows: list[tuple[bool, list[Tensor]]] = field(default_factory=list)
    """Whether a pair has a problem, and its thumbnails."""

    def add(self, kind: str, name: str) -> None:
        """Note a problem."""
        self.problems.setdefault(kind, []).append(name)

    def text(self) -> str:
        """Some lines, the verdict first."""
        bad = {name for names in self.problems.values() for name in names}
        lines = [f"{self.pairs} pairs in '{self.name}', {len(bad)} with something to look at, {len(self.orphans)} orphans."]
        sizes = ", ".join(f"{width}x{height}: {count}" for (width, height), count in sorted(self.buckets.items()))
        lines.append(f"Sizes in training: {sizes}." if sizes else "No pair can be trained.")
        for kind, names in [*self.problems.items(), ("without a partner", list(self.orphans))]:
            if names:
                more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
                lines.append(f"{kind} ({len(names)}): {', '.join(names[:LISTED])}{more}")
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
    for done, pair in enumerate(pairs, 1):
        _check_caption(pair, report)
        first = targets.setdefault(file_digest(pair.target), pair.name)
        if first != pair.name:
            report.add("the same target as another pair", pair.name)
        try:
            _check_pictures(pair, dataset, background, report)
        except UnreadablePictureError as error:
            report.add("unreadable", str(error).split(":", maxsplit=1)[0])
        on_item(done, len(pairs))
    return report


def _check_caption(pair: Pair, report: Report) -> None:
    if not pair.caption:
        report.add("no caption", pair.name)
    elif len(re.findall(r"\w+|[^\w\s]", pair.caption)) > LONGEST_CAPTION:
        report.add(f"caption of more than {LONGEST_CAPTION} words, the rest is not read", pair.name)


def _check_pictures(pair: Pair, dataset: PairDataset, background: str, report: Report) -> None:
    target, hint = read_picture(pair.target, pair.name), read_picture(pair.hint, pair.hint.name)
    settings = dataset.settings
    found = []
    if abs(hint.width * target.height / (hint.height * target.width) - 1) > ASPECT_TOLERANCE:
        found.append("hint of another shape than its target")
    else:
        size = bucket_of(target.size, settings.resolution, settings.has_buckets)
        report.buckets[size] += 1
        if hint.size != target.size:
            found.append("hint of another size than its target, of the same shape")
        if target.width < size[0] or target.height < size[1]:
            found.append("smaller than it is trained at")
    small = fit_picture(hint, (THUMBNAIL, THUMBNAIL), is_hint=True)
    own = to_pixels(small)[0]
    found += _look_of(own, to_pixels(hint)[0], background)
    if hint.size == target.size and (to_pixels(hint) - to_pixels(target)).abs().max() <= EQUAL:
        found.append("hint and target are the same picture")
    for kind in found:
        report.add(kind, pair.name)
    if len(report.rows) < SHEET_ROWS or (found and sum(is_bad for is_bad, _ in report.rows) < SHEET_ROWS):
        report.rows.append((bool(found), [own, to_pixels(fit_picture(target, (THUMBNAIL, THUMBNAIL), is_hint=False))[0]]))


def _look_of(small: Tensor, hint: Tensor, background: str) -> list[str]:
    if hint.amax() - hint.amin() <= CONSTANT:
        return ["blank hint, one colour all over"]
    mean = small.mean().item()
    if (background == "black" and mean > BRIGHT) or (background == "white" and mean < DARK):
        return [f"hint looks inverted, this type has a {background} ground"]
    return []
