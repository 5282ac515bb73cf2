"""Clips in miniature: folders of frames, and stand-ins for a VAE and for CLIP. Needs torch and the pack alone: no ComfyUI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from nextcontrol.training.cache import TensorCache
from nextcontrol.training.clip_encode import EncodedClips, encode_clips
from nextcontrol.training.clips import ClipSettings, check_clips
from nextcontrol.training.dataset import usable_pairs
from nextcontrol.training.draws import generator_for
from nextcontrol.training.encode import encode_dataset
from PIL import Image
from tiny_training import Encoders, dataset_of

SMALL = ClipSettings(frames=3, interval=2)


class Vision:
    """In the place of CLIP; counts what it is asked for."""

    def __init__(self, width: int = 16, identity: str = "vision") -> None:
        self.identity, self.width, self.count = identity, width, 0

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """(1, width), of the mean colour."""
        self.count += 1
        return torch.randn(1, self.width, generator=generator_for("vision", pixels.mean().item()))


def write_clip(folder: Path, name: str, count: int, size: tuple[int, int] = (64, 64)) -> None:
    """A clip whose frame n is of colour (20 n, 0, 100) with a hint of colour (0, 20 n, 200)."""
    for number in range(count):
        for kind, color in (("target", (20 * number, 0, 100)), ("source", (0, 20 * number, 200))):
            path = folder / kind / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((size[1], size[0], 3), color, np.uint8)).save(path)


def write_clips(folder: Path, lengths: dict[str, int]) -> Path:
    """Clips by name and length."""
    for name, length in lengths.items():
        write_clip(folder, name, length)
    return folder


def encoded_clips(
    folder: Path,
    clips: ClipSettings = SMALL,
    encoders: Encoders | None = None,
    vision: Vision | None = None,
    **settings: Any,
) -> EncodedClips:
    """Clips with their cache in the folder."""
    encoders, vision = encoders or Encoders(), vision or Vision()
    dataset = dataset_of(folder, **settings)
    names = check_clips(dataset, usable_pairs(dataset), clips)
    encoded = encode_dataset(dataset, encoders, None, TensorCache(folder / ".cache"), 0.5, "pixels")
    return encode_clips(dataset, encoded, names, clips, encoders, vision)
