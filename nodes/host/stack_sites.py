"""ControlNeXts of one stack that meet at one place of the UNet: their sum can be limited, and their shares noted."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...models.combine import cap_factor, norm
from .layout import Area, Size
from .readout import Readout, Spot, group_of
from .unet_structure import Place

_counter = itertools.count()


@dataclass(eq=False)
class Gathered:
    """What has been added at a place in one call of the UNet, before the limit."""

    before: Tensor
    """The feature without any of them."""
    after: Tensor
    """With all of them so far; what the next one adapts its statistics to."""
    largest: Tensor
    """(N, 1, 1, 1), the norm of the largest addition."""
    count: int = 1


@dataclass(eq=False)
class Seat:
    """One control's part in a stack, at one place."""

    key: str
    """Of the place, in the call's `transformer_options`; the same for all controls of the stack that meet there."""
    position: int
    place: Place
    is_capped: bool
    readout: Readout | None

    def feature(self, h: Tensor, options: dict[str, Any]) -> Tensor:
        """What the control adapts to: the feature with the earlier controls of the stack, not limited."""
        gathered: Gathered | None = options.get(self.key)
        return h if gathered is None else gathered.after

    def settle(self, feature: Tensor, after: Tensor, size: Size, areas: Sequence[Area], options: dict[str, Any]) -> Tensor:
        """Take note of an addition, and limit the sum.

        Args:
            feature: As `feature` gave it.
            after: With this control's addition.
            size: Of the whole latent.
            areas: Of each prompt in the batch.
            options: The call's `transformer_options`; holds what is gathered.

        Returns:
            What the UNet goes on with: `after`, or less where the sum exceeds its largest term.
        """
        added = after - feature
        size_of = norm(added)
        gathered: Gathered | None = options.get(self.key)
        if gathered is None:
            gathered = Gathered(feature, after, size_of)
        else:
            largest = torch.maximum(gathered.largest, size_of)
            gathered = Gathered(gathered.before, after, largest, gathered.count + 1)
        options[self.key] = gathered
        if self.readout is not None:
            self.readout.count(self.position)
            with self.readout.harmless():
                group = "middle" if self.place.block[0] == "output" else group_of(areas[0], added)
                self.readout.note_later(options, self.position, Spot(group, size, areas), added, feature, self._factor_of)
        factor = self._factor_of(options)
        return after if factor is None else gathered.before + (after - gathered.before) * factor.to(after.dtype)

    def _factor_of(self, options: dict[str, Any]) -> Tensor | None:
        """What the limit has left of each addition, when all have been made."""
        gathered: Gathered = options[self.key]
        if not self.is_capped or gathered.count == 1:
            return None
        return cap_factor(gathered.after - gathered.before, gathered.largest)


@dataclass
class Seating:
    """Gives the controls of one stack their seats."""

    is_capped: bool
    readout: Readout | None
    _key: str = field(default_factory=lambda: f"nextcontrol.stack.{next(_counter)}")

    def at(self, position: int) -> Callable[[Place], Seat] | None:
        """The seat of the control at a position, for a place; None where nothing has to be gathered."""
        if not self.is_capped and self.readout is None:
            return None
        return lambda place: Seat(f"{self._key}.{place.hook}.{place.block}", position, place, self.is_capped, self.readout)
