"""Batches of clips: the rows of a batch are frames, those of one clip together."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .backbone import ALONE, Batch, Share
from .clip_encode import REFERENCE, Clip, EncodedClips
from .clips import choose_frames, even_frames
from .config import TrainConfig
from .draws import Order, generator_for
from .objective_edm import EdmObjective
from .source import in_batches, own_slots


class ClipSource:
    """What an update is trained on.

    Args:
        encoded: Gives the frames.
        clips: Those of its clips that are trained on.
        config: The run's settings; a batch is as many clips.
        objective: Has the distribution of noise levels; an update's clips are spread evenly over it.
    """

    def __init__(self, encoded: EncodedClips, clips: Sequence[Clip], config: TrainConfig, objective: EdmObjective) -> None:
        self.encoded = encoded
        self.clips = clips
        self.config = config
        self.objective = objective
        self.order = Order([clip.size for clip in clips], config.group_size, config.seed, encoded.dataset.settings.repeats)

    def batches(self, step: int, share: Share = ALONE) -> list[Batch]:
        """See `training.backbone.Source.batches`. The same clips and draws, however they are split into batches."""
        group = self.order.group(step)
        drawn = [self._draw(self.clips[group[slot]], step, slot) for slot in own_slots(self.config, share)]
        return in_batches(drawn, self.config)

    def _draw(self, clip: Clip, step: int, slot: int) -> Batch:
        generator = generator_for("draw", self.config.seed, step, slot)
        side, place, dropout = torch.rand(3, generator=generator).tolist()
        level = self.objective.level_at(torch.tensor([(slot + place) / self.config.group_size]))
        places = choose_frames(len(clip.frames), self.encoded.settings, generator)
        batch = self.encoded.frames(clip, places, int(side * len(clip.frames[0].item.sides)), generator)
        noise = torch.randn(batch.latents.shape, generator=generator)
        batch = batch._replace(noise=noise, timesteps=level.expand(len(places)))
        return drop_reference(batch, dropout, self.encoded.settings.dropout)


def drop_reference(batch: Batch, number: float, fraction: float) -> Batch:
    """A clip without the embedding or the latent of its reference, or without both.

    Args:
        batch: Of one clip.
        number: Even random number.
        fraction: The embedding is left out below 2, the latent from 1 to 3 times this.

    Returns:
        With zeros in the place of what is left out.
    """
    if number < 2 * fraction:
        batch = batch._replace(context=torch.zeros_like(batch.context))
    if fraction <= number < 3 * fraction:
        batch = batch._replace(extras={**batch.extras, REFERENCE: torch.zeros_like(batch.extras[REFERENCE])})
    return batch


def held_out_clips(encoded: EncodedClips, clips: Sequence[Clip], seed: int, objective: EdmObjective) -> list[Batch]:
    """One batch for each held-out clip: the modes of evenly spaced frames at one noise level, with noise of its own."""
    batches = []
    for clip in clips:
        batch = encoded.frames(clip, even_frames(len(clip.frames), encoded.settings), 0)
        noise = torch.randn(batch.latents.shape, generator=generator_for("held out", seed, clip.name))
        batches.append(batch._replace(noise=noise, timesteps=objective.held_out().expand(len(batch.latents))))
    return batches
