"""Training checkpoints as trainers write them, in narrow: bundles of ControlNeXt, finetunes and pretrainings of CtrLoRA."""

from __future__ import annotations

import torch
from ctrlora_files import SHAPES, base_weights, condition_weights, published
from host_models import narrow_module
from seeded import seeded_tensor

UNET_KEY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.weight"
DOWN = ".lora_layer.down.weight"
LAYERS = [key.removesuffix(DOWN) for key in SHAPES if key.endswith(DOWN)]
"""The linear layers in the order of the reference's own module, whose position numbers the LoRAs of a pretraining."""
RANKS = {"hed": 2, "canny": 4, "normal": 8}


def bundle() -> dict[str, torch.Tensor]:
    """Module and UNet in one file."""
    module = {f"controlnext.{key}": tensor for key, tensor in narrow_module().items()}
    return module | {f"unet.{UNET_KEY}": seeded_tensor(UNET_KEY, [64, 64])}


def stable_diffusion() -> dict[str, torch.Tensor]:
    """Something of every part of a full checkpoint."""
    return {
        "model.diffusion_model.input_blocks.0.0.weight": torch.ones(64, 4, 3, 3),
        "model.diffusion_model.input_blocks.1.1.norm.weight": torch.full((64,), 5.0),
        "first_stage_model.decoder.conv_in.weight": torch.ones(2),
        "first_stage_model.decoder.norm_out.weight": torch.ones(2),
        "cond_stage_model.transformer.text_model.x.weight": torch.ones(2),
        "betas": torch.ones(5),
    }


def finetune(has_lora: bool = True) -> dict[str, torch.Tensor]:
    """One condition, or all parameters, trained on a base; with the whole of SD beside it."""
    own = base_weights() | (condition_weights() if has_lora else {})
    return stable_diffusion() | published(own)


def task(name: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(down, up) of a pretraining task for every layer, by number."""
    rank = RANKS[name]
    pairs = []
    for number, layer in enumerate(LAYERS):
        down, up = SHAPES[f"{layer}{DOWN}"], SHAPES[f"{layer}.lora_layer.up.weight"]
        pairs.append((
            seeded_tensor(f"{name}.{number}.down", [rank, down[1]]), seeded_tensor(f"{name}.{number}.up", [up[0], rank])
        ))  # fmt: skip
    return pairs


def pretraining() -> dict[str, torch.Tensor]:
    """Three tasks on a base, and the LoRA that was switched in when the file was written."""
    lora = {key: tensor for key, tensor in condition_weights().items() if "lora_layer" in key}
    stacked = {
        f"loras_dict.{name}.{number}.{half}.weight": tensor
        for name in RANKS
        for number, pair in enumerate(task(name))
        for half, tensor in zip(("down", "up"), pair, strict=True)
    }
    return stable_diffusion() | published(base_weights() | lora | stacked)
