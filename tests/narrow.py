"""Narrow models and controls for tests of behaviour: fast, and of no published size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from host_models import build_model, evaluate, narrow_module, prompt
from nextcontrol.nodes.host.attach import attach_controlnext
from nextcontrol.nodes.host.controlnext_file import ControlNeXtFile, load_controlnext_file
from safetensors.torch import save_file
from seeded import seeded_tensor

SIGMA = 3.0
WIDTHS = {"sd15": 768, "sdxl": 2048, "svd": 1024}
GENERATION_OF = {"sd15": 3, "sd15_v0": 1, "sdxl": 3, "sdxl_skip": 3, "svd_v1": 2, "svd_v2": 3}


def save(base_folder: Path, name: str, tensors: dict[str, torch.Tensor], folder: str = "controlnext", **metadata: str) -> str:
    """Put a file into a model folder of the test host, once: a name stands for one content."""
    path = base_folder / "models" / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata or None)
    return name


def control_for(
    base_folder: Path, variant: str = "sd15", unet: str = "none", mode: str = "auto", seed: int = 0
) -> ControlNeXtFile:
    """A narrow control, read from a file."""
    generation = GENERATION_OF[variant]
    name = save(base_folder, f"narrow_{generation}_{seed}.safetensors", narrow_module(generation, seed))
    return load_controlnext_file(name, unet, variant, mode)


def hints(count: int = 1, height: int = 64, width: int = 96, seed: int = 0) -> torch.Tensor:
    """(count, height, width, 3) in [0, 1]."""
    return (0.25 * seeded_tensor("hint", [count, height, width, 3], seed) + 0.5).clamp(0, 1)


def latents(count: int = 1, height: int = 8, width: int = 12, seed: int = 0) -> torch.Tensor:
    """(count, 4, height, width)."""
    return seeded_tensor("latent", [count, 4, height, width], seed)


def text(family: str = "sd15", name: str = "context", **extra: Any) -> dict[str, Any]:
    """One prompt; its embedding is a function of `name`."""
    if family == "sdxl":
        extra["y"] = seeded_tensor(f"{name}.y", [1, 2816])
    if family == "svd":
        extra["y"] = seeded_tensor(f"{name}.y", [1, 768])
        return prompt(seeded_tensor(name, [1, 1, WIDTHS[family]]), **extra)
    return prompt(seeded_tensor(name, [1, 7, WIDTHS[family]]), **extra)


def apply(
    model: ModelPatcher, control: ControlNeXtFile, image: torch.Tensor, strength: float = 1.0, **options: Any
) -> ModelPatcher:
    """`attach_controlnext` over the whole of sampling."""
    return attach_controlnext(model, control, image, strength, options.pop("percents", (0.0, 1.0)), **options)


def narrow_model(family: str = "sd15") -> ModelPatcher:
    """The narrow model of a family."""
    return build_model(f"{family}_narrow")


def predict(model: ModelPatcher, latent: torch.Tensor | None = None, sigma: float = SIGMA, **options: Any) -> torch.Tensor:
    """The conditional prediction for one prompt of SD1.5."""
    return evaluate(model, [[text()]], latents() if latent is None else latent, sigma, **options)[0]
