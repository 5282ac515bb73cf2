"""A diffusion model of shapes: small enough to be trained in minutes, so that ways to control it can be compared.

The host's own UNet at small width. A picture of 64 pixels is its own latent after pooling by 4: no VAE, and no text.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch
    from torch import Tensor

PIXELS, CELLS, MIDDLE, SCALE = 64, 16, 0.3, 4.0
CONTEXT = 768
"""Text width of SD1.5, by which the family is told; the text is always the same, zeros."""
UNET: dict[str, Any] = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "channel_mult": [1, 2],
    "num_res_blocks": [1, 1], "transformer_depth": [0, 1], "transformer_depth_middle": 1,
    "transformer_depth_output": [0, 0, 1, 1], "context_dim": CONTEXT, "num_heads": 4, "use_spatial_transformer": True,
    "legacy": False,
}  # fmt: skip
BATCH, RATE, AVERAGE = 16, 2e-3, 0.995
GROUND, COLORS = (0.1, 0.15, 0.3), ((0.95, 0.85, 0.3), (0.95, 0.5, 0.5), (0.6, 0.9, 0.95))
FAR = 0.5
"""Distance to the ground's colour above which a cell belongs to the shape, as a part of the picture's largest."""


def draw_shapes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures of a shape on a dark ground, and its outline.

    Args:
        count: N.
        generator: Draws colour, kind, place and size.

    Returns:
        (N, 3, 64, 64) in [0, 1], and the same for the hints: white lines of three pixels on black.
    """
    import torch
    from torch.nn import functional as F

    axis = torch.arange(PIXELS) + 0.5
    y, x = axis[:, None], axis[None, :]
    radius = (10 + 10 * torch.rand(count, generator=generator))[:, None, None]
    margin = radius + 1
    centre = [margin + (PIXELS - 2 * margin) * torch.rand(count, 1, 1, generator=generator) for _ in range(2)]
    kind = torch.randint(3, (count,), generator=generator)[:, None, None]
    dy, dx = (y - centre[0]) / radius, (x - centre[1]) / radius
    disc, square = dx**2 + dy**2 < 1, torch.maximum(dx.abs(), dy.abs()) < 0.85
    triangle = (dy < 0.8) & (2 * dx.abs() < (dy + 1))
    inside = torch.where(kind == 0, disc, torch.where(kind == 1, square, triangle))[:, None]
    chosen = torch.tensor(COLORS)[torch.randint(len(COLORS), (count,), generator=generator)]
    pictures = torch.where(inside, chosen[:, :, None, None], torch.tensor(GROUND)[None, :, None, None])
    labels = inside[:, 0]
    down = F.pad(labels[:, 1:] != labels[:, :-1], (0, 0, 0, 1))
    right = F.pad(labels[:, :, 1:] != labels[:, :, :-1], (0, 1))
    lines = F.max_pool2d((down | right).float()[:, None], 3, stride=1, padding=1)
    return pictures, lines.expand(-1, 3, -1, -1).contiguous()


def to_latents(pictures: Tensor) -> Tensor:
    """(N, 3, 64, 64) in [0, 1] to (N, 4, 16, 16) of about unit deviation: colours, and their mean."""
    import torch
    from torch.nn import functional as F

    small = (F.avg_pool2d(pictures, PIXELS // CELLS) - MIDDLE) * SCALE
    return torch.cat([small, small.mean(1, keepdim=True)], 1)


def to_pictures(latents: Tensor) -> Tensor:
    """(N, 4, 16, 16) to (N, 3, 16, 16) in [0, 1]."""
    return (latents[:, :3] / SCALE + MIDDLE).clamp(0, 1)


def shape_overlap(made: Tensor, wanted: Tensor) -> float:
    """How well the shapes in some latents cover those in others: intersection over union, from 0 to 1."""
    found, true = _shapes(made), _shapes(wanted)
    both, either = (found & true).sum((1, 2)), (found | true).sum((1, 2))
    return float((both / either.clamp(min=1)).mean())


def _shapes(latents: Tensor) -> Tensor:
    """(N, 16, 16): the cells whose colour is far from the picture's most common one, which is the ground's."""
    colors = to_pictures(latents)
    ground = colors.flatten(2).median(2).values[:, :, None, None]
    distance = (colors - ground).square().sum(1).sqrt()
    return distance > FAR * distance.amax((1, 2), keepdim=True)


def build_model(seed: int) -> Any:
    """The untrained model, as a loader of the host gives it."""
    import comfy.model_management
    import comfy.supported_models
    import torch
    from comfy.model_patcher import ModelPatcher

    arguments = {key: value[:] if isinstance(value, list) else value for key, value in UNET.items()}
    config = comfy.supported_models.SD15(arguments | {"dtype": torch.float32})
    config.unet_config["num_heads"] = UNET["num_heads"]  # the class of the family has its own
    torch.manual_seed(seed)
    model = config.get_model({}, "", device=None)
    for module in model.diffusion_model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):  # the host's layers leave their weights as they are
            torch.nn.init.kaiming_uniform_(module.weight, a=5**0.5)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
        elif isinstance(module, (torch.nn.GroupNorm, torch.nn.LayerNorm)):
            torch.nn.init.ones_(module.weight)
            torch.nn.init.zeros_(module.bias)
    torch.nn.init.zeros_(model.diffusion_model.out[2].weight)
    device = comfy.model_management.get_torch_device()
    return ModelPatcher(model.eval(), load_device=device, offload_device=device)


def train_model(steps: int, seed: int, kept: Path | None = None, say: Callable[[str], None] = print) -> Any:
    """The model, trained to make shapes by itself.

    Args:
        steps: Updates.
        seed: Of weights and data.
        kept: A file to keep its weights in; read if it is there.
        say: Takes a line of progress.

    Returns:
        A `ModelPatcher`.
    """
    import torch
    from nextcontrol.nodes.host.backbone import HostBackbone
    from nextcontrol.training.backbone import NO_CONTROL
    from safetensors.torch import load_file, save_file

    patcher = build_model(seed)
    unet = patcher.model.diffusion_model
    if kept is not None and kept.is_file():
        unet.load_state_dict(load_file(kept))
        return patcher
    backbone, average = HostBackbone(patcher), copy.deepcopy(unet)
    objective, generator = backbone.objective, torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(unet.requires_grad_().parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.05)
    for step in range(1, steps + 1):
        latents = to_latents(draw_shapes(BATCH, generator)[0]).to(backbone.device)
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        times = torch.cat([objective.draw(generator) for _ in range(BATCH)]).to(latents.device)
        seen, given = objective.network_input(objective.add_noise(latents, noise, times), times)
        predicted = backbone.predict(seen, given, empty_text(BATCH, latents.device), NO_CONTROL, {})
        loss = objective.loss(predicted, latents, noise, times, 0.0, {})
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for own, mean in zip(unet.parameters(), average.parameters(), strict=True):
                mean.lerp_(own, 1 - min(AVERAGE, step / (step + 10)))
        if step % 100 == 0 or step == steps:
            say(f"model of shapes: step {step} of {steps}, loss {loss.item():.3f}")
    unet.load_state_dict(average.state_dict())
    unet.requires_grad_(requires_grad=False)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: tensor.cpu() for key, tensor in unet.state_dict().items()}, kept)
    return patcher


def empty_text(count: int, device: Any = None) -> Tensor:
    """(N, 1, 768)."""
    import torch

    return torch.zeros(count, 1, CONTEXT, device=device)
