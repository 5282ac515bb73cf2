"""A pair in its encoded form, as a sample of a tar shard: encoded once, and then only drawn from.

`KEY.safetensors` holds "target.mean" and "target.deviation", "hint.mean" and "hint.deviation", and "text.context" and what
else a model reads of a text; "mirrored.target.mean" and so on where pairs are also kept mirrored. A hint that is read as
pixels is `KEY.hint.png` and `KEY.mirrored.hint.png`. `KEY.json` has name and caption.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from safetensors.torch import load, save
from torch import Tensor

from .dataset import DatasetSettings, bucket_for
from .encode import PictureEncoder, TextEncoder, pixels_of, sampled
from .method import HintForm
from .pairs import PackedPair, Pair
from .picture_files import PictureBytes
from .pictures import Size, read_picture, to_pixels
from .tar_files import Sample

SIDES = ("", "mirrored.")
TYPES = {"fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, eq=False)
class PairEncoder:
    """What makes samples of pairs."""

    pictures: PictureEncoder
    texts: TextEncoder
    hint_form: HintForm
    precision: str
    settings: DatasetSettings

    def sample(self, pair: Pair | PackedPair, key: str) -> Sample:
        """Encode a pair.

        Args:
            pair: Of files or in memory.
            key: Of the sample.

        Returns:
            What `tar_files.write_samples` takes.

        Raises:
            ValueError: A picture cannot be used, or a number does not fit the precision.
        """
        size = bucket_for(pair, self.settings)
        tensors = {f"text.{name}": tensor for name, tensor in self.texts.encode(pair.caption).items()}
        sample: Sample = {"__key__": key}
        for side in SIDES[: 1 + self.settings.has_flip]:
            tensors |= self._latent(pair, size, side, "target")
            if self.hint_form == "latent":
                tensors |= self._latent(pair, size, side, "hint")
            else:
                sample[f"{side}hint.png"] = _to_png(pixels_of(pair, size, is_hint=True, is_mirrored=bool(side))[0])
        kept = {name: tensor.to(TYPES[self.precision]).contiguous() for name, tensor in tensors.items()}
        if not all(bool(tensor.isfinite().all()) for tensor in kept.values()):
            raise ValueError(
                f"'{pair.name}' has numbers that {self.precision} cannot hold: set dataset.shards.precision to fp32."
            )
        about = json.dumps({"name": pair.name, "caption": pair.caption})
        return sample | {"safetensors": save(kept), "json": about.encode()}

    def _latent(self, pair: Pair | PackedPair, size: Size, side: str, role: str) -> dict[str, Tensor]:
        pixels = pixels_of(pair, size, role == "hint", bool(side))
        mean, deviation = self.pictures.encode(pixels, role == "hint")
        return {f"{side}{role}.mean": mean[0], f"{side}{role}.deviation": deviation[0]}


class EncodedPair:
    """A pair out of an encoded shard; a `training.source.KeptPair`.

    Args:
        sample: As `PairEncoder.sample` made it.
        scale: Factor from the VAE's latents to the model's.
        sides: 2 to train it mirrored too.
        empty: The empty text; see `TextEncoder.encode`.
    """

    def __init__(self, sample: Sample, scale: float, sides: int, empty: Mapping[str, Tensor]) -> None:
        self.name = str(json.loads(sample["json"])["name"])
        self.sides = sides
        self._sample = sample
        self._scale = scale
        self._empty = empty
        self._tensors = {name: tensor.float() for name, tensor in load(sample["safetensors"]).items()}

    def latent(self, side: int, generator: torch.Generator | None = None) -> Tensor:
        """See `KeptPair.latent`."""
        return sampled(self._posterior(side, "target"), self._scale, generator)

    def hint(self, side: int, generator: torch.Generator | None = None) -> Tensor:
        """See `KeptPair.hint`."""
        if png := self._sample.get(f"{SIDES[side]}hint.png"):
            return _from_png(png, self.name)
        return sampled(self._posterior(side, "hint"), self._scale, generator)

    def text(self, is_dropped: bool) -> dict[str, Tensor]:
        """See `KeptPair.text`."""
        return dict(self._empty if is_dropped else self._texts())

    def _texts(self) -> Iterator[tuple[str, Tensor]]:
        return ((name[len("text.") :], tensor) for name, tensor in self._tensors.items() if name.startswith("text."))

    def _posterior(self, side: int, role: str) -> dict[str, Tensor]:
        return {part: self._tensors[f"{SIDES[side]}{role}.{part}"] for part in ("mean", "deviation")}


def _to_png(pixels: Tensor) -> bytes:
    """A file of (3, H, W) in [0, 1], to eight bits."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray((pixels * 255).round().byte().movedim(0, -1).numpy()).save(stream, "PNG")  # CHW -> HWC
    return stream.getvalue()


def _from_png(data: bytes, name: str) -> Tensor:
    return to_pixels(read_picture(PictureBytes(name, data), name))[0]
