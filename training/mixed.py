"""Several conditions in one training: a dataset for each, visited in turn.

Source: arXiv:2410.09400, section 3.2; xyfJASON/ctrlora@b4422b4 scripts/train_ctrlora_pretrain.py.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..models.foreign import shown
from .backbone import ALONE, Batch, Share, Source
from .config import TrainConfig
from .dataset import DatasetSettings, PairDataset
from .draws import generator_for

LISTED = 3
"""Problems that one message names."""
_NAME = re.compile(r"\w[\w-]{0,63}")


def check_conditions(names: Sequence[str]) -> None:
    """Refuse names of conditions that cannot be parts of file names and keys.

    Args:
        names: As the user chose them.

    Raises:
        ValueError: With everything that is wrong in one sentence.
    """
    problems = [
        f"'{shown(name)}' must be 1 to 64 letters, digits, '_' or '-', not beginning with '-'"
        for name in names
        if not _NAME.fullmatch(name)
    ]
    # Some systems have one file for both.
    counts = Counter(name.casefold() for name in names)
    problems += [f"'{shown(name)}' is there more than once" for name, count in counts.items() if count > 1]
    if not names:
        problems.append("there is none: give each condition a name and a folder")
    if problems:
        more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        raise ValueError(f"The names of the conditions are wrong: {'; '.join(problems[:LISTED])}{more}.")


@dataclass(frozen=True, eq=False)
class MixedDataset:
    """Datasets by condition.

    Raises:
        ValueError: A name cannot be used, or two conditions have one folder.
    """

    parts: Mapping[str, PairDataset]
    """All with the same settings."""
    about: ClassVar[dict[str, Any]] = {}

    def __post_init__(self) -> None:
        check_conditions(list(self.parts))
        for (first, one), (second, other) in itertools.combinations(self.parts.items(), 2):
            if one.folder.resolve() == other.folder.resolve():
                raise ValueError(
                    f"'{first}' and '{second}' are both in the folder '{shown(one.name)}', which holds the hints of one "
                    "condition: give each a folder of its own."
                )

    @property
    def name(self) -> str:
        """Conditions with their folders, for the file's metadata."""
        return ", ".join(f"{condition}: {part.name}" for condition, part in self.parts.items())

    @property
    def settings(self) -> DatasetSettings:
        """Those of every part."""
        return next(iter(self.parts.values())).settings

    @property
    def hint_type(self) -> str:
        """Each part has its own."""
        return ""


def config_for(config: TrainConfig, condition: str) -> TrainConfig:
    """The settings that the source of one condition is made with: one batch at a time, and draws of its own."""
    seed = generator_for("condition", config.seed, condition).initial_seed()
    return dataclasses.replace(config, steps=config.steps * config.accumulation_steps, accumulation_steps=1, seed=seed)


class MixedSource:
    """Batches of one condition each: every round visits all conditions in a random order of its own.

    A condition's source goes on by one update with every round, so that a smaller dataset begins again while a larger one still
    has new pairs.

    Args:
        sources: By condition, each made with `config_for`.
        config: The run's settings.
    """

    def __init__(self, sources: Mapping[str, Source], config: TrainConfig) -> None:
        self.sources = sources
        self.names = list(sources)
        self.config = config

    def batches(self, step: int, share: Share = ALONE) -> list[Batch]:
        """See `training.backbone.Source.batches`."""
        own = self.config.accumulation_steps // share.processes
        first = step * self.config.accumulation_steps + share.rank * own
        return [self._batch(number) for number in range(first, first + own)]

    def _batch(self, number: int) -> Batch:
        """Batch `number` of the whole run."""
        turn, place = divmod(number, len(self.names))
        order = torch.randperm(len(self.names), generator=generator_for("round", self.config.seed, turn))
        name = self.names[order[place]]
        (batch,) = self.sources[name].batches(turn)
        return batch._replace(condition=name)


def mixed_held_out(held_out: Mapping[str, Sequence[Batch]]) -> list[Batch]:
    """Held-out pairs of all conditions in turn, so that the first few are of different ones.

    Args:
        held_out: Of each condition.

    Returns:
        All of them, with their conditions.
    """
    named = [[batch._replace(condition=name) for batch in own] for name, own in held_out.items()]
    return [batch for row in itertools.zip_longest(*named) for batch in row if batch is not None]
