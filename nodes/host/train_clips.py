"""What a training of SVD reads: clips, and the embeddings of their references in the place of text."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ...training.cache import digest_of
from ...training.clip_encode import REFERENCE, EncodedClips, encode_clips
from ...training.clip_source import ClipSource, held_out_clips
from ...training.clips import check_clips
from ...training.dataset import PairDataset, usable_pairs
from ...training.encode import encode_dataset, split_held_out
from ...training.objective import Objective
from ...training.objective_edm import EdmObjective
from .dataset_folders import cache_of
from .encoders import HostPictures, HostVision
from .train_data import TrainData, progress_of

if TYPE_CHECKING:
    from .train_job import TrainJob


def prepare_clips(job: TrainJob, objective: Objective, show: Callable[[str], None]) -> TrainData:
    """Encode what is not encoded yet.

    Args:
        job: Checked, of an SVD model and one dataset.
        objective: Of the model.
        show: Puts a line of text on the node.

    Returns:
        What the training reads.

    Raises:
        ValueError: There are no clips, VAE or image encoder do not fit the model, or pairs cannot be used.
    """
    assert isinstance(job.dataset, PairDataset)  # only recipes for pictures take several
    assert isinstance(objective, EdmObjective)
    names = check_clips(job.dataset, usable_pairs(job.dataset), job.clips)
    pictures, vision = HostPictures(job.vae, "svd"), HostVision(job.clip_vision)
    scale = job.model.model.latent_format.scale_factor
    cache = cache_of(job.dataset)
    told, share = progress_of(show, "frame"), job.team.share
    encoded = encode_dataset(job.dataset, pictures, None, cache, scale, job.recipe.hint_form, told, share)
    clips = encode_clips(job.dataset, encoded, names, job.clips, pictures, vision, progress_of(show, "reference"))
    trained, held_out = split_held_out(clips.clips, job.config.validation_pairs)
    digest = _digest(clips)
    return TrainData(
        ClipSource(clips, trained, job.config, objective),
        held_out_clips(clips, held_out, job.config.seed, objective),
        torch.zeros(1, 1, job.recipe.context_width(job.model)),
        scale,
        digest,
        len(clips.clips),
        {"VAE": pictures.identity, "image encoder": vision.identity, "dataset": digest},
        # The reference's own rule: without the embedding there is no latent of the reference either, and no control.
        {REFERENCE: torch.zeros(1, 1, 1, 1)},
        frames=job.clips.frames,
        is_empty_controlled=False,
        about={"clips": json.dumps(dataclasses.asdict(job.clips))},
    )


def _digest(clips: EncodedClips) -> str:
    """Names the content of all clips, and how they are used."""
    frames = [(clip.name, [(frame.item.name, frame.hands) for frame in clip.frames]) for clip in clips.clips]
    return digest_of(clips.dataset.digest, frames, clips.settings)
