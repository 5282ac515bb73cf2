"""The data of a training: of one dataset, or of one for each condition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from ...training.cache import digest_of
from ...training.chunks import check_settings
from ...training.dataset import PairDataset, usable_pairs
from ...training.mixed import MixedDataset, MixedSource, config_for, mixed_held_out
from ...training.objective import Objective
from .train_clips import prepare_clips
from .train_data import TrainData, prepare_data
from .train_shards import prepare_shards
from .unet_structure import is_video

if TYPE_CHECKING:
    from .train_job import TrainJob


def check_datasets(dataset: PairDataset | MixedDataset) -> None:
    """The cheap check of every part: see `usable_pairs`."""
    for part in dataset.parts.values() if isinstance(dataset, MixedDataset) else (dataset,):
        if part.shards is not None:
            check_settings(part.settings)
        else:
            usable_pairs(part)


def prepare_datasets(job: TrainJob, objective: Objective, show: Callable[[str], None]) -> TrainData:
    """Encode what is not encoded yet, of every part: see `prepare_data`."""
    if is_video(job.model):
        return prepare_clips(job, objective, show)
    if not isinstance(job.dataset, MixedDataset):
        return _prepare(job, objective, show)
    parts: dict[str, TrainData] = {}
    for name, dataset in job.dataset.parts.items():
        part = replace(job, dataset=dataset, config=config_for(job.config, name))
        parts[name] = _prepare(part, objective, partial(_show, show, name))
    return _joined(parts, job)


def _prepare(job: TrainJob, objective: Objective, show: Callable[[str], None]) -> TrainData:
    """Of one dataset."""
    if isinstance(job.dataset, PairDataset) and job.dataset.shards is not None:
        return prepare_shards(job, job.dataset, objective, show)
    return prepare_data(job, objective, show)


def _show(show: Callable[[str], None], name: str, text: str) -> None:
    show(f"{name}: {text}")


def _joined(parts: dict[str, TrainData], job: TrainJob) -> TrainData:
    """One source for all; what a resumed run needs names the condition whose dataset has changed."""
    first = next(iter(parts.values()))
    identity = {name: value for name, value in first.identity.items() if name != "dataset"}
    identity |= {f"dataset of '{name}'": part.identity["dataset"] for name, part in parts.items()}
    return replace(
        first,
        source=MixedSource({name: part.source for name, part in parts.items()}, job.config),
        held_out=mixed_held_out({name: part.held_out for name, part in parts.items()}),
        digest=digest_of({name: part.digest for name, part in parts.items()}),
        count=sum(part.count for part in parts.values()),
        identity=identity,
    )
