"""Fine-tuned UNet weights: absolute values or differences?

The released files do not say (ControlNeXt SD1.5 ships absolute weights, SDXL differences, under the same file name), but
numbers tell: trained weights resemble the base's, differences are small and point elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from torch import Tensor

Mode = Literal["replace", "delta"]


class Resemblance(NamedTuple):
    """How a set of weights compares with the base's weights of the same names."""

    cosine: float
    """1 for the same direction."""
    ratio: float
    """Norm of the file's weights over the base's."""

    @property
    def mode(self) -> Mode | None:
        """The kind of weights, or None where the numbers do not tell."""
        if self.cosine > 0.5 and 0.5 < self.ratio < 2:
            return "replace"
        return "delta" if abs(self.cosine) < 0.5 and self.ratio < 0.5 else None


def compare(pairs: Iterable[tuple[Tensor, Tensor]]) -> Resemblance:
    """Compare weights with the base's.

    Args:
        pairs: (file, base) of equal shapes, any dtype and device.

    Returns:
        Cosine and norm ratio over all pairs together, in fp32.
    """
    dot = file_square = base_square = 0.0
    for file, base in pairs:
        a, b = file.flatten().float(), base.to(file.device).flatten().float()
        dot += float(a @ b)
        file_square += float(a @ a)
        base_square += float(b @ b)
    product = (file_square * base_square) ** 0.5
    return Resemblance(dot / product if product else 0.0, (file_square / base_square) ** 0.5 if base_square else 0.0)
