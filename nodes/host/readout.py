"""What each control of a stack did: its share of the feature it was added to, and where in the picture it acted."""

from __future__ import annotations

import logging
import math
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import folder_paths
import numpy as np
import torch
from comfy_execution.utils import get_executing_context
from PIL import Image
from server import PromptServer
from torch import Tensor
from torch.nn import functional as F

from ...models.combine import level_of
from ...models.foreign import first_line
from .layout import Area, Size

FOLDER = "nextcontrol"
"""Below ComfyUI's temporary folder."""
HEAT_SIDE = 256
"""Longer side of a heat map in pixels, at least."""

LOGGER = logging.getLogger("nextcontrol")

Factor = Callable[[dict[str, Any]], Tensor | None]


class Spot(NamedTuple):
    """Where something was added."""

    group: str
    """Of places in the UNet."""
    size: Size
    """Of the whole latent."""
    areas: Sequence[Area]
    """Of each prompt in the batch."""


class Readout:
    """Collects on the sampling device and without waiting for it; written out when a run ends.

    The records and pictures that the node returned stay the same objects and files and are filled in after the run, so that
    the page and the history of the API have them. It is a display: what goes wrong with it is said once and ends no run.

    Args:
        names: Of the controls, in the stack's order; None for one that does not act.
        node_id: Of the node on the canvas.
    """

    def __init__(self, names: list[str | None], node_id: str | None) -> None:
        self.node_id = node_id
        self.has_stopped = False
        self.key = f"nextcontrol.readout.{uuid.uuid4().hex}"
        self.records: list[dict[str, Any]] = [
            {"position": position, "control": name, "share": {}, "evaluations": 0, "text": ""}
            for position, name in enumerate(names, 1)
            if name is not None
        ]
        self.images = [
            {"filename": f"stack_{self.key[-32:]}_{record['position']:02}.png", "subfolder": FOLDER, "type": "temp"}
            for record in self.records
        ]
        self.forget()
        with self.harmless():
            for image in self.images:
                _write(image, np.zeros((HEAT_SIDE, HEAT_SIDE), dtype=np.float32))

    def __deepcopy__(self, memo: dict[int, Any]) -> Readout:
        return self

    @contextmanager
    def harmless(self) -> Iterator[None]:
        """Stop the readout in place of the run where something about it fails; once it has stopped it takes no more notes."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - other packs' patches and the user's disk are in it
            if not self.has_stopped:
                LOGGER.warning("The readout of the control stack stops here and the run goes on (%s).", first_line(error))
            self.has_stopped = True

    # During a run

    def forget(self) -> None:
        """Start of a run."""
        self.has_stopped = False
        self._shares: defaultdict[tuple[int, str], list[Tensor]] = defaultdict(list)
        self._heat: dict[int, Tensor] = {}
        self._calls: Counter[int] = Counter()

    def note(self, position: int, spot: Spot, added: Tensor, feature: Tensor) -> None:
        """Take note of one addition.

        Args:
            position: Of the control, from 1.
            spot: Where it was made.
            added: (N, C, h, w), or one row for all.
            feature: (N, C, h, w), without it.
        """
        if self.has_stopped:
            return
        with self.harmless():
            self._note(position, spot, added, feature)

    def _note(self, position: int, spot: Spot, added: Tensor, feature: Tensor) -> None:
        cells = torch.linalg.vector_norm(added.float(), dim=1, keepdim=True)
        rows = cells.square().sum(dim=(1, 2, 3)).sqrt()
        whole = torch.linalg.vector_norm(feature.float().flatten(1), dim=1)
        shares = rows / whole.clamp_min(torch.finfo(torch.float32).tiny)
        # Rows that the control leaves alone, those of the negative prompt perhaps, do not lower its share.
        self._shares[position, spot.group].append(shares.sum() / (shares > 0).sum().clamp_min(1))
        typical = whole.square().mean().sqrt() / (feature.shape[-1] * feature.shape[-2]) ** 0.5
        self._warm(position, spot, (cells / typical.clamp_min(1e-20)).expand(len(feature), -1, -1, -1))

    def _warm(self, position: int, spot: Spot, cells: Tensor) -> None:
        """Add (N, 1, h, w) to a control's heat map, each prompt's rows where its area lies."""
        heat = cells.new_zeros(spot.size)
        parts = [cells] if len(set(spot.areas)) == 1 else cells.chunk(len(spot.areas))
        for area, part in zip(spot.areas, parts, strict=False):
            pooled = F.adaptive_avg_pool2d(part.mean(dim=0), (area.height, area.width))[0] / len(parts)
            heat[area.top : area.top + area.height, area.left : area.left + area.width] += pooled
        # A node that cuts the latent in its own way evaluates parts of several sizes in one run.
        known = self._heat.setdefault(position, torch.zeros_like(heat))
        known += heat if heat.shape == known.shape else F.adaptive_avg_pool2d(heat[None], (known.shape[0], known.shape[1]))[0]

    def note_later(
        self,
        options: dict[str, Any],
        position: int,
        spot: Spot,
        added: Tensor,
        feature: Tensor,
        factor: Factor,
    ) -> None:
        """Take note of an addition whose limit is known only after the others of its place."""
        options.setdefault(self.key, []).append((position, spot, added, feature, factor))

    def flush(self, options: dict[str, Any]) -> None:
        """Take note of what has been put off."""
        with self.harmless():
            for position, spot, added, feature, factor in options.pop(self.key, ()):
                kept = factor(options)
                self.note(position, spot, added if kept is None else added * kept, feature)

    def count(self, position: int) -> None:
        """A control has acted in a call of the UNet."""
        self._calls[position] += 1

    # After a run

    def publish(self) -> None:
        """Fill in the records, write the heat maps, and show both on the node."""
        with self.harmless():
            self._publish()
        self.forget()

    def _publish(self) -> None:
        if not self._shares:
            return
        for record, image in zip(self.records, self.images, strict=True):
            position = record["position"]
            own = {group: float(torch.stack(values).mean()) for (at, group), values in self._shares.items() if at == position}
            # JSON knows no other numbers; a model that overflows makes them.
            record["share"] = {group: round(share, 6) for group, share in own.items() if math.isfinite(share)}
            record["evaluations"] = self._calls[position]
            record["text"] = _line(record)
            record["prompt_id"] = _prompt_id()
            _write(image, self._map_of(position))
        self._send()

    def ui(self) -> dict[str, Any]:
        """What the node returns beside its outputs."""
        return {"readout": self.records, "images": self.images}

    def _map_of(self, position: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Relative to the strongest cell of all controls, so that the maps can be compared."""
        heats = {at: heat.nan_to_num(posinf=0.0) for at, heat in self._heat.items()}
        highest = max(float(heat.max()) for heat in heats.values())
        if position not in heats or highest == 0:
            return np.zeros((HEAT_SIDE, HEAT_SIDE), dtype=np.float32)
        return (heats[position] / highest).cpu().numpy()

    def _send(self) -> None:
        server = getattr(PromptServer, "instance", None)
        # As the host does it: without a page that asked, every open page would show it on its node of this number.
        if server is not None and server.client_id is not None and self.node_id:
            message = {"node": self.node_id, "display_node": self.node_id, "output": self.ui(), "prompt_id": _prompt_id()}
            server.send_sync("executed", message, server.client_id)


def group_of(area: Area, residual: Tensor) -> str:
    """The part of the latent's height that a place of the UNet has: "1/1", "1/2" and so on."""
    return f"1/{level_of(area.height, residual.shape[-2])}"


def _prompt_id() -> str | None:
    """Of the run that is under way."""
    context = get_executing_context()
    return None if context is None else context.prompt_id


def _line(record: dict[str, Any]) -> str:
    """A record as the page shows it."""
    share = ", ".join(f"{group} {share:.0%}" for group, share in record["share"].items())
    return f"{record['position']}. {record['control'].partition(' ')[0]}: {share or 'nothing added'}"


def _write(image: dict[str, str], heat: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    """A map of 0 to 1 as a picture: dark blue where nothing happened, yellow where most did."""
    import cv2

    folder = Path(folder_paths.get_temp_directory()) / image["subfolder"]
    folder.mkdir(parents=True, exist_ok=True)
    scale = max(1, HEAT_SIDE // max(heat.shape))
    pixels = np.kron((heat * 255).round().astype(np.uint8), np.ones((scale, scale), dtype=np.uint8))
    colors = cv2.cvtColor(cv2.applyColorMap(pixels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    Image.fromarray(colors).save(folder / image["filename"], compress_level=1)
