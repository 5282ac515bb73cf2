"""The blocks of SD1.5's encoder, adapted by the conditions of the rows that run through them.

Source: arXiv:2112.10752; xyfJASON/ctrlora@b4422b4 ldm/modules/diffusionmodules/openaimodel.py, ldm/modules/attention.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .adapted import GROUPS, TRANSFORMER_EPSILON, Group, adapted_linear, group_norm, layer_norm, replaced_by_group


@dataclass(frozen=True)
class Block:
    """One encoder block, as read from its tensors."""

    kind: str
    """"conv", "down" or "res"."""
    in_channels: int
    channels: int
    depth: int = 0
    """Transformer blocks behind the residual block."""


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


class Downsample(nn.Module):
    """A 3x3 convolution with stride 2."""

    def __init__(self, channels: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.op = operations.Conv2d(channels, channels, 3, stride=2, padding=1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the sides of (R, C, h, w), rounding up."""
        return self.op(x)
