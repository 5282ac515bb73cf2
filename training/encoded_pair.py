"""A pair in its encoded form, as a sample of a tar shard: encoded once, and then only drawn from.

`KEY.safetensors` holds "target.mean" and "target.deviation", "hint.mean" and "hint.deviation", and "text.context" and what
else a model reads of a text; "mirrored.target.mean" and so on where pairs are also kept mirrored. A hint that is read as
pixels is `KEY.hint.png` and `KEY.mirrored.hint.png`. `KEY.json` has name and caption, and before them a checksum of all files
of the sample. Only shards of before there were any have none.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from ..models.foreign import first_line, parse_json, shown
from .dataset import DatasetSettings, bucket_for
from .encode import PictureEncoder, TextEncoder, pixels_of, sampled
from .method import HintForm
from .pairs import PackedPair, Pair
from .picture_files import PictureBytes, opened
from .pictures import Size, read_picture
from .shard_index import CURE
from .tar_files import BadSampleError, DamagedShardError, Sample

SIDES = ("", "mirrored.")
TYPES = {"fp16": torch.float16, "fp32": torch.float32}
PARTS = ("mean", "deviation")
SHARD = "__shard__"
"""Name of the shard that a sample is of, among its files."""
_SEAL = b'{"crc32": "%08x", '
_SEALED = len(_SEAL % 0)
_NO_SEAL = b'{"crc32": "'
_LARGEST_HEADER = 1 << 16
"""Bytes that describe the tensors of a sample."""
_LARGEST_SCALE = 16
"""Pixels of a hint to a cell of the latent."""
_LONGEST_SIDE = 4096
"""Pixels of a hint."""


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
            What `tar_writer.write_samples` takes.

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
        return seal(sample | {"safetensors": save(kept), "json": about.encode()})

    def _latent(self, pair: Pair | PackedPair, size: Size, side: str, role: str) -> dict[str, Tensor]:
        pixels = pixels_of(pair, size, role == "hint", bool(side))
        mean, deviation = self.pictures.encode(pixels, role == "hint")
        return {f"{side}{role}.mean": mean[0], f"{side}{role}.deviation": deviation[0]}


def seal(sample: Sample) -> Sample:
    """Return a sample with a checksum in its .json."""
    rest = sample["json"][1:]
    return sample | {"json": _SEAL % _checksum(sample, rest) + rest}


def checked(sample: Sample, name: str) -> bytes:
    """Make sure that a sample is as it was written.

    Args:
        sample: With a checksum.
        name: Of its shard.

    Returns:
        The checksum.

    Raises:
        BadSampleError: It is not.
    """
    about = sample.get("json", b"")
    seal_of = about[:_SEALED]
    if not seal_of.startswith(_NO_SEAL) or seal_of != _SEAL % _checksum(sample, about[_SEALED:]):
        raise BadSampleError(
            f"The pair '{shown(sample['__key__'], 40)}' of '{name}' is damaged, its checksum is another: delete that shard "
            f"and {CURE}."
        )
    return bytes(seal_of)


def _checksum(sample: Sample, about: bytes) -> int:
    number = zlib.crc32(about, zlib.crc32(sample["__key__"].encode()))
    for suffix in sorted(sample):
        if not suffix.startswith("__") and suffix != "json":
            number = zlib.crc32(sample[suffix], zlib.crc32(suffix.encode(), number))
    return number


class Checksum:
    """Of the checksums of a shard's samples; see `Entry.checksum`."""

    def __init__(self) -> None:
        self._number = 0
        self._is_begun = False

    def of(self, samples: Iterator[Sample], name: str) -> Iterator[Sample]:
        """Pass samples on, and take note."""
        for sample in samples:
            self._number = zlib.crc32(checked(sample, name), self._number)
            self._is_begun = True
            yield sample

    def __str__(self) -> str:
        """As an entry has it; empty without a sample."""
        return f"{self._number:08x}" if self._is_begun else ""


