"""A run in miniature: a control network of two blocks, a diffusion model of a few convolutions, pictures of 64 pixels.

Needs torch and the pack alone: no ComfyUI.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from nextcontrol.models.ctrlora import Block, CtrLoRA, CtrLoRAConfig
from nextcontrol.training.cache import TensorCache
from nextcontrol.training.checkpoint import StateStore
from nextcontrol.training.config import TrainConfig
from nextcontrol.training.dataset import DatasetSettings, PairDataset
from nextcontrol.training.draws import generator_for
from nextcontrol.training.durable import write_tensors
from nextcontrol.training.encode import EncodedDataset, encode_dataset, split_held_out
from nextcontrol.training.loop import Hooks, Run
from nextcontrol.training.method_ctrlora import CtrLoRAMethod
from nextcontrol.training.metrics import MetricsFile
from nextcontrol.training.objective import DiscreteObjective, sd_alphas
from nextcontrol.training.pairs import find_pairs
from nextcontrol.training.source import PairSource, held_out_batches
from nextcontrol.training.team import Team
from nextcontrol.training.trainable import published, start_condition
from nextcontrol.training.trainer import Trainer
from PIL import Image
from torch.nn import functional as F

CHANNELS, CONTEXT, HEADS = 32, 16, 4
CONFIG = TrainConfig(
    steps=12, rank=4, learning_rate=1e-2, save_every=3, preview_every=0, sensitivity_every=6, validation_pairs=2
)  # fmt: skip


def tiny_base() -> CtrLoRA:
    """A base with seeded weights."""
    block = Block("res", CHANNELS, CHANNELS, depth=1)
    network = CtrLoRA(CtrLoRAConfig((Block("conv", 4, CHANNELS), block), block, 64, CONTEXT))
    for key, tensor in network.named_parameters():
        scale = tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.1
        tensor.data.copy_(torch.randn(tensor.shape, generator=generator_for("base", key)) * scale)
    return network


class TinyBackbone:
    """Something that predicts noise, better so if the controls tell what is in the picture."""

    device = torch.device("cpu")

    def __init__(self, prediction: str = "eps") -> None:
        self.objective = DiscreteObjective(sd_alphas(), prediction)
        self.heads = [torch.randn(4, CHANNELS, 1, 1, generator=generator_for("head", i)) * 0.1 for i in range(3)]
        self.own = torch.randn(4, 4, 3, 3, generator=generator_for("own")) / 6

    def predict(self, noisy, times, context, control, extras):  # noqa: ARG002
        """(B, 4, h, w)."""
        offset = context.mean((1, 2)) + times / 1000
        x = F.conv2d(noisy, self.own, padding=1) + offset[:, None, None, None]
        for residual, head in zip(control.residuals, self.heads, strict=False):
            x = x + F.conv2d(residual, head)
        return x


class Encoders:
    """In the place of a VAE and a text encoder; counts what it is asked for."""

    def __init__(self, identity: str = "tiny") -> None:
        self.identity = identity
        self.pictures: list[bool] = []
        self.texts: list[str] = []

    def encode(self, given, is_hint=None):
        """Both protocols: pixels and whether they are a hint, or a text."""
        if isinstance(given, str):
            self.texts.append(given)
            return {"context": torch.randn(8, CONTEXT, generator=generator_for("text", given))}
        self.pictures.append(is_hint)
        small = F.avg_pool2d(given, 8)
        mean = torch.cat([small, small.mean(1, keepdim=True)], 1) * 2 - (0 if is_hint else 1)
        return mean, torch.full_like(mean, 0.1)


def write_pairs(folder: Path, count: int = 6, size: tuple[int, int] = (64, 64), captions: bool = True) -> Path:
    """A folder with source/, target/ and captions; every picture is another."""
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 256, (size[1] // 16, size[0] // 16, 3), np.uint8)
        target = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
        hint = target.convert("L").point(lambda value: 255 * (value > 127)).convert("RGB")
        for name, picture in (("target", target), ("source", hint)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            picture.save(folder / name / f"{number:03d}.png")
        if captions:
            (folder / "target" / f"{number:03d}.txt").write_text(f"number {number}")
    return folder


def dataset_of(folder: Path, **settings: Any) -> PairDataset:
    """A dataset as the node finds it, 64 pixels unless told otherwise."""
    listing = find_pairs(folder, [folder.parent])
    chosen = DatasetSettings(**{"resolution": 64, **settings})
    return PairDataset(folder.name, folder, listing.pairs, listing.orphans, chosen)


def encoded(folder: Path, encoders: Encoders | None = None, **settings: Any) -> EncodedDataset:
    """A dataset with its cache in the folder."""
    encoders = encoders or Encoders()
    return encode_dataset(dataset_of(folder, **settings), encoders, encoders, TensorCache(folder / ".cache"), 1.0)


def tiny_run(
    work: Path, pairs: Path, hooks: Hooks | None = None, prediction: str = "eps", team: Team | None = None, **changes: Any
) -> Run:
    """A run in `work`, not yet resumed."""
    config = TrainConfig(**{**CONFIG.__dict__, **changes})
    dataset = encoded(pairs)
    trained, held_out = split_held_out(dataset.items, config.validation_pairs)
    base = tiny_base()
    backbone = TinyBackbone(prediction)
    method = CtrLoRAMethod(base, start_condition(base, config.rank, config.seed), HEADS)
    trainer = Trainer(method, backbone, config, team)
    batches = held_out_batches(dataset, held_out, config.seed, backbone.objective)
    if hooks is None:
        hooks = Hooks(on_save=lambda trainer: write_tensors(work / "lora.safetensors", published(trainer.result()), {}))
    return Run(
        trainer,
        PairSource(dataset, trained, config, backbone.objective),
        batches,
        StateStore(work / "lora.training", config.keep_states),
        MetricsFile(work / "lora.training" / "metrics.jsonl"),
        {"data": dataset.digest, "base": "tiny"},
        hooks,
    )
