"""Which part of the latent each row of the host's batch shows: area conditioning crops it, and the control with it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .tiles import Tile, find_tiles, scaled_input, span_of

LOGGER = logging.getLogger("nextcontrol")
CUT = (
    "Another node evaluates the latent in parts or at other sizes (%dx%d cells of %dx%d) and does not say which part it is: "
    "each gets the whole hint and the whole mask."
)
_LAYOUT = "nextcontrol.layout"
_TILES = "nextcontrol.tiles"


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
    evaluated: Evaluated | None = None
    run: Run | None = None


class Evaluated(NamedTuple):
    """What the host evaluates at once, before it cuts areas out of it."""

    model: Any
    x: Tensor
    """(B, C, H, W), one prompt's rows."""
    sigma: Tensor
    origin: tuple[int, int]
    """Place of its corner (top, left) in the whole latent."""


class Parts(NamedTuple):
    """What the rows of one call show: as many rows of each part, in this order."""

    size: Size
    """Of the whole latent."""
    areas: list[Area]
    prompts: list[int]
    """The prompt of each, as its place among those of the call."""


class Run:
    """One sampling of one model: how large its latent is, and what has been said."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] | None = None
        """Of the latent."""
        self._said: set[str] = set()

    def __deepcopy__(self, memo: dict[int, Any]) -> Run:
        return self

    def begin(self, _model: Any = None) -> None:
        """Start of a run."""
        self._said = set()

    def warn(self, text: str, *values: object) -> None:
        """Log a sentence, once in a run."""
        if text not in self._said:
            self._said.add(text)
            LOGGER.warning(text, *values)

    def outer_sample(self, executor: Callable[..., Any], noise: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Wrapper of the guider's `outer_sample`, where the latent is whole."""
        self.shape = tuple(noise.shape)
        try:
            return executor(noise, *args, **kwargs)
        finally:
            self.shape = None

    def note_areas(
        self, executor: Callable[..., Any], model: Any, conds: Any, x: Tensor, timestep: Tensor, model_options: Any
    ) -> Any:
        """As the function, with this run."""
        return note_areas(executor, model, conds, x, timestep, model_options, self)


def note_areas(
    executor: Callable[..., Any],
    model: Any,
    conds: Sequence[Sequence[Mapping[str, Any]] | None],
    x: Tensor,
    timestep: Tensor,
    model_options: Mapping[str, Any],
    run: Run | None = None,
) -> Any:
    """Wrapper of the host's `calc_cond_batch`, the last place that knows a prompt's area: note it for the UNet's wrapper."""
    own, given = Size(x.shape[-2], x.shape[-1]), model_options.get("transformer_options", {})
    size, origin = _whole_of(own, given, run)
    areas: dict[Any, list[Area]] = {}
    for cond in (cond for prompt in conds for cond in prompt or ()):
        area = _area_of(cond.get("area"), own)
        moved = area._replace(top=area.top + origin[0], left=area.left + origin[1])
        areas.setdefault(cond.get("uuid"), []).append(moved)
    options = {**given, _LAYOUT: Layout(size, areas, Evaluated(model, x, timestep, origin), run)}
    return executor(model, conds, x, timestep, {**model_options, "transformer_options": options})


def layout_of(options: Mapping[str, Any]) -> Layout | None:
    """What has been noted for a call; `options` are the host's `transformer_options`."""
    return options.get(_LAYOUT)


def areas_of(options: Mapping[str, Any], own: Size, prompts: int) -> tuple[Size, list[Area]]:
    """The size of the whole latent and the area of each prompt in a call of the UNet.

    Args:
        options: The host's `transformer_options`.
        own: Size of the UNet's input in this call.
        prompts: Prompts in the batch.

    Returns:
        Where nothing fits, the input counts as the whole latent, as it does for the host's own ControlNet.
    """
    return _noted_areas(options, own, prompts) or (own, [Area(0, 0, *own)] * prompts)


def parts_of(options: Mapping[str, Any], x: Tensor, prompts: int, is_scaled: bool) -> Parts:
    """What the rows of a call show: areas of prompts, or the tiles that another node has cut.

    Args:
        options: The host's `transformer_options`.
        x: (R, C or more, h, w), the input of the call.
        prompts: Prompts in the batch.
        is_scaled: It is the UNet's own input, and no longer the sampler's latent.

    Returns:
        Where nothing fits, the input counts as the whole latent, which is said once a run.
    """
    own, order = Size(x.shape[-2], x.shape[-1]), list(range(prompts))
    layout = layout_of(options)
    seen = layout and layout.evaluated
    noted = _noted_areas(options, own, prompts)
    if noted is not None and (seen is None or len(x) == prompts * len(seen.x)):
        return Parts(*noted, order)
    if layout is not None and seen is not None:
        tiles = _tiles_of(options, x, seen, prompts, is_scaled)
        if tiles is not None:
            top, left = seen.origin
            areas = [Area(top + tile.top, left + tile.left, *own) for tile in tiles]
            return Parts(layout.size, areas, [tile.prompt for tile in tiles])
        if layout.run is not None and own != layout.size:
            layout.run.warn(CUT, own.width, own.height, layout.size.width, layout.size.height)
    return Parts(own, [Area(0, 0, *own)] * prompts, order)


def _tiles_of(options: Mapping[str, Any], x: Tensor, seen: Evaluated, prompts: int, is_scaled: bool) -> list[Tile] | None:
    """The tiles of a call; the second control on a model need not look for them again."""
    if not is_scaled:
        return find_tiles(x, seen.x, prompts)
    known = options.get(_TILES)
    if known is not None and known[0] is x:
        return known[1]
    whole = scaled_input(seen.model.model_sampling, seen.sigma, seen.x).to(x.dtype)
    tiles = find_tiles(x, whole, prompts)
    if isinstance(options, dict):
        options[_TILES] = (x, tiles)
    return tiles


def _noted_areas(options: Mapping[str, Any], own: Size, prompts: int) -> tuple[Size, list[Area]] | None:
    """The whole latent's size and each prompt's area as noted, where there is one of this size for each."""
    layout = layout_of(options)
    if layout is None:
        return None
    fitting = [
        next((area for area in layout.areas.get(uuid, ()) if area[2:] == own), None) for uuid in options.get("uuids", ())
    ]
    found = [area for area in fitting if area is not None]
    return (layout.size, found) if len(found) == prompts else None


def _whole_of(own: Size, options: Mapping[str, Any], run: Run | None) -> tuple[Size, tuple[int, int]]:
    """The whole latent's size, and where in it the part lies that is evaluated: windows of the host may cut its sides."""
    if run is None or run.shape is None or own == run.shape[-2:]:
        return own, (0, 0)
    full = Size(*run.shape[-2:])
    window = options.get("context_window")
    side = getattr(window, "dim", 0) - (len(run.shape) - 2)
    if side in (0, 1) and own[1 - side] == full[1 - side]:
        span = span_of(list(window.index_list))  # type: ignore[union-attr]
        if span is not None and span[1] == own[side]:
            return full, (span[0], 0) if side == 0 else (0, span[0])
    run.warn(CUT, own.width, own.height, full.width, full.height)
    return own, (0, 0)


def _area_of(area: Sequence[int] | None, size: Size) -> Area:
    """The host's (height, width, top, left), or (depth, height, ...), cut at the border as the host cuts it."""
    if area is None:
        return Area(0, 0, *size)
    half = len(area) // 2
    height, width, top, left = *area[:2], *area[half : half + 2]
    return Area(top, left, min(height, size.height - top), min(width, size.width - left))
