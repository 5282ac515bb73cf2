"""`scripts/train.py CONFIG.json --precompute`: the datasets of a configuration as encoded shards, a part of them or all."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from ...models.foreign import shown
from ...training.dataset import PairDataset
from ...training.mixed import MixedDataset
from ...training.precompute import WHOLE, Part, Progress
from .train_data import encoders_for
from .train_job import TrainJob
from .train_script import job_from_text
from .train_shards import encode_shards, encoder_for
from .unet_structure import is_video


def read_part(text: str, environment: Mapping[str, str]) -> Part:
    """Which part a process encodes.

    Args:
        text: "I/N", from 1; empty without one.
        environment: A launcher's RANK and WORLD_SIZE count where `text` is empty.

    Returns:
        The part, counted from 0.

    Raises:
        ValueError: It is no part.
    """
    if not text:
        rank, processes = environment.get("RANK", "0"), environment.get("WORLD_SIZE", "1")
        if not (_is_number(rank) and _is_number(processes) and int(rank) < int(processes)):
            given = f"RANK is '{shown(rank)}' and WORLD_SIZE '{shown(processes)}'"
            raise ValueError(f"{given}, and a process needs a RANK from 0 below WORLD_SIZE: write --part 1/4 instead.")
        return Part(int(rank), int(processes))
    part, _, parts = text.partition("/")
    if not (_is_number(part) and _is_number(parts) and 1 <= int(part) <= int(parts)):
        given = f"--part is '{shown(text)}'"
        raise ValueError(f"{given} and must be I/N with I from 1 to N: write 1/4 for the first of four parts.")
    return Part(int(part) - 1, int(parts))


def _is_number(text: str) -> bool:
    return re.fullmatch("[0-9]{1,9}", text) is not None


def precompute_from_text(text: str, part: Part = WHOLE, show: Callable[[str], None] = lambda _text: None) -> str:
    """Encode what a configuration file trains from.

    Args:
        text: See `train_script.read_job`.
        part: What this process encodes.
        show: Takes a line of progress.

    Returns:
        One sentence for each dataset.

    Raises:
        ValueError: See `train_script.read_job` and `training.precompute.precompute`.
        FileNotFoundError: A model or a folder is not there.
    """
    job = job_from_text(text)
    job.recipe.check(job.model, job.config)
    if is_video(job.model):
        raise ValueError("The model is SVD, which trains on clips, and shards hold pairs: train it from a folder.")
    datasets = list(job.dataset.parts.values()) if isinstance(job.dataset, MixedDataset) else [job.dataset]
    for dataset in datasets:
        if dataset.shards is None:
            raise ValueError(
                f"'{shown(dataset.name)}' is a folder of pictures, trained as it is: write \"shards\": {{}} into the dataset "
                "of the configuration to train from encoded shards."
            )
    return " ".join(_encode(job, dataset, part, show) for dataset in datasets)


def _encode(job: TrainJob, dataset: PairDataset, part: Part, show: Callable[[str], None]) -> str:
    encoder = encoder_for(job, dataset, *encoders_for(job))
    folder, progress = encode_shards(job, dataset, encoder, part, show)
    return f"'{shown(folder.name)}': {describe(progress)}"


def describe(progress: Progress) -> str:
    """What was done, and what is left to others."""
    done = f"{progress.encoded} shards encoded, {progress.finished} were finished before"
    return f"{done}; {progress.open} are left to other parts." if progress.open else f"{done}; all are there."
