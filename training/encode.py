"""A dataset as training reads it: latents and texts are computed once and kept on disk."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ..models.foreign import first_line, shown
from .backbone import ALONE, Share
from .cache import TensorCache, digest_of, file_digest
from .dataset import DatasetSettings, PairDataset, usable_pairs
from .method import HintForm
from .pairs import PackedPair, Pair
from .picture_files import UnreadablePictureError
from .pictures import Size, fit_picture, is_scaled, read_picture, to_pixels

logger = logging.getLogger("nextcontrol")


class PictureEncoder(Protocol):
    """A VAE."""

    identity: str
    """Changes when its weights do."""

    def encode(self, pixels: Tensor, is_hint: bool) -> tuple[Tensor, Tensor]:
        """Mean and deviation (1, 4, h, w) of the latents of (1, 3, H, W) in [0, 1], not scaled."""
        ...


class TextEncoder(Protocol):
    """A text encoder."""

    identity: str
    """Changes when its weights do."""

    def encode(self, text: str) -> dict[str, Tensor]:
        """What the diffusion model reads of a text.

        Returns:
            "context" (L, D), with the same L for every text, and what else the model takes, by name, of one shape each.
        """
        ...


@dataclass(frozen=True)
class Item:
    """A pair as it is trained."""

    name: str
    size: Size
    caption: str
    """Key of its text."""
    sides: tuple[tuple[str, str], ...]
    """(target's key, hint's key) as it is, and mirrored where that is asked for. Of a hint: its latent, or its pixels."""


@dataclass(frozen=True, eq=False)
class EncodedDataset:
    """A dataset whose latents and texts are in the cache."""

    items: tuple[Item, ...]
    empty_text: str
    """Key of the empty caption."""
    cache: TensorCache
    settings: DatasetSettings
    digest: str
    """Names the content of all pairs and the settings."""
    scale: float
    """Factor from the VAE's latents to the model's."""

    def latent(self, key: str, generator: torch.Generator | None = None) -> Tensor:
        """(4, h, w), scaled: a sample of the posterior, or its mode without a generator."""
        return sampled(self.cache.read(key), self.scale, generator)

    def hint(self, key: str, generator: torch.Generator | None = None) -> Tensor:
        """A hint in the form that the method reads: (4, h, w) as `latent` gives it, or pixels (3, H, W) in [0, 1]."""
        kept = self.cache.read(key)
        return kept["pixels"].float() / 255 if "pixels" in kept else sampled(kept, self.scale, generator)

    def text(self, key: str) -> dict[str, Tensor]:
        """See `TextEncoder.encode`."""
        return self.cache.read(key)


def sampled(kept: Mapping[str, Tensor], scale: float, generator: torch.Generator | None) -> Tensor:
    """A latent, scaled: a sample of the posterior of its "mean" and "deviation", or its mode without a generator."""
    if generator is None:
        return kept["mean"] * scale
    noise = torch.randn(kept["mean"].shape, generator=generator)
    return (kept["mean"] + kept["deviation"] * noise) * scale


def encode_dataset(
    dataset: PairDataset,
    pictures: PictureEncoder,
    texts: TextEncoder | None,
    cache: TensorCache,
    scale: float,
    hint_form: HintForm = "latent",
    on_item: Callable[[int, int], None] = lambda _done, _all: None,
    share: Share = ALONE,
) -> EncodedDataset:
    """Encode what is not in the cache yet.

    Of several processes with one cache each begins at a place of its own and later finds what the others have done.

    Args:
        dataset: As found.
        pictures: The VAE.
        texts: The text encoder; None where the model reads no text.
        cache: Where the results are kept; a changed file or encoder has other keys.
        scale: See `EncodedDataset.scale`.
        hint_form: Whether hints pass the VAE too, or are kept as pixels.
        on_item: Called after each pair with how many are done, and of how many; may raise.
        share: Which of several processes this is.

    Returns:
        The dataset, without the pairs that are to be skipped.

    Raises:
        ValueError: See `usable_pairs`; a picture that cannot be decoded is one that cannot be used.
    """
    encoder = _Encoder(pictures, texts, cache, hint_form)
    usable = usable_pairs(dataset)
    found: dict[int, tuple[Item, tuple[str, ...]]] = {}
    first = share.rank * len(usable) // share.processes
    for done in range(len(usable)):
        place = (first + done) % len(usable)
        pair, size = usable[place]
        item = encoder.item(pair, size, dataset.settings)
        if item is not None:
            content = content_of(pair.target, pair.name), content_of(pair.hint, pair.hint.name)
            found[place] = item, (pair.name, *content, pair.caption)
        on_item(done + 1, len(usable))
    items, contents = [found[place][0] for place in sorted(found)], [found[place][1] for place in sorted(found)]
    if texts is not None and (without := sum(not pair.caption for pair, _ in usable)):
        logger.warning(
            "%d of %d pairs of '%s' have no caption: they train with an empty one", without, len(usable), dataset.name
        )
    if len(items) < 2:
        raise ValueError(f"'{dataset.name}' has {len(items)} readable pairs and training needs 2 or more: look at its files.")
    digest = digest_of(contents, dataset.settings)
    return EncodedDataset(tuple(items), encoder.text(""), cache, dataset.settings, digest, scale)


@dataclass(frozen=True, eq=False)
class _Encoder:
    pictures: PictureEncoder
    texts: TextEncoder | None
    cache: TensorCache
    hint_form: HintForm

    def item(self, pair: Pair, size: Size, settings: DatasetSettings) -> Item | None:
        """The keys of a pair, or None for one to leave out."""
        views = (False, True) if settings.has_flip else (False,)
        try:
            sides = tuple((self.latent(pair, size, False, view), self.hint(pair, size, view)) for view in views)
        except UnreadablePictureError as error:
            if settings.bad_pairs == "refuse":
                raise
            logger.warning("Left out: %s", error)
            return None
        return Item(pair.name, size, self.text(pair.caption), sides)

    def latent(self, pair: Pair, size: Size, is_hint: bool, is_mirrored: bool) -> str:
        """The key of a picture's latent, which is there afterwards."""
        path = pair.hint if is_hint else pair.target
        key = digest_of("latent", content_of(path, path.name), size, is_hint, is_mirrored, self.pictures.identity)
        if not self.cache.has(key):
            pixels = pixels_of(pair, size, is_hint, is_mirrored)
            mean, deviation = self.pictures.encode(pixels, is_hint)
            self.cache.write(key, mean=mean[0].float(), deviation=deviation[0].float())
        return key

    def hint(self, pair: Pair, size: Size, is_mirrored: bool) -> str:
        """The key of a hint in the method's form, which is there afterwards."""
        if self.hint_form == "latent":
            return self.latent(pair, size, True, is_mirrored)
        key = digest_of("pixels", content_of(pair.hint, pair.hint.name), size, is_mirrored)
        if not self.cache.has(key):
            self.cache.write(key, pixels=(pixels_of(pair, size, True, is_mirrored)[0] * 255).round().byte())
        return key

    def text(self, text: str) -> str:
        """The key of a text's embedding, which is there afterwards; empty where no text is read."""
        if self.texts is None:
            return ""
        key = digest_of("text", text, self.texts.identity)
        if not self.cache.has(key):
            self.cache.write(key, **{name: tensor.float() for name, tensor in self.texts.encode(text).items()})
        return key


