"""Pictures for the tests of hints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from host_models import GOLDENS
from PIL import Image


def read_picture(path: Path) -> torch.Tensor:
    """(1, H, W, 3) in [0, 1]."""
    return torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy())[None].float() / 255


def golden_hint(name: str) -> torch.Tensor:
    """A picture of tests/golden/hints by its name without ".png"."""
    return read_picture(GOLDENS / "hints" / f"{name}.png")


ASTRONAUT = read_picture(GOLDENS.parents[1] / "demo" / "astronaut.png")
"""(1, 512, 512, 3), the photograph that the golden hints were made from."""


def noise_picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """(1, height, width, 3) of random bytes in [0, 1]."""
    values = torch.randint(0, 256, (1, height, width, 3), generator=torch.Generator().manual_seed(seed))
    return values.float() / 255


def to_integers(pictures: torch.Tensor) -> np.ndarray:
    """Pictures whose values are bytes, as integers from 0 to 255."""
    values = pictures.numpy() * 255
    assert abs(values - np.rint(values)).max() < 1e-3
    return np.rint(values).astype(int)
