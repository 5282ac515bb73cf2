"""What one call of the UNet shows of the latent, and of the masks over it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .hints import fit_mask, rows_of, window_of
from .layout import Area, Size


@dataclass(frozen=True)
class View:
    """Prompts, rows and areas of a call."""

    size: Size
    """Of the call's latent."""
    full: Size
    """Of the whole latent."""
    areas: list[Area]
    """Of each prompt."""
    rows: int
    options: Mapping[str, Any] = field(repr=False)

    def fit(self, masks: Tensor) -> Tensor:
        """(M, H, W) to (M, 1, h, w) over the whole latent."""
        return fit_mask(masks, self.full)

    def mask_rows(self, masks: Tensor, size: tuple[int, int]) -> Tensor:
        """The mask of each row of the batch.

        Args:
            masks: From `fit`.
            size: Of the residual.

        Returns:
            (B, 1, *size), or one row for all.
        """
        areas = list(dict.fromkeys(self.areas))
        fitted = {area: F.adaptive_avg_pool2d(area.crop(masks, self.full), size) for area in areas}
        if len(areas) == 1 and len(masks) == 1:
            return fitted[areas[0]]
        rows = rows_of(self.rows // len(self.areas), len(masks), window_of(self.options))
        return torch.cat([fitted[area][rows] for area in self.areas])
