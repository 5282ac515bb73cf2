"""The CtrLoRA control network: one shared base, and any number of conditions that run through it together.

Source: arXiv:2410.09400; xyfJASON/ctrlora@b4422b4 cldm/cldm.py, cldm/lora.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .adapted import Group, adapted_linear, replaced_by_group
from .control_blocks import Block, Downsample, ResBlock, SpatialTransformer
from .controlnext import timestep_features

MOST_BLOCKS = 32
"""Encoder blocks; SD1.5 has 12."""
MOST_DEPTH = 16
"""Transformer blocks in an encoder block; SD1.5 has 1, SDXL up to 10."""


@dataclass(frozen=True)
class CtrLoRAConfig:
    """The sizes of a base, as read from its tensors."""

    blocks: tuple[Block, ...]
    middle: Block
    time_width: int
    context_width: int


class ControlEncoder(nn.Module):
    """SD1.5's encoder with a zero convolution for the output of each block: what all control networks here are made of.

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
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.config = config
        first = config.blocks[0]
        width = config.time_width
        self.time_embed = nn.Sequential(
            operations.Linear(first.channels, width, **factory), nn.SiLU(), operations.Linear(width, width, **factory)
        )
        self.input_blocks = nn.ModuleList(
            nn.ModuleList(_layers(block, config, operations, **factory)) for block in config.blocks
        )
        middle = config.middle
        self.middle_block = nn.ModuleList([
            *_layers(middle, config, operations, **factory), ResBlock(middle, width, operations, **factory)
        ])  # fmt: skip
        self.zero_convs = nn.ModuleList(
            nn.Sequential(operations.Conv2d(block.channels, block.channels, 1, **factory)) for block in config.blocks
        )
        self.middle_block_out = nn.Sequential(operations.Conv2d(middle.channels, middle.channels, 1, **factory))
        for name, module in self.named_modules():
            # Every leaf, with parameters or not: under dynamic VRAM the host's layers have none before they are loaded.
            if next(module.children(), None) is None:
                module.name = name

    def controls(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        heads: int,
        groups: Sequence[Group] | None = None,
        checkpointing: bool = False,
        added: Tensor | None = None,
    ) -> list[Tensor]:
        """What the zero convolutions make of each block's output.

        Args:
            x: (R, 4, h, w), what the first block reads.
            timesteps: (R,).
            context: (R, L, D), text.
            heads: Of every attention; not visible in the files, SD1.5 has 8.
            groups: Conditions and how many rows each has, in order; None for the plain network.
            checkpointing: For training: keep each block's input alone, and compute the block again in the backward pass.
            added: (R, C, h, w), added to the output of the first block.

        Returns:
            One (R, C, h', w') for each encoder block and one for the middle.
        """
        groups = [Group(None, 0.0, len(x))] if groups is None else groups
        features = timestep_features(timesteps, self.config.blocks[0].channels).to(x.dtype)
        embedding = F.silu(adapted_linear(self.time_embed[0], features, groups))
        embedding = adapted_linear(self.time_embed[2], embedding, groups)

        def run(layers: Any, x: Tensor) -> Tensor:
            for layer in layers:
                if isinstance(layer, ResBlock):
                    x = layer(x, embedding, groups)
                elif isinstance(layer, SpatialTransformer):
                    x = layer(x, context, groups, heads)
                else:
                    x = layer(x)
            return x

        controls = []
        for block, zero_conv in zip(self.input_blocks, self.zero_convs, strict=True):
            x = checkpoint(run, block, x, use_reentrant=False) if checkpointing else run(block, x)
            if added is not None:
                x, added = x + added, None
            controls.append(replaced_by_group(zero_conv[0], x, groups, F.conv2d))  # type: ignore[index]
        middle = self.middle_block
        x = checkpoint(run, middle, x, use_reentrant=False) if checkpointing else run(middle, x)
        return [*controls, replaced_by_group(self.middle_block_out[0], x, groups, F.conv2d)]


class CtrLoRA(ControlEncoder):
    """The Base ControlNet: SD1.5's control network without a hint block, fed with the latent of the hint."""

    def forward(
        self,
        hint: Tensor,
        timesteps: Tensor,
        context: Tensor,
        heads: int = 8,
        groups: Sequence[Group] | None = None,
        checkpointing: bool = False,
    ) -> list[Tensor]:
        """The controls of a batch of rows, each of one condition.

        Args:
            hint: (R, 4, h, w), scaled latents of the hints.
            timesteps: See `ControlEncoder.controls`, as all that follow.
            context: Text.
            heads: Of every attention.
            groups: Conditions.
            checkpointing: For training.

        Returns:
            One (R, C, h', w') for each encoder block and one for the middle.
        """
        return self.controls(hint, timesteps, context, heads, groups, checkpointing)


def _layers(block: Block, config: CtrLoRAConfig, operations: Any, **factory: Any) -> list[nn.Module]:
    if block.kind == "conv":
        return [operations.Conv2d(block.in_channels, block.channels, 3, padding=1, **factory)]
    if block.kind == "down":
        return [Downsample(block.channels, operations, **factory)]
    layers: list[nn.Module] = [ResBlock(block, config.time_width, operations, **factory)]
    if block.depth:
        layers.append(SpatialTransformer(block.channels, block.depth, config.context_width, operations, **factory))
    return layers


def read_config(shapes: Mapping[str, tuple[int, ...]]) -> CtrLoRAConfig:
    """Read the sizes of a base from the shapes of its tensors.

    Args:
        shapes: Key to shape, without `control_model.`.

    Returns:
        The configuration whose network has these shapes, if there is one.

    Raises:
        KeyError: A tensor that fixes a size is missing.
        IndexError: One has too few dimensions.
        ValueError: There are more blocks, or blocks in a block, than any such network has.
    """
    numbers = {key.split(".", 2)[1] for key in shapes if key.startswith("input_blocks.")}
    blocks: list[Block] = []
    while str(len(blocks)) in numbers:
        if len(blocks) == MOST_BLOCKS:
            raise ValueError(f"it has more than {MOST_BLOCKS} blocks")
        blocks.append(_read_block(shapes, f"input_blocks.{len(blocks)}"))
    if not blocks:
        raise KeyError("input_blocks.0.0.weight")
    contexts = (shape[1] for key, shape in shapes.items() if key.endswith("attn2.to_k.weight"))
    return CtrLoRAConfig(
        blocks=tuple(blocks),
        middle=_read_block(shapes, "middle_block"),
        time_width=shapes["time_embed.0.weight"][0],
        context_width=next(contexts, 0),
    )


def _read_block(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> Block:
    if f"{prefix}.0.op.weight" in shapes:
        channels = shapes[f"{prefix}.0.op.weight"][0]
        return Block("down", channels, channels)
    if f"{prefix}.0.weight" in shapes:
        shape = shapes[f"{prefix}.0.weight"]
        return Block("conv", shape[1], shape[0])
    shape = shapes[f"{prefix}.0.in_layers.2.weight"]
    depth = 0
    while f"{prefix}.1.transformer_blocks.{depth}.norm1.weight" in shapes:
        depth += 1
        if depth > MOST_DEPTH:
            raise ValueError(f"'{prefix}' has more than {MOST_DEPTH} transformer blocks")
    return Block("res", shape[1], shape[0], depth)