class EncodedPair:
    """A pair out of an encoded shard; a `training.source.KeptPair`.

    Args:
        sample: As `PairEncoder.sample` made it.
        scale: Factor from the VAE's latents to the model's.
        sides: 2 to train it mirrored too.
        empty: The empty text; see `TextEncoder.encode`. Not compared where it is empty itself.

    Raises:
        DamagedShardError: The sample holds something else.
    """

    def __init__(self, sample: Sample, scale: float, sides: int, empty: Mapping[str, Tensor]) -> None:
        self.sides = sides
        self._scale = scale
        self._empty = empty
        try:
            self.name = _name_in(sample)
            self._tensors = _tensors_in(sample)
            self._pictures = {side: sample.get(f"{side}hint.png") for side in SIDES[:sides]}
            self._texts = {name[len("text.") :]: tensor for name, tensor in self._tensors.items() if name.startswith("text.")}
            self._check()
        except ValueError as error:
            where = shown(f"{sample.get(SHARD, 'shard')}/{sample.get('__key__', '')}")
            raise DamagedShardError(
                f"The encoded pair '{where}' cannot be used ({first_line(error)}): delete that shard and {CURE}."
            ) from error

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of latent and hint; a hint that is kept as a picture has the shape of its latent."""
        hint = self._tensors["target.mean" if self._pictures[""] else "hint.mean"]
        return tuple(self._tensors["target.mean"].shape), tuple(hint.shape)

    def latent(self, side: int, generator: torch.Generator | None = None) -> Tensor:
        """See `KeptPair.latent`."""
        return sampled(self._posterior(side, "target"), self._scale, generator)

    def hint(self, side: int, generator: torch.Generator | None = None) -> Tensor:
        """See `KeptPair.hint`."""
        if png := self._pictures[SIDES[side]]:
            return _from_png(png, self._tensors["target.mean"].shape, self.name)
        return sampled(self._posterior(side, "hint"), self._scale, generator)

    def text(self, is_dropped: bool) -> dict[str, Tensor]:
        """See `KeptPair.text`."""
        return dict(self._empty if is_dropped else self._texts)

    def _check(self) -> None:
        for side, picture in self._pictures.items():
            for role in ("target", "hint")[: 1 if picture else 2]:
                mean, deviation = (self._tensors.get(f"{side}{role}.{part}") for part in PARTS)
                if mean is None or deviation is None:
                    raise ValueError(f"it has no {side}{role}")
                if mean.ndim != 3 or not mean.numel() or mean.shape != deviation.shape:
                    raise ValueError(f"its {side}{role} is of shape {list(mean.shape)} and {list(deviation.shape)}")
        if self._empty:
            own, wanted = ({name: list(text.shape) for name, text in texts.items()} for texts in (self._texts, self._empty))
            if own != wanted:
                raise ValueError(f"its text is {shown(own)} and must be {shown(wanted)}")

    def _posterior(self, side: int, role: str) -> dict[str, Tensor]:
        return {part: self._tensors[f"{SIDES[side]}{role}.{part}"] for part in PARTS}


def _name_in(sample: Sample) -> str:
    about = parse_json(sample.get("json", b""))
    if not isinstance(about, dict) or not isinstance(about.get("name"), str):
        raise ValueError("its .json has no name")
    return str(about["name"])


def _tensors_in(sample: Sample) -> dict[str, Tensor]:
    data = sample.get("safetensors", b"")
    if int.from_bytes(data[:8], "little") > _LARGEST_HEADER:
        raise ValueError("its tensors have a header that is too large")
    try:
        kept = load(data)
    except Exception as error:  # whatever a foreign file breaks in its reader, the cure is the same
        raise ValueError(f"its tensors cannot be read: {first_line(error, 60)}") from error
    for name, tensor in kept.items():
        if tensor.dtype not in TYPES.values():
            raise ValueError(f"'{shown(name, 40)}' is of type {tensor.dtype}")
    tensors = {name: tensor.float() for name, tensor in kept.items()}
    if not all(bool(tensor.sum().isfinite()) for tensor in tensors.values()):
        raise ValueError("a number in it is NaN or infinite")
    return tensors


def _to_png(pixels: Tensor) -> bytes:
    """A file of (3, H, W) in [0, 1], to eight bits."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray((pixels * 255).round().byte().movedim(0, -1).numpy()).save(stream, "PNG")  # CHW -> HWC
    return stream.getvalue()


def _from_png(data: bytes, latent: torch.Size, name: str) -> Tensor:
    """(3, H, W) of a picture that is as many times larger than its latent (C, h, w) in both directions."""
    file = PictureBytes(name, data)
    try:
        with opened(file, name) as picture:  # not read_size, which decodes a PNG for its orientation
            width, height = picture.size
        scale = width // latent[2]
        is_right = (width, height) == (scale * latent[2], scale * latent[1]) and max(width, height) <= _LONGEST_SIDE
        if not is_right or scale > _LARGEST_SCALE:
            raise ValueError(f"it is {width}x{height}, and its latent {latent[2]}x{latent[1]}")
        upright = read_picture(file, name)
        if upright.size != (width, height):
            raise ValueError("it is turned")
        return torch.from_numpy(np.array(upright)).movedim(-1, 0).float() / 255  # HWC -> CHW
    except ValueError as error:
        raise DamagedShardError(
            f"The hint of the encoded pair '{shown(name)}' cannot be read ({first_line(error)}): delete its shard and {CURE}."
        ) from error
