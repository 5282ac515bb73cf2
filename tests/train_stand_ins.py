"""Small stand-ins for a checkpoint's VAE and text encoder, and a whole training job of the host with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from ctrlora_files import load_small_base
from host_models import build_model
from nextcontrol.nodes.host import train_job
from nextcontrol.nodes.host.dataset_folders import open_dataset
from nextcontrol.nodes.host.recipe_ctrlora import CtrLoRARecipe
from nextcontrol.nodes.host.train_job import TrainJob, TrainResult
from nextcontrol.training.config import TrainConfig
from nextcontrol.training.dataset import DatasetSettings
from nextcontrol.training.draws import generator_for
from tiny_training import write_pairs
from torch import nn

WIDTH = 96
"""Text width of the golden's networks."""


class Stage(nn.Module):
    """Encoder and decoder of eight pixels a cell, with the names that the host's have."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 8, 8, stride=8)
        self.quant_conv = nn.Conv2d(8, 8, 1)
        self.decoder = nn.ConvTranspose2d(4, 3, 8, stride=8)
        for key, tensor in self.named_parameters():
            tensor.data.copy_(torch.randn(tensor.shape, generator=generator_for("vae", key)) * 0.1)


class SmallVAE:
    """As the host's VAE, as far as training uses it."""

    latent_channels, latent_dim, vae_dtype = 4, 2, torch.float32

    def __init__(self) -> None:
        self.first_stage_model = Stage()
        self.device = comfy.model_management.get_torch_device()
        self.patcher = ModelPatcher(self.first_stage_model, load_device=self.device, offload_device=self.device)
        self.seen: list[torch.Tensor] = []
        self.first_stage_model.encoder.register_forward_pre_hook(lambda _module, given: self.seen.append(given[0].clone()))

    def memory_used_encode(self, *_: Any) -> int:
        """Bytes, for a shape and a type."""
        return 0

    def process_input(self, pixels: torch.Tensor) -> torch.Tensor:
        """[0, 1] to [-1, 1]."""
        return pixels * 2 - 1

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 4, h, w) of (B, H, W, 3): the mode; what is asked of it is not noted as seen."""
        encoder = self.first_stage_model.encoder
        given = self.process_input(pixels.movedim(-1, 1))
        return torch.nn.functional.conv2d(given, encoder.weight, encoder.bias, stride=8)[:, :4]

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, H, W, 3)."""
        return ((self.first_stage_model.decoder(latents) + 1) / 2).clamp(0, 1).movedim(1, -1)


class SmallCLIP:
    """As the host's CLIP, as far as training uses it; gives two chunks of tokens."""

    def __init__(self, width: int = WIDTH) -> None:
        self.width = width
        self.seen: list[str] = []
        self.cond_stage_model = nn.Linear(2, 2)
        with torch.no_grad():
            for parameter in self.cond_stage_model.parameters():
                parameter.fill_(0.5)
        device = comfy.model_management.get_torch_device()
        self.patcher = ModelPatcher(self.cond_stage_model, load_device=device, offload_device=device)
        self.layer_idx = None

    def tokenize(self, text: str) -> str:
        """The text itself."""
        self.seen.append(text)
        return text

    def encode_from_tokens(self, tokens: str) -> torch.Tensor:
        """(1, 154, width)."""
        return torch.randn(1, 154, self.width, generator=generator_for("clip", tokens))


def write_dataset(base_folder: Path, name: str, **options: Any) -> str:
    """Pairs below the host's input/."""
    write_pairs(base_folder / "input" / name, **options)
    return name


def small_job(base_folder: Path, dataset: str, name: str, is_resumed: bool = True, **changes: Any) -> TrainJob:
    """The golden's networks, made in inference mode as the executor's loaders make them."""
    settings = {"steps": 4, "rank": 4, "learning_rate": 1e-3, "save_every": 2, "preview_every": 0, "sensitivity_every": 0}
    parts = {"model": build_model("ctrlora"), "clip": SmallCLIP(), "vae": SmallVAE(), "base": load_small_base(base_folder)}
    chosen = {key: changes.pop(key, part) for key, part in parts.items()}
    folder_settings = DatasetSettings(resolution=64, **changes.pop("dataset_settings", {}))
    recipe = changes.pop("recipe", None)
    config = TrainConfig(**(settings | {"validation_pairs": 0} | changes))
    recipe = recipe or CtrLoRARecipe(chosen.pop("base"), config.rank)
    opened = open_dataset(dataset, folder_settings)
    return TrainJob(chosen["model"], chosen["clip"], chosen["vae"], recipe, opened, name, config, is_resumed)


def train(*arguments: Any, **options: Any) -> TrainResult:
    """Run a small job to its end."""
    return train_job.train(small_job(*arguments, **options))