def content_of(path: Path, name: str) -> str:
    """Name the content of a picture.

    Args:
        path: Without links.
        name: For the error.

    Returns:
        See `file_digest`. Another name for pictures whose numbers are scaled: before, they were encoded as white.

    Raises:
        UnreadablePictureError: It has gone or become a link since the dataset was looked through, or may not be read.
    """
    try:
        digest = file_digest(path)
        return f"{digest} scaled" if is_scaled(path, name) else digest
    except UnreadablePictureError:
        raise
    except (OSError, ValueError) as error:
        reason = shown(getattr(error, "strerror", None) or first_line(error))
        raise UnreadablePictureError(f"'{shown(name)}' cannot be opened ({reason})", "make it readable") from error


def pixels_of(pair: Pair | PackedPair, size: Size, is_hint: bool, is_mirrored: bool) -> Tensor:
    """One of a pair's pictures as it is encoded, (1, 3, H, W) in [0, 1]."""
    path, name = (pair.hint, pair.hint.name) if is_hint else (pair.target, pair.name)
    pixels = to_pixels(fit_picture(read_picture(path, name), size, is_hint))
    return pixels.flip(-1) if is_mirrored else pixels


T = TypeVar("T")


def split_held_out(items: Sequence[T], count: int) -> tuple[list[T], list[T]]:
    """Hold out some pairs or clips, evenly spread.

    Args:
        items: All.
        count: How many to hold out; at least one pair stays in training.

    Returns:
        (to train on, held out).
    """
    count = min(count, len(items) - 1)
    places = {i * len(items) // count for i in range(count)} if count else set()
    return [item for i, item in enumerate(items) if i not in places], [items[i] for i in sorted(places)]
