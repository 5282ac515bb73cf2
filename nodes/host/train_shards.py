"""Training from encoded shards on the host, and the encoding of what is to be trained from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import comfy.model_management
import comfy.utils

from ...models.foreign import shown
from ...training.cache import digest_of
from ...training.chunks import check_settings, chunks_of
from ...training.dataset import PairDataset, ShardSettings, take_note
from ...training.encode import PictureEncoder, TextEncoder
from ...training.encoded_pair import PairEncoder
from ...training.objective import Objective
from ...training.precompute import WHOLE, Part, Progress, made_from, precompute
from ...training.shard_index import CURE, ShardIndex, check_sources, has_index, load_index
from ...training.shards import Shards, ShardSource
from .dataset_folders import dataset_roots, encoded_folder
from .train_data import TrainData, encoders_for

if TYPE_CHECKING:
    from .train_job import TrainJob


def encode_shards(
    job: TrainJob, dataset: PairDataset, encoder: PairEncoder, part: Part, show: Callable[[str], None]
) -> tuple[Path, Progress]:
    """Encode a part of a dataset's shards that are not finished yet.

    Args:
        job: Whose processes hear there that they shall stop.
        dataset: With `shards`.
        encoder: See `encoder_for`.
        part: Of several processes or machines.
        show: Takes a line of progress.

    Returns:
        The folder of the encoded shards, and what was done.

    Raises:
        ValueError: See `training.precompute.precompute`.
    """
    folder = encoded_folder(dataset)
    if folder == dataset.folder:
        raise ValueError(f"'{shown(dataset.name)}' holds encoded shards already: name the folder of their pairs.")
    take_note(dataset.name, dataset.problems, dataset.settings)
    bar = comfy.utils.ProgressBar(1)

    def on_pair(pairs: int, shard: int, shards: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        job.team.check_wanted()
        bar.update_absolute(shard, shards)
        show(f"encoding shard {shard} of {shards}, {pairs} pairs done")

    return folder, precompute(chunks_of(dataset, dataset_roots()), folder, encoder, part, on_pair)


def encoder_for(job: TrainJob, dataset: PairDataset, pictures: PictureEncoder, texts: TextEncoder) -> PairEncoder:
    """What encodes a dataset into shards for a training."""
    shards = dataset.shards or ShardSettings()
    return PairEncoder(pictures, texts, job.recipe.hint_form, shards.precision, dataset.settings)


def prepare_shards(job: TrainJob, dataset: PairDataset, objective: Objective, show: Callable[[str], None]) -> TrainData:
    """Make ready to train from a dataset's encoded shards; one process alone encodes what is not encoded yet.

    Args:
        job: The training.
        dataset: With `shards`; the job's, or one of them.
        objective: Draws the noise levels.
        show: Takes a line of progress.

    Returns:
        What the training reads.

    Raises:
        ValueError: The shards are not finished, stale, of another encoder or other settings, missing or damaged.
    """
    settings, shard_settings = dataset.settings, dataset.shards or ShardSettings()
    pictures, texts = encoders_for(job)
    encoder, folder = encoder_for(job, dataset, pictures, texts), encoded_folder(dataset)
    roots = dataset_roots()
    if not has_index(folder) and job.team.share.processes == 1:
        encode_shards(job, dataset, encoder, WHOLE, show)
    if not has_index(folder):
        raise ValueError(f"'{shown(dataset.name)}' is not encoded yet: {CURE} first, as often as there are processes.")
    index = _checked(load_index(folder, roots), dataset, folder, made_from(encoder))
    index = index.check_files(folder, settings.bad_pairs == "skip", roots)
    empty = texts.encode("")
    form = job.model.model.latent_format
    scale = form.scale_factor
    shards = Shards(
        folder, index, scale, empty, settings.has_flip, settings.prompt_dropout, roots, getattr(form, "latent_channels", 0)
    )
    source = ShardSource(shards, job.config, objective, shard_settings.shuffle_buffer)
    digest = digest_of(index.digest, settings, shard_settings.shuffle_buffer)
    rest = {name: tensor[None] for name, tensor in empty.items()}
    return TrainData(
        source,
        source.held_out(),
        rest.pop("context"),
        scale,
        digest,
        index.count,
        {"VAE": pictures.identity, "text encoder": texts.identity, "dataset": digest},
        rest,
    )


def _checked(index: ShardIndex, dataset: PairDataset, folder: Path, wanted: Mapping[str, str]) -> ShardIndex:
    """An index that belongs to the dataset and to what reads it."""
    check_settings(dataset.settings)
    own = dict(wanted)
    if not dataset.settings.has_flip:
        own.pop("mirrored")
    if folder == dataset.folder:
        own.pop("precision")
    index.check_made_from(own, folder.name)
    if folder != dataset.folder:
        check_sources(index, [chunk.source() for chunk in chunks_of(dataset)], folder.name)
    return index
