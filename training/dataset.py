"""A dataset: its pairs, how they are used, and which of them can be."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..models.foreign import shown
from .pair import PackedPair, Pair
from .pictures import SIDE_MULTIPLE, Size, bucket_of, read_size

logger = logging.getLogger("nextcontrol")

BAD_PAIRS = ("refuse", "skip")
SHARD_PRECISIONS = ("fp16", "fp32")
LOGGED = 100
"""Pairs that are left out, each with its line in the log."""
ASPECT_TOLERANCE = 0.03
"""By how much the ratio of sides of a hint may differ from its target's, as a fraction."""


@dataclass(frozen=True)
class DatasetSettings:
    """How the pairs of a folder are used.

    Raises:
        ValueError: With every contradiction in one sentence.
    """

    resolution: int = 512
    """Pixels, side of a square bucket."""
    has_buckets: bool = False
    """Switch: follow each picture's shape; else all are cut square."""
    has_flip: bool = False
    """Switch: half of the draws are mirrored."""
    prompt_dropout: float = 0.3
    """Fraction of the draws that get an empty caption."""
    subset: int = 0
    """Pairs, the first ones; 0 takes all."""
    repeats: int = 1
    """Times that an epoch sees each pair."""
    bad_pairs: str = "refuse"
    """Name, "refuse" or "skip": what is done about pairs that cannot be used."""
    hint_type: str = ""
    """Name of the condition, for the file's metadata."""

    def __post_init__(self) -> None:
        problems = []
        if self.resolution < SIDE_MULTIPLE or self.resolution % SIDE_MULTIPLE:
            problems.append(f"resolution ({self.resolution}) must be a multiple of {SIDE_MULTIPLE}")
        if not 0 <= self.prompt_dropout <= 1:
            problems.append(f"prompt_dropout ({self.prompt_dropout}) must be from 0 to 1")
        if self.subset < 0:
            problems.append(f"subset ({self.subset}) must be 0 or more")
        if self.repeats < 1:
            problems.append(f"repeats ({self.repeats}) must be 1 or more")
        if self.bad_pairs not in BAD_PAIRS:
            problems.append(f"bad_pairs ('{self.bad_pairs}') must be {' or '.join(BAD_PAIRS)}")
        if problems:
            raise ValueError("; ".join(problems) + ".")


@dataclass(frozen=True)
class ShardSettings:
    """How pairs are encoded into tar shards, and read from them.

    Raises:
        ValueError: With every contradiction in one sentence.
    """

    folder: str = ""
    """Name of the folder for the encoded shards, beside the dataset's; empty is the dataset's own with "_encoded"."""
    precision: str = "fp16"
    """Type of what is kept, "fp16" or "fp32"."""
    pairs_per_shard: int = 1000
    """Pairs in one encoded shard of a folder; a tar shard becomes one encoded shard."""
    shuffle_buffer: int = 2000
    """Pairs that are shuffled, and held in memory, at a time."""

    def __post_init__(self) -> None:
        problems = []
        if self.precision not in SHARD_PRECISIONS:
            problems.append(f"precision ('{self.precision}') must be {' or '.join(SHARD_PRECISIONS)}")
        counts = ("pairs_per_shard", "shuffle_buffer")
        problems += [f"{name} ({getattr(self, name)}) must be 1 or more" for name in counts if getattr(self, name) < 1]
        if problems:
            raise ValueError("; ".join(problems) + ".")


@dataclass(frozen=True, eq=False)
class PairDataset:
    """What flows through the `PAIR_DATASET` socket."""

    name: str
    """As the user chose it."""
    folder: Path
    pairs: tuple[Pair, ...]
    orphans: tuple[str, ...]
    settings: DatasetSettings
    about: dict[str, Any] = field(default_factory=dict)
    """What made the hints, where our own tool did: hint_type, options."""
    packed: tuple[Path, ...] = ()
    """Tar shards, where the pairs lie in these and not in `pairs`."""
    shards: ShardSettings | None = None
    """How it is encoded into shards, where it is trained from these."""
    shared_with: tuple[Path, ...] = ()
    """Folders of other datasets, whose encoded pictures and texts are used where they are the same."""
    problems: tuple[str, ...] = ()
    """What is listed as a pair and cannot be read as one, a sentence each."""

    @property
    def hint_type(self) -> str:
        """Name of the condition, empty if nobody said."""
        return self.settings.hint_type or str(self.about.get("hint_type", ""))


def usable_pairs(dataset: PairDataset) -> list[tuple[Pair, Size]]:
    """The cheap check: which pairs can be trained, with their buckets.

    Args:
        dataset: As found.

    Returns:
        Two or more.

    Raises:
        ValueError: Fewer remain, or one cannot be used and bad_pairs is "refuse".
    """
    settings = dataset.settings
    if dataset.shards is not None:
        raise ValueError(f"'{shown(dataset.name)}' lies in shards, and this needs a folder with source and target pictures.")
    chosen = dataset.pairs[: settings.subset or None]
    found = [(pair, _bucket_or_problem(pair, settings)) for pair in chosen]
    usable = [(pair, bucket) for pair, bucket in found if not isinstance(bucket, str)]
    take_note(dataset.name, [*dataset.problems, *(problem for _, problem in found if isinstance(problem, str))], settings)
    if len(usable) < 2:
        raise ValueError(
            f"'{shown(dataset.name)}' has {len(usable)} usable pair{'s' * (len(usable) != 1)} and training needs 2 or more, "
            "1,000 for a good result: look at it with 'Check Pairs'."
        )
    return usable


def take_note(name: str, bad: Sequence[str], settings: DatasetSettings) -> None:
    """Refuse to train with pairs that cannot be used, or say what is left out.

    Args:
        name: Of the dataset.
        bad: A sentence for each.
        settings: Say which of the two.

    Raises:
        ValueError: There are some, and they are not to be skipped.
    """
    if bad and settings.bad_pairs == "refuse":
        more = f" And {len(bad) - 3} more like that." if len(bad) > 3 else ""
        cure = "" if "set bad_pairs to skip" in bad[0] else " Or set bad_pairs to skip."
        raise ValueError(f"{' '.join(bad[:3])}{more}{cure}")
    for problem in bad[:LOGGED]:
        logger.warning("Left out: %s", problem)
    if len(bad) > LOGGED:
        logger.warning("Left out of '%s': %d more", shown(name), len(bad) - LOGGED)


def _bucket_or_problem(pair: Pair, settings: DatasetSettings) -> Size | str:
    try:
        return bucket_for(pair, settings)
    except ValueError as error:
        return str(error)


def bucket_for(pair: Pair | PackedPair, settings: DatasetSettings) -> Size:
    """The size that a pair is trained at.

    Args:
        pair: Whose headers are read.
        settings: Of its dataset.

    Returns:
        The square, or its bucket.

    Raises:
        ValueError: A picture or the caption of it cannot be read, or the two are not of one shape.
    """
    if isinstance(pair, Pair) and pair.problem:
        raise ValueError(pair.problem)
    width, height = read_size(pair.target, pair.name)
    hint = read_size(pair.hint, pair.hint.name)
    if abs(hint[0] * height / (hint[1] * width) - 1) > ASPECT_TOLERANCE:
        raise ValueError(
            f"'{shown(pair.name)}' is {width}x{height} and its hint {hint[0]}x{hint[1]}: make both of one shape, or set "
            "bad_pairs to skip."
        )
    return bucket_of((width, height), settings.resolution, settings.has_buckets)
