"""What the condition in training draws: a few pictures with fixed noise, so that one looks at progress and not at luck."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from .draws import generator_for
from .trainer import Trainer


@torch.no_grad()
def sample(trainer: Trainer, hints: Tensor, context: Tensor, empty: Tensor, seed: int) -> Tensor:
    """DDIM without added noise, guided, with the trainer's own networks.

    Args:
        trainer: Its weights are not changed, nor is anything that the next update depends on.
        hints: (B, 4, h, w), scaled latents of the hints.
        context: (B, L, D), text.
        empty: (1, L, D), the empty text.
        seed: Of the noise; row n has noise of its own.

    Returns:
        (B, 4, h, w), scaled latents.

    Source: arXiv:2010.02502, equation 12.
    """
    backbone, config = trainer.backbone, trainer.config
    device, count = backbone.device, len(hints)
    noise = [torch.randn(hints.shape[1:], generator=generator_for("preview", seed, row)) for row in range(count)]
    x = torch.stack(noise).to(device)
    hints, context = hints.to(device), torch.cat([context, empty.expand(count, -1, -1)]).to(device)
    places = torch.linspace(len(backbone.alphas) - 1, 0, config.preview_steps + 1).round().long().tolist()
    for now, later in itertools.pairwise(places):
        timesteps = torch.full((2 * count,), now, device=device)
        both = trainer.predict(torch.cat([x, x]), torch.cat([hints, hints]), timesteps, context).float()
        guided = both[count:] + config.preview_guidance * (both[:count] - both[count:])
        signal, spread = (float(part) ** 0.5 for part in (backbone.alphas[now], 1 - backbone.alphas[now]))
        if backbone.prediction == "v":
            clean, guided = signal * x - spread * guided, spread * x + signal * guided
        else:
            clean = (x - spread * guided) / signal
        x = float(backbone.alphas[later]) ** 0.5 * clean + float(1 - backbone.alphas[later]) ** 0.5 * guided
    return clean


def grid(rows: list[list[Tensor]], side: int = 256) -> Tensor:
    """Pictures side by side.

    Args:
        rows: Each of as many (3, H, W) in [0, 1]; sizes may differ.
        side: Of a cell, in pixels.

    Returns:
        (3, rows * side, columns * side); a picture keeps its shape within its cell.
    """
    return torch.cat([torch.cat([_cell(picture, side) for picture in row], 2) for row in rows], 1)


def _cell(picture: Tensor, side: int) -> Tensor:
    height, width = picture.shape[1:]
    scale = side / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    small = torch.nn.functional.interpolate(picture[None].float().cpu(), size, mode="bilinear", antialias=True)[0].clamp(0, 1)
    cell = torch.zeros(3, side, side)
    top, left = (side - size[0]) // 2, (side - size[1]) // 2
    cell[:, top : top + size[0], left : left + size[1]] = small
    return cell
