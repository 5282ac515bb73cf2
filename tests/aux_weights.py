"""Files with weights for the detectors of controlnet-aux: their shapes and keys, random numbers, a few megabytes."""

from __future__ import annotations

import zlib
from pathlib import Path

import torch
from nextcontrol.preprocessors.aux_detector import DETECTORS, import_aux
from torch import Tensor

CONTAINERS = {"pidinet": "state_dict", "normal_bae": "model"}
GAIN = {"normal_bae": 0.4, "mlsd": 0.92}
"""Normals: 40 blocks would amplify rounding errors into another picture. Lines: scores and lengths of every size."""
PARALLEL = {"pidinet", "lineart_anime", "normal_bae"}
"""Published from networks on several GPUs."""


def write_weights(folder: Path, name: str, *, is_zero: bool = False) -> Path:
    """Write a detector's file as it is published.

    Every tensor is a view of few numbers, repeated: a file of 290 MB becomes one of 4, and what reads it cannot tell.

    Args:
        folder: Where, as `from_pretrained` takes it.
        name: A key of `DETECTORS`.
        is_zero: All weights 0.

    Returns:
        The file.
    """
    row = DETECTORS[name]
    with torch.device("meta"):  # shapes alone, in no time
        shapes = row.build(import_aux(row.module)).state_dict()
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    tensors = {key: few_numbers(key, value, generator, 0 if is_zero else GAIN.get(name, 1)) for key, value in shapes.items()}
    if row.is_grouped:
        tensors = {key.partition(".")[2]: value for key, value in tensors.items()}
    if name in PARALLEL:
        tensors = {f"module.{key}": value for key, value in tensors.items()}
    path = folder / row.file
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({CONTAINERS[name]: tensors} if name in CONTAINERS else tensors, path)
    return path


def few_numbers(key: str, like: Tensor, generator: torch.Generator, gain: float = 1) -> Tensor:
    """A tensor of the shape of `like` whose storage is small."""
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype)
    if key.endswith("running_var"):
        return torch.ones(1).expand(like.shape)
    strides = [(7, 5, 3, 1)[place % 4] for place in range(like.ndim)]
    count = 1 + sum((side - 1) * stride for side, stride in zip(like.shape, strides, strict=True))
    fan_in = max(1, like[0].numel()) if like.ndim > 1 else 1
    scale = (2 / fan_in) ** 0.5 if like.ndim > 1 else 0.1
    numbers = torch.randn(count, generator=generator) * scale * gain
    if like.ndim == 1 and key.endswith("weight"):
        numbers += 1  # a norm's
    return numbers.as_strided(like.shape, strides)
