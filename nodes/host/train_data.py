"""What a training reads, made from what the graph brings: encoded once, then drawn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import comfy.model_management
import comfy.utils
from torch import Tensor

from ...training.backbone import Batch, Source
from ...training.dataset import PairDataset
from ...training.encode import EncodedDataset, encode_dataset, split_held_out
from ...training.objective import Objective
from ...training.source import PairSource, held_out_batches
from .dataset_folders import cache_of
from .encoders import Family, HostPictures, HostTexts
from .unet_structure import reads_pooled_text

if TYPE_CHECKING:
    from .train_job import TrainJob


@dataclass(frozen=True, eq=False)
class TrainData:
    """Encoded data, ready to be drawn from. The networks that encoded it are not needed any more."""

    source: Source
    held_out: Sequence[Batch]
    """One batch for each pair that is held out."""
    empty: Tensor
    """(1, L, D), the empty text."""
    scale: float
    """Factor from the VAE's latents to the model's."""
    digest: str
    """Names the content of all pairs and the settings."""
    count: int
    """Pairs."""
    identity: dict[str, str]
    """Of the data and of what encoded it, by name: a resumed run needs the same."""
    empty_extras: Mapping[str, Tensor] = field(default_factory=dict)
    """What else the model reads of the empty text, by name, one row each."""
    frames: int = 1
    """Rows of a batch that belong together: those of a clip."""
    is_empty_controlled: bool = True
    """Whether the control also acts on the rows of the empty text, under guidance."""
    about: Mapping[str, str] = field(default_factory=dict)
    """What the header of each file says of the data."""


def prepare_data(job: TrainJob, objective: Objective, show: Callable[[str], None]) -> TrainData:
    """Encode what is not encoded yet.

    Args:
        job: Checked.
        objective: Draws the noise levels.
        show: Puts a line of text on the node.

    Returns:
        What the training reads.

    Raises:
        ValueError: VAE or text encoder do not fit the model, or pairs cannot be used.
    """
    assert isinstance(job.dataset, PairDataset)  # of several, each comes by itself
    pictures, texts = encoders_for(job)
    encoded = _encode(job, job.dataset, pictures, texts, show)
    empty = {name: tensor[None] for name, tensor in encoded.text(encoded.empty_text).items()}
    trained, held_out = split_held_out(encoded.items, job.config.validation_pairs)
    return TrainData(
        PairSource(encoded, trained, job.config, objective),
        held_out_batches(encoded, held_out, job.config.seed, objective),
        empty.pop("context"),
        encoded.scale,
        encoded.digest,
        len(encoded.items),
        {"VAE": pictures.identity, "text encoder": texts.identity, "dataset": encoded.digest},
        empty,
    )


def encoders_for(job: TrainJob) -> tuple[HostPictures, HostTexts]:
    """The job's VAE and text encoder; a ValueError if they do not fit the model."""
    family: Family = "sdxl" if reads_pooled_text(job.model) else "sd15"
    return HostPictures(job.vae, family), HostTexts(job.clip, job.recipe.context_width(job.model), family)


def progress_of(show: Callable[[str], None], what: str) -> Callable[[int, int], None]:
    """A bar and a line for the encoding of many things; raises where the user has cancelled."""
    bar = comfy.utils.ProgressBar(1)

    def on_item(done: int, count: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, count)
        show(f"encoding {what} {done} of {count}")

    return on_item


def _encode(
    job: TrainJob, dataset: PairDataset, pictures: HostPictures, texts: HostTexts, show: Callable[[str], None]
) -> EncodedDataset:
    on_item = progress_of(show, "pair")
    scale = job.model.model.latent_format.scale_factor
    share = job.team.share
    return encode_dataset(dataset, pictures, texts, cache_of(dataset), scale, job.recipe.hint_form, on_item, share)
