"""Clips as training reads them: latents, hints, and what a frame is read as when it is the reference, kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

import torch
from torch import Tensor

from .backbone import Batch
from .cache import digest_of
from .clip_hands import Box, fit_box, read_hands, weights_of
from .clips import ClipSettings, group_clips
from .dataset import PairDataset
from .draws import generator_for
from .encode import EncodedDataset, Item, PictureEncoder, content_of, pixels_of, sampled
from .objective_edm import WEIGHTS
from .pairs import Pair
from .pictures import Size, read_size

REFERENCE, NUMBERS = "reference", "numbers"
"""Names of extras, a row for each clip: latent of the reference (4, h, w), not scaled; frames a second, motion and noise."""


class VisionEncoder(Protocol):
    """CLIP for pictures."""

    identity: str
    """Changes when its weights do."""

    def encode(self, pixels: Tensor) -> Tensor:
        """(1, D), the embedding of (1, 3, H, W) in [0, 1]."""
        ...


@dataclass(frozen=True)
class Frame:
    """A frame as it is trained."""

    item: Item
    references: tuple[tuple[str, str], ...]
    """(key of the latent with noise, key of the embedding) as it is, and mirrored where that is asked for."""
    hands: tuple[Box, ...]
    """In pixels of the trained size."""


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames in their order."""

    name: str
    size: Size
    frames: tuple[Frame, ...]


@dataclass(frozen=True, eq=False)
class EncodedClips:
    """Clips whose pictures are in the cache."""

    clips: tuple[Clip, ...]
    dataset: EncodedDataset
    settings: ClipSettings
    has_hands: bool = field(init=False)
    """Whether any clip has hands; then all of them have weights, so that they can be stacked."""

    def __post_init__(self) -> None:
        has_hands = any(frame.hands for clip in self.clips for frame in clip.frames)
        object.__setattr__(self, "has_hands", has_hands)

    def frames(self, clip: Clip, places: Sequence[int], side: int, generator: torch.Generator | None = None) -> Batch:
        """Some frames of a clip, without noise and at level 0.

        Args:
            clip: Of these.
            places: The reference first.
            side: 0 as it is, 1 mirrored.
            generator: Samples the posteriors; their modes without.

        Returns:
            A row for each frame, one for the clip in the context and the extras of the reference.
        """
        chosen = [clip.frames[place] for place in places]
        latents = torch.stack([self.dataset.latent(frame.item.sides[side][0], generator) for frame in chosen])
        hints = torch.stack([self.dataset.hint(frame.item.sides[side][1]) for frame in chosen])
        noisy, embedding = chosen[0].references[side]
        settings, cache = self.settings, self.dataset.cache
        extras = {
            REFERENCE: sampled(cache.read(noisy), 1.0, generator)[None],
            NUMBERS: torch.tensor([[settings.fps, settings.motion, settings.augmentation]], dtype=torch.float32),
        }
        if self.has_hands:
            weights = [weights_of(frame.hands, clip.size, settings.hand_weight, bool(side)) for frame in chosen]
            extras[WEIGHTS] = torch.stack([torch.ones_like(weights[0]), *weights[1:]])
        context = cache.read(embedding)["embedding"][None]
        if settings.exchange_red_blue:
            hints = hints.flip(1)
        return Batch(latents, hints, context, torch.zeros_like(latents), torch.zeros(len(chosen)), (clip.name,), extras)


def encode_clips(
    dataset: PairDataset,
    encoded: EncodedDataset,
    names: Sequence[str],
    settings: ClipSettings,
    pictures: PictureEncoder,
    vision: VisionEncoder,
    on_item: Callable[[int, int], None] = lambda _done, _all: None,
) -> EncodedClips:
    """Encode what a frame is read as when it is the reference, where that is not in the cache yet.

    Args:
        dataset: As found.
        encoded: The same, with latents and hints.
        names: Of the clips to train on.
        settings: Of the clips.
        pictures: The VAE.
        vision: CLIP.
        on_item: Called after each frame with how many are done, and of how many; may raise.

    Returns:
        The clips that are long enough without their unreadable frames.

    Raises:
        ValueError: None is left, or a file of hands cannot be read.
    """
    pairs = {pair.name: pair for pair in dataset.pairs}
    grouped = {name: items for name, items in group_clips(encoded.items).items() if name in set(names)}
    long = {name: items for name, items in grouped.items() if len(items) >= settings.frames}
    if not long:
        raise ValueError(
            f"'{dataset.name}' has no clip of {settings.frames} readable frames: replace the files that cannot be read, or set "
            "frames lower."
        )
    count, done = sum(map(len, long.values())), 0
    clips = []
    for name, items in long.items():
        hands = read_hands(_folder_of(dataset, pairs[items[0].name]), name)
        frames = []
        for item in items:
            pair = pairs[item.name]
            frames.append(
                Frame(item, _references(pair, item, encoded, settings, pictures, vision), _hands_in(pair, item, hands))
            )
            done += 1
            on_item(done, count)
        clips.append(Clip(name, items[0].size, tuple(frames)))
    return EncodedClips(tuple(clips), encoded, settings)


def _folder_of(dataset: PairDataset, pair: Pair) -> Path:
    """Where the file of hands lies: beside the frame as it is listed, else beside the file that this is a link to."""
    real = (dataset.folder / pair.name).parent.resolve()
    return real if real.is_relative_to(dataset.folder.resolve()) else pair.target.parent


def _references(
    pair: Pair, item: Item, encoded: EncodedDataset, settings: ClipSettings, pictures: PictureEncoder, vision: VisionEncoder
) -> tuple[tuple[str, str], ...]:
    content, keys = content_of(pair.target, pair.name), []
    for side in range(len(item.sides)):
        mirrored = bool(side)
        noisy = digest_of("reference", content, item.size, mirrored, settings.augmentation, pictures.identity)
        embedding = digest_of("embedding", content, item.size, mirrored, vision.identity)
        keys.append((noisy, embedding))
        if encoded.cache.has(noisy) and encoded.cache.has(embedding):
            continue
        pixels = pixels_of(pair, item.size, is_hint=False, is_mirrored=mirrored)
        encoded.cache.write(embedding, embedding=vision.encode(pixels).float())
        # The reference draws this noise anew each time; here it is a function of the picture, so that the latent can be kept.
        # It is added to pixels in [-1, 1] there.
        noise = torch.randn(pixels.shape, generator=generator_for("augmentation", content, mirrored))
        mean, deviation = pictures.encode(pixels + noise * (settings.augmentation / 2), False)
        encoded.cache.write(noisy, mean=mean[0].float(), deviation=deviation[0].float())
    return tuple(keys)


def _hands_in(pair: Pair, item: Item, hands: dict[str, list[Box]]) -> tuple[Box, ...]:
    boxes = hands.get(PurePosixPath(pair.name).name, [])
    picture = read_size(pair.target, pair.name) if boxes else item.size
    return tuple(fit_box(box, picture, item.size) for box in boxes)
