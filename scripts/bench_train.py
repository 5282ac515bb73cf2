"""A step of CtrLoRA's training in full size: ours over a plain transcription of the reference's. Latent 32x32, batch 1, fp32.

The reference's step encodes both pictures every time, builds the graph of the whole UNet, and collects gradients of weights
that are never trained. Each kind runs in a process of its own, so that its peak of memory is its own.

Source: xyfJASON/ctrlora@b4422b4 cldm/cldm.py, ldm/models/diffusion/ddpm.py.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench_kit import UNCOUNTED, fill, timed
from bench_sd15 import build_base, build_model

if TYPE_CHECKING:
    from collections.abc import Callable

SIDE, RANK, SCALE = 256, 128, 0.18215


def measure(steps: int) -> None:
    """Ratios of time and peak memory, and the seconds that saving a state takes."""
    found = {kind: _in_a_process(kind, steps) for kind in ("ours", "reference")}
    for title, key in (("time", "seconds"), ("peak memory", "megabytes")):
        ours, theirs = (found[kind][key] for kind in ("ours", "reference"))
        print(f"{title} of a step: ours {ours:.2f}, the reference's {theirs:.2f}: {ours / theirs:.3f}", flush=True)
    print(f"saving a state of rank {RANK}: {found['ours']['save']:.2f} s", flush=True)


def _in_a_process(kind: str, steps: int) -> dict[str, float]:
    """What `_run` finds, in a copy of this process; nothing has been computed here yet, so that it may be copied."""
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        with os.fdopen(read, encoding="utf-8") as stream:
            text = stream.read()
        if os.waitpid(child, 0)[1]:
            sys.exit(f"bench_train.py: the {kind} step failed, its message is above.")
        return json.loads(text)
    status = 1
    try:
        result = _run(kind, steps)
        with os.fdopen(write, "w", encoding="utf-8") as stream:
            json.dump(result, stream)
        status = 0
    finally:
        if status:
            import traceback

            traceback.print_exc()
        os._exit(status)


def _run(kind: str, steps: int) -> dict[str, float]:
    import torch
    from nextcontrol.nodes.host.backbone import training_mode

    torch.manual_seed(0)
    model, base = build_model(), build_base()
    with training_mode([model, base.network], is_cast=True):
        trainer = _build_trainer(model, base)
        step = _our_step(trainer) if kind == "ours" else _reference_step(trainer)
        seconds = [timed(step, number) for number in range(steps + UNCOUNTED)][UNCOUNTED:]
        peak = _peak_megabytes(trainer.backbone.device)
        return {"seconds": statistics.median(seconds), "megabytes": peak, "save": _save(trainer)}


def _build_trainer(model: Any, base: Any) -> Any:
    from nextcontrol.nodes.host.backbone import HostBackbone
    from nextcontrol.training.config import TrainConfig
    from nextcontrol.training.method_ctrlora import CtrLoRAMethod
    from nextcontrol.training.trainable import start_condition
    from nextcontrol.training.trainer import Trainer

    backbone = HostBackbone(model)
    condition = start_condition(base.network.model, RANK, 0, backbone.device)
    return Trainer(CtrLoRAMethod(base.network.model, condition), backbone, TrainConfig(rank=RANK))


def _our_step(trainer: Any) -> Callable[[float], Any]:
    """Latents come from the cache: mean and deviation of both pictures, drawn from anew."""
    import torch
    from nextcontrol.training.backbone import Batch

    shape = (1, 4, SIDE // 8, SIDE // 8)
    kept = [(torch.randn(shape), torch.rand(shape)) for _ in range(2)]
    text = torch.randn(1, 77, 768)

    def step(number: float) -> None:
        latents, hints = (SCALE * (mean + deviation * torch.randn(shape)) for mean, deviation in kept)
        times = torch.tensor([int(number * 37) % 1000])
        trainer.update([Batch(latents, hints, text, torch.randn(shape), times, ("x",))])

    return step


def _reference_step(trainer: Any) -> Callable[[float], Any]:
    """Everything has gradients, the optimizer forgets its own alone, the VAE works at every step."""
    import torch
    from comfy.ldm.modules.diffusionmodules.model import Encoder
    from nextcontrol.models.adapted import Group
    from nextcontrol.training.objective import add_noise

    device, unet = trainer.backbone.device, trainer.backbone.unet
    encoder = fill(
        Encoder(
            ch=128,
            out_ch=3,
            ch_mult=(1, 2, 4, 4),
            num_res_blocks=2,
            attn_resolutions=[],
            in_channels=3,
            resolution=SIDE,
            z_channels=4,
            double_z=True,
        )
    ).to(device)
    for network in (unet, trainer.method.base):
        network.requires_grad_(requires_grad=True)
    pictures = [torch.rand(1, 3, SIDE, SIDE, device=device) for _ in range(2)]
    text = torch.randn(1, 77, 768, device=device)

    def encode(pixels: Any) -> Any:
        with torch.no_grad():
            mean, log_variance = encoder(pixels).chunk(2, dim=1)
            return SCALE * (mean + (0.5 * log_variance.clamp(-30, 20)).exp() * torch.randn_like(mean))

    groups = [Group(trainer.method.condition, 1.0, 1)]

    def step(number: float) -> None:
        latents, hints = encode(pictures[0] * 2 - 1), encode(pictures[1])
        times = torch.tensor([int(number * 37) % 1000], device=device)
        noise = torch.randn_like(latents)
        noisy = add_noise(latents, noise, times, trainer.backbone.objective.alphas)
        prediction = _whole_unet(unet, noisy, times, text, trainer.method.base(hints, times.float(), text, groups=groups))
        (prediction - noise).square().mean().backward()
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return step


def _whole_unet(unet: Any, x: Any, times: Any, text: Any, controls: list[Any]) -> Any:
    """The UNet with the graph of its encoder."""
    import torch
    from comfy.ldm.modules.diffusionmodules.openaimodel import forward_timestep_embed
    from comfy.ldm.modules.diffusionmodules.util import timestep_embedding
    from nextcontrol.nodes.host.backbone import plain_attention

    options = {"optimized_attention_override": plain_attention}
    embedding = unet.time_embed(timestep_embedding(times, unet.model_channels))
    skips = []
    for block in unet.input_blocks:
        x = forward_timestep_embed(block, x, embedding, text, options)
        skips.append(x)
    x = forward_timestep_embed(unet.middle_block, x, embedding, text, options) + controls[-1]
    for block, control in zip(unet.output_blocks, reversed(controls[:-1]), strict=True):
        x = torch.cat([x, skips.pop() + control], dim=1)
        x = forward_timestep_embed(block, x, embedding, text, options, skips[-1].shape if skips else None)
    return unet.out(x)


def _save(trainer: Any) -> float:
    """Seconds for a whole state, on the disk."""
    from nextcontrol.training.checkpoint import StateStore

    if not trainer.losses:
        return 0.0
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        StateStore(Path(folder), 1).save(trainer.state())
        return time.perf_counter() - start


def _peak_megabytes(device: Any) -> float:
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
