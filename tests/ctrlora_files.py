"""CtrLoRA files with the golden's seeded weights, and what stands in for a checkpoint's VAE beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from host_models import GOLDENS
from narrow import save
from nextcontrol.models.ctrlora_file import LORA, is_replaced
from nextcontrol.nodes.host.ctrlora_control import CtrLoRAControl
from nextcontrol.nodes.host.ctrlora_hint import Posterior
from nextcontrol.nodes.host.ctrlora_load import CtrLoRABase, load_base, load_condition
from seeded import seeded_tensor, seeded_weight

REPORT = json.loads((GOLDENS / "ctrlora.json").read_text())
SHAPES: dict[str, list[int]] = REPORT["shapes"]
SCALE = 0.18215


def base_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """The golden's base, keys without prefix."""
    return {key: seeded_weight(key, shape, seed) for key, shape in SHAPES.items() if LORA not in key}


def condition_weights(prefix: str = "", seed: int = 0) -> dict[str, torch.Tensor]:
    """One of the golden's conditions: LoRA, zero convolutions and norms."""
    own = {key: shape for key, shape in SHAPES.items() if LORA in key or is_replaced(key)}
    return {key: seeded_weight(prefix + key, shape, seed) for key, shape in own.items()}


def published(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Keys as in the released files."""
    return {f"control_model.{key}": tensor for key, tensor in tensors.items()}


def load_small_base(base_folder: Path, seed: int = 0, cache: int = 64) -> CtrLoRABase:
    """The golden's base, read from a file."""
    return load_base(
        save(base_folder, f"ctrlora_base_{seed}.safetensors", published(base_weights(seed)), folder="ctrlora"), False, cache
    )


def control_of(
    base_folder: Path,
    base: CtrLoRABase,
    prefix: str | None = "",
    lora_strength: float = 1.0,
    posterior: Posterior | None = None,
) -> CtrLoRAControl:
    """A condition on a base, read from a file; `prefix` None for the base alone."""
    name = "none"
    if prefix is not None:
        name = save(base_folder, f"ctrlora_{prefix}lora.safetensors", published(condition_weights(prefix)), folder="ctrlora")
    network, source = load_condition(base, name, "")
    return CtrLoRAControl(base, network, lora_strength, posterior or Posterior(), source)


class GivenLatents:
    """In the place of a VAE: picture n becomes the n-th latent. For the control network's numbers, not for the hint's way."""

    latent_channels, latent_dim = 4, 2

    def __init__(self, *names: str, seed: int = 0) -> None:
        self.latents = torch.cat([seeded_tensor(name, [2, 4, 8, 12], seed) for name in names]) / SCALE
        self.calls = 0

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """The latent whose number the first pixel says; see `numbered`."""
        self.calls += 1
        return self.latents[((pixels[:, 0, 0, 0] * 2 - 1) * 100).round().long()]


def numbered(*numbers: int) -> torch.Tensor:
    """(N, 3, 64, 96): pictures that tell `GivenLatents` which latent they stand for."""
    return torch.stack([torch.full((3, 64, 96), number / 100) for number in numbers])


def run_control(
    control: Any, model: Any, text: torch.Tensor, sigmas: torch.Tensor, prompts: int = 1, size: tuple[int, int] = (8, 12)
) -> Any:
    """What a chain of controls gives the UNet in one call, between the host's own pre-run and clean-up."""
    control.pre_run(model.model, model.get_model_object("model_sampling").percent_to_sigma)
    try:
        return control.get_control(torch.zeros(len(text), 4, *size), sigmas, {"c_crossattn": text}, prompts, {})
    finally:
        control.cleanup()
