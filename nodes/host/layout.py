"""Which part of the latent each row of the host's batch shows: area conditioning crops it, and the control with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

_LAYOUT = "nextcontrol.layout"


class Size(NamedTuple):
    """Height and width in latent cells."""

    height: int
    width: int


class Area(NamedTuple):
    """A rectangle of the latent, in cells."""

    top: int
    left: int
    height: int
    width: int

    def crop(self, x: Tensor, full: Size) -> Tensor:
        """The part of a map (N, C, h, w) that covers this rectangle of the whole latent, at the map's own resolution."""
        rows, columns = x.shape[-2] / full.height, x.shape[-1] / full.width
        top, left = round(self.top * rows), round(self.left * columns)
        bottom = max(round((self.top + self.height) * rows), top + 1)
        right = max(round((self.left + self.width) * columns), left + 1)
        # A map without stem padding is a cell short of the latent; its last cells stand for the missing ones.
        top, left = min(top, x.shape[-2] - 1), min(left, x.shape[-1] - 1)
        return x[..., top:bottom, left:right]


class Layout(NamedTuple):
    """The areas of one evaluation of all prompts."""

    size: Size
    """Of the whole latent."""
    areas: dict[Any, list[Area]]
    """By the prompt's uuid. The host may give a prompt of one area a second one, so there can be several."""


def note_areas(
    executor: Callable[..., Any],
    model: Any,
    conds: Sequence[Sequence[Mapping[str, Any]] | None],
    x: Tensor,
    timestep: Tensor,
    model_options: Mapping[str, Any],
) -> Any:
    """Wrapper of the host's `calc_cond_batch`, the last place that knows a prompt's area: note it for the UNet's wrapper."""
    size = Size(x.shape[-2], x.shape[-1])
    areas: dict[Any, list[Area]] = {}
    for cond in (cond for prompt in conds for cond in prompt or ()):
        areas.setdefault(cond.get("uuid"), []).append(_area_of(cond.get("area"), size))
    options = {**model_options.get("transformer_options", {}), _LAYOUT: Layout(size, areas)}
    return executor(model, conds, x, timestep, {**model_options, "transformer_options": options})


def areas_of(options: Mapping[str, Any], own: Size, prompts: int) -> tuple[Size, list[Area]]:
    """The size of the whole latent and the area of each prompt in a call of the UNet.

    Args:
        options: The host's `transformer_options`.
        own: Size of the UNet's input in this call.
        prompts: Prompts in the batch.

    Returns:
        Where nothing fits (another node cuts the latent in its own way), the input counts as the whole latent, as it does
        for the host's own ControlNet.
    """
    layout: Layout | None = options.get(_LAYOUT)
    if layout is not None:
        fitting = [
            next((area for area in layout.areas.get(uuid, ()) if area[2:] == own), None) for uuid in options.get("uuids", ())
        ]
        found = [area for area in fitting if area is not None]
        if len(found) == prompts:
            return layout.size, found
    return own, [Area(0, 0, *own)] * prompts


def _area_of(area: Sequence[int] | None, size: Size) -> Area:
    """The host's (height, width, top, left), or (depth, height, ...), cut at the border as the host cuts it."""
    if area is None:
        return Area(0, 0, *size)
    half = len(area) // 2
    height, width, top, left = *area[:2], *area[half : half + 2]
    return Area(top, left, min(height, size.height - top), min(width, size.width - left))
