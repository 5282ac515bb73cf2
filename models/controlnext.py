"""The ControlNeXt control module: a picture and a timestep in, one control tensor out.

Source: arXiv:2408.06070; dvlab-research/ControlNeXt@ab4b3ac, its five module classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

COLORS = 3
MOST_BLOCKS = 16  # published modules have 2 and 3
RESIDUAL_EPSILON = 1e-6  # GroupNorm inside residual blocks; stem and mid convolutions keep torch's 1e-5


@dataclass(frozen=True)
class ControlNeXtConfig:
    """Everything that distinguishes one control module from another, as read from its tensors.

    Group counts are not visible in shapes; they follow from the position, as in every published generation.
    """

    stem: tuple[int, ...]
    """Channels after each of the three stem convolutions, empty without a stem (generation 1)."""
    blocks: tuple[tuple[int, int], ...]
    """Channels in and out of each residual block; a stride-2 convolution follows every block."""
    mid: int
    """Channels between the two middle convolutions."""
    out: int
    """Channels of the control."""
    time_features: int
    """Width of the sinusoidal features."""
    time_width: int
    """Width of the time embedding."""
    has_stem_pool: bool
    """A 2x2 maximum pool closes the stem (generation 2)."""
    has_mid_norm: bool
    """GroupNorm after both middle convolutions (generations 2 and 3)."""
    has_scale: bool
    """The file carries a learned scale (`sd15_v0`, `svd_v1`)."""

    @property
    def generation(self) -> int:
        """1 (SD1.5 of June 2024), 2 (SVD v1) or 3 (all later modules)."""
        if not self.stem:
            return 1
        return 2 if self.has_stem_pool else 3

    @property
    def stride(self) -> int:
        """Pixels per control cell, with a padded stem."""
        return (2 if self.stem else 1) * (2 if self.has_stem_pool else 1) * 2 ** len(self.blocks)

    def narrowed(self, factor: float) -> ControlNeXtConfig:
        """The same with that multiple of the channels; colours in and control out are as they are."""
        stem = tuple(round(factor * width) for width in self.stem)
        widths = [(first if first == COLORS else round(factor * first), round(factor * last)) for first, last in self.blocks]
        mid, features, time_width = (round(factor * width) for width in (self.mid, self.time_features, self.time_width))
        return replace(self, stem=stem, blocks=tuple(widths), mid=mid, time_features=features, time_width=time_width)


GENERATIONS = (
    ControlNeXtConfig((), ((3, 128), (128, 256), (256, 256)), 256, 1280, 128, 256, False, False, True),
    ControlNeXtConfig((64, 64, 128), ((128, 128), (128, 256), (256, 256)), 256, 1280, 128, 256, True, True, True),
    ControlNeXtConfig((64, 64, 128), ((128, 128), (128, 256)), 256, 320, 128, 256, False, True, False),
)
"""The published sizes of generations 1, 2 and 3."""


class HintFeatures(NamedTuple):
    """The part of the network that the timestep does not reach, for each hint."""

    shortcut: Tensor
    """(N, C, h, w), what the first residual block adds back."""
    hidden: Tensor
    """(N, C', h, w), the first block up to where the time embedding enters."""


def timestep_features(timesteps: Tensor, width: int) -> Tensor:
    """Sinusoids of a timestep, cosines first.

    Args:
        timesteps: (N,), the model's own index (0.25 ln sigma for SVD).
        width: Even number of features.

    Returns:
        (N, width), fp32.

    Source: diffusers 0.30.3 `Timesteps(flip_sin_to_cos=True, downscale_freq_shift=0)`.
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32, device=timesteps.device) * (-math.log(10000) / half))
    angles = timesteps.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """Two linear layers over the sinusoidal features."""

    def __init__(self, config: ControlNeXtConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.linear_1 = operations.Linear(config.time_features, config.time_width, **factory)
        self.linear_2 = operations.Linear(config.time_width, config.time_width, **factory)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, time_features) to (N, time_width)."""
        return self.linear_2(F.silu(self.linear_1(features)))


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, convolution, time, GroupNorm, SiLU, convolution, and a shortcut.

    The forward pass is in two halves, so that the half before the time embedding can be kept between steps.
    """

    def __init__(
        self, in_channels: int, out_channels: int, groups: int, time_width: int, operations: Any, **factory: Any
    ) -> None:
        super().__init__()
        self.norm1 = operations.GroupNorm(groups, in_channels, eps=RESIDUAL_EPSILON, **factory)
        self.conv1 = operations.Conv2d(in_channels, out_channels, 3, padding=1, **factory)
        self.time_emb_proj = operations.Linear(time_width, out_channels, **factory)
        self.norm2 = operations.GroupNorm(groups, out_channels, eps=RESIDUAL_EPSILON, **factory)
        self.conv2 = operations.Conv2d(out_channels, out_channels, 3, padding=1, **factory)
        self.conv_shortcut = operations.Conv2d(in_channels, out_channels, 1, **factory) if in_channels != out_channels else None

    def before_time(self, x: Tensor) -> Tensor:
        """The first convolution: (N, C_in, H, W) to (N, C_out, H, W)."""
        return self.conv1(F.silu(self.norm1(x)))

    def after_time(self, x: Tensor, hidden: Tensor, embedding: Tensor) -> Tensor:
        """The rest, given `hidden = before_time(x)` and the embedding (N, time_width)."""
        hidden = hidden + self.time_emb_proj(F.silu(embedding))[:, :, None, None]
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return hidden + (x if self.conv_shortcut is None else self.conv_shortcut(x))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map (N, C_in, H, W) and (N, time_width) to (N, C_out, H, W)."""
        return self.after_time(x, self.before_time(x), embedding)


class Downsample(nn.Module):
    """A 3x3 convolution with stride 2; sides become ceil(n / 2)."""

    def __init__(self, channels: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, stride=2, padding=1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the sides of (N, C, H, W)."""
        return self.conv(x)


class ControlNeXt(nn.Module):
    """The control module of every published generation, in every width.

    Args:
        config: Read from a state dict by `read_config`, or made by hand.
        stem_padding: 0 or 1, the padding of the second and third stem convolutions. Not visible in the file.
        operations: Layer classes: `torch.nn`, or the host's casting ones.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(
        self,
        config: ControlNeXtConfig,
        stem_padding: int = 1,
        operations: Any = nn,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.config = config
        self.stem_padding = stem_padding
        self.time_embedding = TimeEmbedding(config, operations, **factory)
        self.embedding = _build_stem(config, stem_padding, operations, **factory) if config.stem else None
        first_groups = 4 if config.stem else 1  # without a stem the first block sees the three colour channels
        self.down_res = nn.ModuleList(
            ResidualBlock(c_in, c_out, first_groups if i == 0 else 8, config.time_width, operations, **factory)
            for i, (c_in, c_out) in enumerate(config.blocks)
        )
        self.down_sample = nn.ModuleList(Downsample(c_out, operations, **factory) for _, c_out in config.blocks)
        self.mid_convs = nn.ModuleList(
            [
                _build_mid(config, operations, **factory),
                operations.Conv2d(config.mid, config.out, 1, **factory),
            ]
        )
        self.scale = nn.Parameter(torch.ones((), device=device, dtype=dtype)) if config.has_scale else None

    def read_hint(self, hint: Tensor) -> HintFeatures:
        """Everything that does not depend on the timestep: a third of the work.

        Args:
            hint: (N, 3, H, W), RGB in [0, 1].

        Returns:
            The two tensors that `control_at` continues from.
        """
        x = hint if self.embedding is None else self.embedding(hint)
        return HintFeatures(x, self.down_res[0].before_time(x))  # type: ignore[operator]

    def control_at(self, features: HintFeatures, timesteps: Tensor) -> Tensor:
        """The control for hints already read.

        Args:
            features: From `read_hint`, N rows.
            timesteps: (N,).

        Returns:
            (N, out, H / stride, W / stride).
        """
        x, hidden = features
        embedding = self.time_embedding(timestep_features(timesteps, self.config.time_features).to(x.dtype))
        x = self.down_sample[0](self.down_res[0].after_time(x, hidden, embedding))  # type: ignore[operator]
        for block, downsample in zip(self.down_res[1:], self.down_sample[1:], strict=True):
            x = downsample(block(x, embedding))
        x = x + self.mid_convs[0](x) if self.config.has_mid_norm else self.mid_convs[0](x)
        return self.mid_convs[1](x)

    def forward(self, hint: Tensor, timesteps: Tensor) -> Tensor:
        """Map hints (N, 3, H, W) in [0, 1] and timesteps (N,) to controls (N, out, h, w)."""
        return self.control_at(self.read_hint(hint), timesteps)


def _build_stem(config: ControlNeXtConfig, padding: int, operations: Any, **factory: Any) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (c_in, c_out) in enumerate(zip((COLORS, *config.stem), config.stem, strict=False)):
        conv = operations.Conv2d(c_in, c_out, 3, stride=1 if i else 2, padding=padding if i else 1, **factory)
        layers += [conv, operations.GroupNorm(2, c_out, **factory), nn.ReLU()]
    if config.has_stem_pool:
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def _build_mid(config: ControlNeXtConfig, operations: Any, **factory: Any) -> nn.Sequential:
    def conv() -> nn.Module:
        return operations.Conv2d(config.mid, config.mid, 3, padding=1, **factory)

    def norm() -> nn.Module:
        return operations.GroupNorm(8, config.mid, **factory)

    if config.has_mid_norm:
        return nn.Sequential(conv(), nn.ReLU(), norm(), conv(), norm())
    return nn.Sequential(conv(), nn.ReLU(), conv())


def read_config(shapes: Mapping[str, tuple[int, ...]]) -> ControlNeXtConfig:
    """Read the sizes of a control module from the shapes of its tensors.

    Args:
        shapes: Key to shape, keys as published.

    Returns:
        The configuration whose module has these shapes, if there is one.

    Raises:
        KeyError: A tensor that fixes a size is missing.
        IndexError: One has too few dimensions.
        ValueError: There are more blocks than any such module has.
    """
    count = 0
    while f"down_res.{count}.conv1.weight" in shapes:
        count += 1
        if count > MOST_BLOCKS:
            raise ValueError(f"more than {MOST_BLOCKS} blocks")
    block_shapes = [shapes[f"down_res.{i}.conv1.weight"] for i in range(max(count, 1))]
    stem = tuple(shapes[f"embedding.{i}.weight"][0] for i in (0, 3, 6)) if "embedding.0.weight" in shapes else ()
    return ControlNeXtConfig(
        stem=stem,
        blocks=tuple((shape[1], shape[0]) for shape in block_shapes),
        mid=shapes["mid_convs.0.0.weight"][0],
        out=shapes["mid_convs.1.weight"][0],
        time_features=shapes["time_embedding.linear_1.weight"][1],
        time_width=shapes["time_embedding.linear_1.weight"][0],
        # The pool has no tensors: only the generation with three blocks behind a stem has one.
        has_stem_pool=bool(stem) and count >= 3,
        has_mid_norm="mid_convs.0.3.weight" in shapes,
        has_scale="scale" in shapes,
    )


def load_controlnext(state_dict: Mapping[str, Tensor], stem_padding: int = 1, operations: Any = nn) -> ControlNeXt:
    """Build the module that a state dict belongs to and give it those tensors, without copying them.

    Args:
        state_dict: Keys as published, no prefix.
        stem_padding: See `ControlNeXt`.
        operations: See `ControlNeXt`.

    Returns:
        The module in evaluation mode, without gradients, sharing memory with `state_dict`.

    Raises:
        KeyError: A tensor that fixes a size is missing.
        RuntimeError: A tensor is missing, left over or of another shape.
        ValueError: The channel counts do not divide into the group counts of this generation.
    """
    config = read_config({key: tuple(tensor.shape) for key, tensor in state_dict.items()})
    network = ControlNeXt(config, stem_padding, operations, device="meta")
    network.load_state_dict(dict(state_dict), strict=True, assign=True)
    return network.eval().requires_grad_(False)
