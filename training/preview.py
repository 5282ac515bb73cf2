"""What the condition in training draws: a few pictures with fixed noise, so that one looks at progress and not at luck."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .draws import generator_for
from .trainer import Trainer


@torch.no_grad()
def sample(
    trainer: Trainer,
    hints: Tensor,
    context: Tensor,
    empty: Tensor,
    seed: int,
    shape: Sequence[int],
    extras: Mapping[str, Tensor] | None = None,
    condition: str = "",
    empty_extras: Mapping[str, Tensor] | None = None,
    is_empty_controlled: bool = True,
) -> Tensor:
    """Guided sampling with the trainer's own networks.

    Args:
        trainer: Its weights are not changed, nor is anything that the next update depends on.
        hints: (B, ...), as the method reads them.
        context: (B, L, D), text; of clips one row each.
        empty: (1, L, D), the empty text.
        seed: Of the noise; row n has noise of its own.
        shape: (4, h, w), of a latent.
        extras: See `Batch.extras`.
        condition: Of the hints, where there are several.
        empty_extras: Those that belong to the empty text, one row each; what is not among them is the same without the text.
        is_empty_controlled: Whether the control also acts on the rows of the empty text.

    Returns:
        (B, 4, h, w), scaled latents.
    """
    config, device, count = trainer.config, trainer.backbone.device, len(hints)
    noise = [torch.randn(shape, generator=generator_for("preview", seed, row)) for row in range(count)]
    hints, told, untold = hints.to(device), context.to(device), empty.to(device).expand(len(context), -1, -1)
    own = {name: rows.to(device) for name, rows in (extras or {}).items()}
    without = own | {name: row.to(device).expand_as(own[name]) for name, row in (empty_extras or {}).items() if name in own}
    texts = torch.cat([told, untold])
    twice = {name: torch.cat([rows, without[name]]) for name, rows in own.items()}

    def predict(x: Tensor, levels: Tensor) -> Tensor:
        if is_empty_controlled:
            both = trainer.predict(
                torch.cat([x, x]), torch.cat([hints, hints]), torch.cat([levels, levels]), texts, twice, condition
            )
            guided, plain = both.float().split(count)
        else:
            guided = trainer.predict(x, hints, levels, told, own, condition).float()
            plain = trainer.predict(x, hints, levels, untold, without, condition, is_added=False).float()
        return plain + config.preview_guidance * (guided - plain)

    return trainer.backbone.objective.sample(predict, torch.stack(noise).to(device), config.preview_steps)


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
