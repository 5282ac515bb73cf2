"""The figures of docs/proof.md."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from prove_claims import values_at
from prove_metrics import METRICS
from prove_report import NAMES
from prove_stages import NEW

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple")
SHOWN, SIDE = 6, 80
"""Columns of the sheet, and pixels of each picture."""


def draw_figures(results: Mapping[str, Any], folder: Path) -> None:
    """`proof_*.png` for each stage that has one."""
    folder.mkdir(parents=True, exist_ok=True)
    for stage, result in results.items():
        if stage in DRAWERS:
            name, draw = DRAWERS[stage]
            draw(result, folder / name)


def _figure(count: int) -> tuple[Any, Sequence[Any]]:
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(4.5 * count, 3.4), layout="constrained")
    axes = canvas.subplots(1, count)
    return canvas, axes if count > 1 else [axes]


def _save(canvas: Any, path: Path, dpi: int) -> None:
    """With few colours, which takes a third of the bytes."""
    from PIL import Image

    canvas.savefig(path, dpi=dpi)
    with Image.open(path) as image:
        few = image.convert("RGB").quantize(64)
    few.save(path, optimize=True)


def _range(axis: Any, x: Sequence[float], values: Sequence[Sequence[float]], title: str, color: str) -> None:
    """Means with the range of the seeds behind them."""
    axis.fill_between(x, [min(v) for v in values], [max(v) for v in values], color=color, alpha=0.2, linewidth=0)
    axis.plot(x, [statistics.mean(v) for v in values], color=color, marker="o", markersize=3, label=title)


def _limits(axis: Any, result: Mapping[str, Any], condition: str) -> None:
    none = statistics.mean(one[condition] for one in result["none"])
    axis.axhline(none, color="gray", linestyle=":", linewidth=1, label="no control")
    axis.axhline(result["best"][condition], color="gray", linestyle="--", linewidth=1, label="true pictures")


def _curves(axis: Any, curves: Mapping[str, Any], condition: str) -> None:
    for (way, own), color in zip(curves.items(), COLORS, strict=False):
        steps = [step for step, _ in own[0]]
        _range(axis, steps, [values_at(own, place, condition) for place in range(len(steps))], NAMES[way], color)
    axis.set(xlabel="steps", ylabel=METRICS[condition].title)


def _draw_strength(result: Mapping[str, Any], path: Path) -> None:
    canvas, axes = _figure(2)
    names = list(dict.fromkeys(row["control"] for row in result["rows"]))
    for axis, condition in zip(axes, ("canny", "palette"), strict=True):
        for name, color in zip(names, COLORS, strict=False):
            rows = [row for row in result["rows"] if row["control"] == name]
            values = [[one[condition] for one in row["values"]] for row in rows]
            _range(axis, [row["strength"] for row in rows], values, name, color)
        _limits(axis, result, condition)
        axis.set(xlabel="strength", ylabel=METRICS[condition].title)
    axes[0].legend(frameon=False, fontsize=8)
    _save(canvas, path, 100)


def _draw_curves(condition: str) -> Any:
    def draw(result: Mapping[str, Any], path: Path) -> None:
        canvas, axes = _figure(1)
        _curves(axes[0], result["curves"], condition)
        _limits(axes[0], result, condition)
        axes[0].legend(frameon=False, fontsize=8)
        _save(canvas, path, 110)

    return draw


def _draw_parts(result: Mapping[str, Any], path: Path) -> None:
    canvas, axes = _figure(4)
    for axis, part in zip(axes, ("hint_encoder", "base"), strict=False):
        _curves(axis, result[part], NEW)
        _limits(axis, result, NEW)
        axis.legend(frameon=False, fontsize=8)
    for axis, part in zip(axes[2:], ("rank", "pairs"), strict=True):
        values = [values_at(own, -1, NEW) for own in result[part].values()]
        _range(axis, [int(value) for value in result[part]], values, part, COLORS[0])
        axis.set(xlabel=part, ylabel=METRICS[NEW].title, xscale="log")
        axis.set_xticks([int(value) for value in result[part]], list(result[part]))
        axis.minorticks_off()
    _save(canvas, path, 80)


DRAWERS = {
    "fidelity": ("proof_strength.png", _draw_strength),
    "new_condition": ("proof_new_condition.png", _draw_curves(NEW)),
    "parts": ("proof_parts.png", _draw_parts),
    "normalization": ("proof_normalization.png", _draw_curves("canny")),
}


def draw_sheet(rows: Mapping[str, Tensor], path: Path) -> None:
    """Pictures (N, H, W, 3) side by side, one row for each title, as a PNG of few colours."""
    import torch
    from PIL import Image, ImageDraw
    from torch.nn import functional as F

    small = [F.interpolate(row[:SHOWN].movedim(-1, 1), (SIDE, SIDE), mode="area") for row in rows.values()]
    grid = torch.stack(small).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # RNCHW -> (R H)(N W)C
    pixels = (grid.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    sheet = Image.new("RGB", (pixels.shape[1] + SIDE + 40, pixels.shape[0]), "white")
    sheet.paste(Image.fromarray(pixels), (SIDE + 40, 0))
    pen = ImageDraw.Draw(sheet)
    for number, title in enumerate(rows):
        pen.text((4, number * SIDE + SIDE // 2 - 5), title, fill="black")
    sheet.quantize(96).save(path, optimize=True)
