"""Cross normalization against zero convolution: how soon a control is followed. Same data, same seeds, same module.

    python3 scripts/convergence.py [--steps N] [--seeds N] [--model-steps N] [--work FOLDER] [--figure FILE] [--comfyui PATH]

A small diffusion model of shapes is trained first, then a ControlNeXt on it in each way, with our own trainer. Fidelity
is how well the shape in what is sampled covers that of the hint's own picture (intersection over union), on held-out hints.
What is done is kept in FOLDER, so that an interrupted run goes on. The figure needs matplotlib, which is installed beside the
host on the first call.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extras import Extra, find_extras
from host import find_host
from host_library import import_host, import_pack
from host_server import has_accelerator
from provide import SetupError, cache_home, say

if TYPE_CHECKING:
    from torch import Tensor

INSIDE, TOOLS = "NEXTCONTROL_CONVERGENCE_INSIDE", "NEXTCONTROL_CONVERGENCE_TOOLS"
FIGURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "convergence.png"
WAYS = {
    "cross": "cross normalization",
    "cross_weak": "cross normalization, scale 0.35",
    "zero_convolution": "zero convolution",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "cross": {},
    "cross_weak": {"scale": 0.35},  # the authors' advice for Canny, which these outlines resemble
    "zero_convolution": {"normalization": "zero_convolution"},
}
BATCH, RATE, RATE_FACTOR = 8, 3e-4, 10.0
LOOKS = (0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1)
"""When fidelity is measured, as parts of the run."""
HELD_OUT, SAMPLING_STEPS = 24, 8


def main(arguments: list[str]) -> int:
    """Parse, bring up the host's interpreter, and compare in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500, help="updates of each control")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each way")
    parser.add_argument("--model-steps", type=int, default=1000, help="updates of the model of shapes")
    parser.add_argument("--work", type=Path, default=cache_home() / "convergence", help="where results are kept")
    parser.add_argument("--figure", type=Path, default=FIGURE, help="default: docs/images/convergence.png")
    parser.add_argument("--comfyui", type=Path, help="an existing ComfyUI")
    options = parser.parse_args(arguments)
    if os.environ.get(INSIDE):
        import_host(options.comfyui, options.work / "host", is_cpu=os.environ[INSIDE] == "cpu")
        import_pack()
        results = compare(options.model_steps, options.steps, options.seeds, options.work)
        say(table(results))
        draw(results, options.figure)
        say(f"The figure: {options.figure}")
        return 0
    try:
        host = find_host(options.comfyui)
        tools = find_extras(host, "figures", [Extra("figures", "tools for figures", is_bare=True)], ["lib/matplotlib"])
    except SetupError as error:
        say(f"convergence.py: {error}")
        return 1
    device = "accelerator" if has_accelerator(host.python) else "cpu"
    command = [str(host.python), "-B", __file__, *arguments, "--comfyui", str(host.comfyui)]
    environment = {**os.environ, INSIDE: device, TOOLS: str(tools)}
    return subprocess.run(command, env=environment, check=False).returncode


def compare(model_steps: int, steps: int, seeds: int, work: Path) -> list[dict[str, Any]]:
    """Every run that is not in `work` yet, and what came of all.

    Returns:
        For each run its way, seed, and two curves: [step, fidelity] and the loss of every step.
    """
    from shapes_model import train_model

    model = train_model(model_steps, 0, work / f"shapes_{model_steps}.safetensors", say)
    kept = work / f"runs_{model_steps}_{steps}.json"
    results: list[dict[str, Any]] = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else []
    for seed in range(seeds):
        for way, title in WAYS.items():
            if any((run["way"], run["seed"]) == (way, seed) for run in results):
                continue
            results.append({"way": way, "seed": seed, **train_control(model, way, seed, steps)})
            kept.write_text(json.dumps(results), encoding="utf-8")
            say(f"{title}, seed {seed}: fidelity {results[-1]['fidelity'][-1][1]:.3f} after {steps} steps")
    return [run for run in results if run["seed"] < seeds]


