"""Clips: which pairs of a dataset are the frames of one, and which of them a draw takes.

The frames of a clip are the pairs whose targets lie in one sub-folder, in the order of their names:

    target/dance/0001.png, target/dance/0002.png, ...    source/dance/0001.png, source/dance/0002.png, ...
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Protocol, TypeVar

import torch

from ..models.foreign import shown
from .dataset import PairDataset
from .pairs import TARGET_FOLDERS
from .pictures import Size
from .settings import settings_from

logger = logging.getLogger("nextcontrol")

RANDOM_INTERVALS = (2, 7)
"""Frames, the shortest and the longest distance that is drawn where the interval is 0."""


@dataclass(frozen=True)
class ClipSettings:
    """How clips are used; the defaults are the reference's.

    Raises:
        ValueError: With every contradiction in one sentence.

    Source: dvlab-research/ControlNeXt@ab4b3ac ControlNeXt-SVD-v2-Training/train_svd.py, its script.sh and its dataset.
    """

    frames: int = 14
    """Frames of a clip that are trained at once; the authors' README has 21."""
    interval: int = 3
    """Frames from one to the next, fewer where a clip is too short; 0 draws 2 to 7 each time."""
    fps: int = 6
    """Frames a second that the network is told; the host's nodes ask for one more."""
    motion: int = 127
    """Amount of motion that the network is told."""
    augmentation: float = 0.02
    """Deviation of the noise on the reference, of pixels in [-1, 1]; the network is told."""
    dropout: float = 0.1
    """Fraction of the draws with neither embedding nor latent of the reference; as many have only one of them, or the other."""
    exchange_red_blue: bool = False
    """Switch: hints lie in the usual colours of poses, and the network is to see red and blue exchanged."""
    hand_weight: float = 4.2
    """Factor of the error in the boxes that a clip's hands.json has."""

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise ValueError("; ".join(problems) + ".")

    def _problems(self) -> Iterator[str]:
        if self.frames < 2:
            yield f"frames ({self.frames}) must be 2 or more"
        for name in ("interval", "fps", "motion", "augmentation", "hand_weight"):
            if not getattr(self, name) >= 0:
                yield f"{name} ({getattr(self, name)}) must be 0 or more"
        if not 0 <= self.dropout <= 1 / 3:
            yield f"dropout ({self.dropout}) must be from 0 to 1/3"

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> ClipSettings:
        """Settings as a configuration file has them; what is left out has its default.

        Args:
            values: By name.

        Returns:
            Checked.

        Raises:
            ValueError: A name is unknown, a type is wrong, or the settings contradict each other.
        """
        return settings_from(cls, values, "no setting of clips")


class Named(Protocol):
    """A pair, encoded or not."""

    @property
    def name(self) -> str:
        """Path of the target in the dataset's folder, with forward slashes."""
        ...


NamedT = TypeVar("NamedT", bound=Named)


def group_clips(frames: Sequence[NamedT]) -> dict[str, list[NamedT]]:
    """The frames of each clip, in the order of their names; a number counts as a number.

    Args:
        frames: In any order.

    Returns:
        By the name of the sub-folder; pairs that lie in none are left out.
    """
    clips: dict[str, list[NamedT]] = {}
    for frame in sorted(frames, key=lambda frame: _order(frame.name)):
        if name := clip_of(frame.name):
            clips.setdefault(name, []).append(frame)
    return clips


def clip_of(name: str) -> str:
    """The sub-folder of a pair's target, without the folder of all targets; empty if it lies in none."""
    parts = PurePosixPath(name).parts[:-1]
    return "/".join(parts[1:] if parts and parts[0] in TARGET_FOLDERS else parts)


def _order(name: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part]


def check_clips(dataset: PairDataset, usable: Sequence[tuple[Named, Size]], settings: ClipSettings) -> list[str]:
    """Make sure that there are clips to train on, before anything is encoded.

    Args:
        dataset: Names itself, and says what is done about clips that cannot be used.
        usable: Pairs with their sizes.
        settings: Ask for a number of frames.

    Returns:
        Names of the clips to train on.

    Raises:
        ValueError: There are none, or one cannot be used and bad_pairs is "refuse".
    """
    own, sizes = shown(dataset.name), {pair.name: size for pair, size in usable}
    clips = group_clips([pair for pair, _ in usable])
    layout = (
        "put the frames of each clip into a sub-folder of its own, such as target/dance/0001.png with source/dance/0001.png"
    )
    if not clips:
        raise ValueError(f"'{own}' holds {len(usable)} pairs of pictures and no clips, and SVD is trained on clips: {layout}.")
    short = [name for name, frames in clips.items() if len(frames) < settings.frames]
    if len(short) == len(clips):
        longest = max(clips, key=lambda name: len(clips[name]))
        raise ValueError(
            f"'{own}' has {len(clips)} clip{'s' * (len(clips) != 1)} and none of {settings.frames} frames or more, "
            f"the longest is '{shown(longest)}' with {len(clips[longest])}: use longer clips, or set frames lower."
        )
    problems = [f"'{shown(name)}' has {len(clips[name])} frames and {settings.frames} are asked for" for name in short]
    mixed = [name for name, frames in clips.items() if len({sizes[frame.name] for frame in frames}) > 1]
    problems += [f"'{shown(name)}' has frames of several shapes" for name in mixed]
    if alone := len(usable) - sum(map(len, clips.values())):
        problems.append(f"{alone} pair{'s lie' if alone > 1 else ' lies'} in no sub-folder")
    if problems and dataset.settings.bad_pairs == "refuse":
        raise ValueError(f"'{own}' cannot be trained as it is: {'; '.join(problems[:3])}; {layout}, or set bad_pairs to skip.")
    for problem in problems:
        logger.warning("Left out: %s", problem)
    return [name for name in clips if name not in {*short, *mixed}]


def choose_frames(length: int, settings: ClipSettings, generator: torch.Generator) -> list[int]:
    """The frames of one draw: evenly spaced, from a random start, and the first one replaced by a random frame of the clip.

    Args:
        length: Frames of the clip, `settings.frames` or more.
        settings: How many, and how far apart.
        generator: Draws.

    Returns:
        Their places in the clip; the first is the reference.
    """

    def draw(first: int, last: int) -> int:
        return int(torch.randint(first, last + 1, (1,), generator=generator))

    longest = (length - 1) // (settings.frames - 1)
    low, high = (min(bound, longest) for bound in RANDOM_INTERVALS)
    interval = min(settings.interval, longest) or draw(low, high)
    start = draw(0, length - 1 - interval * (settings.frames - 1))
    reference = draw(0, length - 1)
    window = itertools.islice(itertools.count(start, interval), settings.frames)
    return [reference, *list(window)[1:]]


def even_frames(length: int, settings: ClipSettings) -> list[int]:
    """The frames of a clip that is held out: from its start, as far apart as in training; the first is the reference."""
    longest = (length - 1) // (settings.frames - 1)
    interval = min(settings.interval or RANDOM_INTERVALS[0], longest)
    return [number * interval for number in range(settings.frames)]
