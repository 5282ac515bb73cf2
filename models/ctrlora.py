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

from .adapted import GROUPS, TRANSFORMER_EPSILON, Group, adapted_linear, group_norm, layer_norm, replaced_by_group
from .controlnext import timestep_features


@dataclass(frozen=True)
class Block:
    """One encoder block, as read from its tensors."""

    kind: str
    """"conv", "down" or "res"."""
    in_channels: int
    channels: int
    depth: int = 0
    """Transformer blocks behind the residual block."""


@dataclass(frozen=True)
class CtrLoRAConfig:
    """The sizes of a base, as read from its tensors."""

    blocks: tuple[Block, ...]
    middle: Block
    time_width: int
    context_width: int


class Attention(nn.Module):
    """Multi-head attention, its four products adapted."""

    def __init__(self, channels: int, context_width: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.to_q = operations.Linear(channels, channels, bias=False, **factory)
        self.to_k = operations.Linear(context_width, channels, bias=False, **factory)
        self.to_v = operations.Linear(context_width, channels, bias=False, **factory)
        self.to_out = nn.Sequential(operations.Linear(channels, channels, **factory))

    def forward(self, x: Tensor, context: Tensor, groups: Sequence[Group], heads: int) -> Tensor:
        """Map tokens (R, T, C) and context (R, L, D) to (R, T, C)."""
        query, key, value = (
            adapted_linear(layer, tokens, groups).unflatten(-1, (heads, -1)).transpose(1, 2)
            for layer, tokens in ((self.to_q, x), (self.to_k, context), (self.to_v, context))
        )
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return adapted_linear(self.to_out[0], attended, groups)


class FeedForward(nn.Module):
    """GEGLU: half of the first product gates the other."""

    def __init__(self, channels: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        gate = nn.Module()
        gate.proj = operations.Linear(channels, 8 * channels, **factory)
        self.net = nn.Sequential(gate, nn.Identity(), operations.Linear(4 * channels, channels, **factory))

    def forward(self, x: Tensor, groups: Sequence[Group]) -> Tensor:
        """Map tokens (R, T, C) to (R, T, C)."""
        value, gate = adapted_linear(self.net[0].proj, x, groups).chunk(2, dim=-1)
        return adapted_linear(self.net[2], value * F.gelu(gate), groups)


class TransformerBlock(nn.Module):
    """Self-attention, attention to the text, feed-forward; in the reference's order of registration, which numbers LoRAs."""

    def __init__(self, channels: int, context_width: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.attn1 = Attention(channels, channels, operations, **factory)
        self.ff = FeedForward(channels, operations, **factory)
        self.attn2 = Attention(channels, context_width, operations, **factory)
        self.norm1 = operations.LayerNorm(channels, **factory)
        self.norm2 = operations.LayerNorm(channels, **factory)
        self.norm3 = operations.LayerNorm(channels, **factory)

    def forward(self, x: Tensor, context: Tensor, groups: Sequence[Group], heads: int) -> Tensor:
        """Map tokens (R, T, C) and text (R, L, D) to (R, T, C)."""
        own = replaced_by_group(self.norm1, x, groups, layer_norm)
        x = x + self.attn1(own, own, groups, heads)
        x = x + self.attn2(replaced_by_group(self.norm2, x, groups, layer_norm), context, groups, heads)
        return x + self.ff(replaced_by_group(self.norm3, x, groups, layer_norm), groups)


class SpatialTransformer(nn.Module):
    """Transformer blocks over the cells of a map."""

    def __init__(self, channels: int, depth: int, context_width: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.norm = operations.GroupNorm(GROUPS, channels, eps=TRANSFORMER_EPSILON, **factory)
        self.proj_in = operations.Conv2d(channels, channels, 1, **factory)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, context_width, operations, **factory) for _ in range(depth)
        )
        self.proj_out = operations.Conv2d(channels, channels, 1, **factory)

    def forward(self, x: Tensor, context: Tensor, groups: Sequence[Group], heads: int) -> Tensor:
        """Map (R, C, h, w) and text (R, L, D) to (R, C, h, w)."""
        projected = self.proj_in(replaced_by_group(self.norm, x, groups, group_norm))
        tokens = projected.flatten(2).transpose(1, 2)  # BCHW -> B(HW)C
        for block in self.transformer_blocks:
            tokens = block(tokens, context, groups, heads)
        return x + self.proj_out(tokens.transpose(1, 2).unflatten(2, x.shape[-2:]))


class ResBlock(nn.Module):
    """Two convolutions with the time embedding between them."""

    def __init__(self, block: Block, time_width: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        c_in, c_out = block.in_channels, block.channels
        conv = operations.Conv2d
        self.in_layers = nn.Sequential(
            operations.GroupNorm(GROUPS, c_in, **factory), nn.SiLU(), conv(c_in, c_out, 3, padding=1, **factory)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), operations.Linear(time_width, c_out, **factory))
        self.out_layers = nn.Sequential(
            operations.GroupNorm(GROUPS, c_out, **factory),
            nn.SiLU(),
            nn.Identity(),
            conv(c_out, c_out, 3, padding=1, **factory),
        )
        self.skip_connection = nn.Identity() if c_in == c_out else conv(c_in, c_out, 1, **factory)

    def forward(self, x: Tensor, embedding: Tensor, groups: Sequence[Group]) -> Tensor:
        """Map (R, C_in, h, w) and the embedding (R, time_width) to (R, C_out, h, w)."""
        hidden = self.in_layers(x)
        hidden = hidden + adapted_linear(self.emb_layers[1], self.emb_layers[0](embedding), groups)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(hidden)


class CtrLoRA(nn.Module):
    """The Base ControlNet: SD1.5's control network without a hint block, fed with the latent of the hint.

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
            if next(module.parameters(recurse=False), None) is not None:
                module.name = name

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
            timesteps: (R,).
            context: (R, L, D), text.
            heads: Of every attention; not visible in the files, SD1.5 has 8.
            groups: Conditions and how many rows each has, in order; None for the plain base.
            checkpointing: For training: keep each block's input alone, and compute the block again in the backward pass.

        Returns:
            One (R, C, h', w') for each encoder block and one for the middle.
        """
        groups = [Group(None, 0.0, len(hint))] if groups is None else groups
        features = timestep_features(timesteps, self.config.blocks[0].channels).to(hint.dtype)
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

        x, controls = hint, []
        for block, zero_conv in zip(self.input_blocks, self.zero_convs, strict=True):
            x = checkpoint(run, block, x, use_reentrant=False) if checkpointing else run(block, x)
            controls.append(replaced_by_group(zero_conv[0], x, groups, F.conv2d))  # type: ignore[index]
        middle = self.middle_block
        x = checkpoint(run, middle, x, use_reentrant=False) if checkpointing else run(middle, x)
        return [*controls, replaced_by_group(self.middle_block_out[0], x, groups, F.conv2d)]


class Downsample(nn.Module):
    """A 3x3 convolution with stride 2."""

    def __init__(self, channels: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.op = operations.Conv2d(channels, channels, 3, stride=2, padding=1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the sides of (R, C, h, w), rounding up."""
        return self.op(x)


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
    """
    blocks: list[Block] = []
    while any(key.startswith(f"input_blocks.{len(blocks)}.") for key in shapes):
        blocks.append(_read_block(shapes, f"input_blocks.{len(blocks)}"))
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
    return Block("res", shape[1], shape[0], depth)
