"""ControlNet: the encoder of SD1.5, fed with the noisy latent, to which a few convolutions add the hint.

Source: arXiv:2302.05543, section 3; lllyasviel/ControlNet cldm/cldm.py (`ControlNet`).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .ctrlora import ControlEncoder, CtrLoRAConfig

HINT_CHANNELS = 3
HINT_LAYERS = ((16, 1), (16, 1), (32, 2), (32, 1), (96, 2), (96, 1), (256, 2))
"""Channels and stride of each convolution of the hint encoder; the last one, to the network's own width, follows."""
HINT_BLOCK = "input_hint_block."


class ControlNet(ControlEncoder):
    """The control network of the paper; keys as published.

    Args:
        config: From `read_config`.
        operations: Layer classes: `torch.nn`, or the host's casting ones.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(
        self,
        config: CtrLoRAConfig,
        operations: Any = nn,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(config, operations, device, dtype)
        widths = ((HINT_CHANNELS, 1), *HINT_LAYERS, (config.blocks[0].channels, 1))
        layers: list[nn.Module] = []
        for (before, _), (after, stride) in pairwise(widths):
            conv = operations.Conv2d(before, after, 3, stride=stride, padding=1, device=device, dtype=dtype)
            layers += [conv, nn.SiLU()]
        self.input_hint_block = nn.Sequential(*layers[:-1])  # nothing bends what the last one adds

    def forward(
        self, noisy: Tensor, hint: Tensor, timesteps: Tensor, context: Tensor, heads: int = 8, checkpointing: bool = False
    ) -> list[Tensor]:
        """The controls of a batch of hints.

        Args:
            noisy: (R, 4, h, w), as the diffusion model sees it.
            hint: (R, 3, 8h, 8w), pixels in [0, 1].
            timesteps: (R,).
            context: (R, L, D), text.
            heads: Of every attention; not visible in the files, SD1.5 has 8.
            checkpointing: For training: keep each block's input alone, and compute the block again in the backward pass.

        Returns:
            One (R, C, h', w') for each encoder block and one for the middle.
        """
        added = self.input_hint_block(hint)
        return self.controls(noisy, timesteps, context, heads, checkpointing=checkpointing, added=added)