def train_control(model: Any, way: str, seed: int, steps: int) -> dict[str, Any]:
    """One control from its start, looked at now and then.

    Args:
        model: From `shapes_model.train_model`.
        way: One of `WAYS`.
        seed: Of module and data; every way sees the same.
        steps: Updates.

    Returns:
        `fidelity`, [step, overlap], and `losses`.
    """
    import torch
    from nextcontrol.nodes.host.backbone import HostBackbone, training_mode
    from nextcontrol.training.backbone import Batch
    from nextcontrol.training.config import TrainConfig
    from nextcontrol.training.draws import generator_for
    from nextcontrol.training.trainer import Trainer
    from shapes_model import draw_shapes, empty_text, shape_overlap, to_latents

    config = TrainConfig(steps=steps, learning_rate=RATE, batch_size=BATCH, seed=seed, validation_pairs=0, preview_every=0)
    looks = {round(part * steps) for part in LOOKS}
    pictures, hints = draw_shapes(HELD_OUT, generator_for("held out"))
    fidelity = []
    with training_mode([model], is_cast=False):
        backbone = HostBackbone(model)
        trainer = Trainer(_build_method(model, way, seed), backbone, config)
        while True:
            if trainer.step in looks:
                made = _sample(trainer, hints.to(backbone.device))
                fidelity.append([trainer.step, shape_overlap(made, to_latents(pictures).to(made))])
            if trainer.step == steps:
                return {"fidelity": fidelity, "losses": trainer.losses}
            generator = generator_for("batch", seed, trainer.step)
            shown, given = draw_shapes(BATCH, generator)
            latents = to_latents(shown)
            times = torch.cat([backbone.objective.draw(generator) for _ in range(BATCH)])
            noise = torch.randn(latents.shape, generator=generator)
            trainer.update([Batch(latents, given, empty_text(BATCH), noise, times, ("shapes",))])


def _build_method(model: Any, way: str, seed: int) -> Any:
    from nextcontrol.models.controlnext import ControlNeXtConfig
    from nextcontrol.models.injection import INJECTIONS
    from nextcontrol.training.method_controlnext import ControlNeXtMethod, ControlNeXtOptions, start_module

    options = ControlNeXtOptions(control_rate_factor=RATE_FACTOR, **OPTIONS[way])
    unet = model.model.diffusion_model
    config = ControlNeXtConfig((16, 16, 16), ((16, 16), (16, 32)), 32, unet.model_channels, 64, 128, False, True, False)
    originals = {name: tensor for name, tensor in unet.named_parameters() if "to_out" in name}
    module = start_module(config, options, seed).to(model.load_device)
    names = {name: name for name in originals}
    return ControlNeXtMethod(module, INJECTIONS["sd15"], options, originals, names)


def _sample(trainer: Any, hints: Tensor) -> Tensor:
    import torch
    from nextcontrol.training.draws import generator_for
    from shapes_model import CELLS, empty_text

    noise = torch.randn(len(hints), 4, CELLS, CELLS, generator=generator_for("sampled")).to(hints)
    text = empty_text(len(hints), hints.device)
    with torch.no_grad():
        return trainer.backbone.objective.sample(lambda x, t: trainer.predict(x, hints, t, text), noise, SAMPLING_STEPS)


def table(results: list[dict[str, Any]]) -> str:
    """Fidelity by step, mean and range over the seeds, as Markdown."""
    lines = [f"| steps | {' | '.join(WAYS.values())} |", "| ---: |" + " ---: |" * len(WAYS)]
    for place, (step, _) in enumerate(results[0]["fidelity"]):
        cells = []
        for way in WAYS:
            values = [run["fidelity"][place][1] for run in results if run["way"] == way]
            cells.append(f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        lines.append(f"| {step} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(results: list[dict[str, Any]], figure: Path) -> None:
    """The curves of every way, and of every seed."""
    sys.path.append(os.environ[TOOLS])
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = canvas.subplots(1, 2)
    for way, color in zip(WAYS, ("tab:blue", "tab:green", "tab:orange"), strict=True):
        runs = [run for run in results if run["way"] == way]
        for run in runs:
            left.plot(*zip(*run["fidelity"], strict=True), color=color, alpha=0.3, linewidth=1)
        steps = [step for step, _ in runs[0]["fidelity"]]
        means = [statistics.mean(values) for values in zip(*([f for _, f in run["fidelity"]] for run in runs), strict=True)]
        left.plot(steps, means, color=color, marker="o", markersize=3, label=WAYS[way])
        losses = [statistics.mean(values) for values in zip(*(run["losses"] for run in runs), strict=True)]
        width = max(1, len(losses) // 20)
        smooth = [statistics.mean(losses[max(0, i - width) : i + 1]) for i in range(len(losses))]
        right.plot(range(1, len(smooth) + 1), smooth, color=color)
    left.set(xlabel="steps", ylabel="overlap with held-out shapes", title="Condition fidelity")
    right.set(xlabel="steps", ylabel="loss (running mean)", title="Loss")
    left.legend(frameon=False)
    figure.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(figure, dpi=110)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
