"""Layers that several conditions share: one batch of rows, each row with its own condition's LoRA, norms and zero convolutions.

Source: arXiv:2410.09400; xyfJASON/ctrlora@b4422b4 cldm/lora.py, cldm/switchable.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TRANSFORMER_EPSILON = 1e-6  # GroupNorm of a spatial transformer; every other norm keeps torch's 1e-5
GROUPS = 32
LORA = ".lora_layer."


class Condition(nn.Module):
    """What a condition brings to the base: LoRA factors, zero convolutions and transformer norms.

    Args:
        lora: Linear layer's name to (down (r, in), up (out, r)); ranks may differ.
        replaced: Key to tensor for zero convolutions and norms.
    """

    def __init__(self, lora: Mapping[str, tuple[Tensor, Tensor]], replaced: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.layers = frozenset(lora)
        self.keys = frozenset(replaced)
        for name, (down, up) in lora.items():
            self._register(f"{name}{LORA}down.weight", down)
            self._register(f"{name}{LORA}up.weight", up)
        for key, tensor in replaced.items():
            self._register(key, tensor)

    def _register(self, key: str, tensor: Tensor) -> None:
        # A parameter's name may hold no dots.
        self.register_parameter(key.replace(".", "/"), nn.Parameter(tensor, requires_grad=tensor.requires_grad))

    def tensor(self, key: str) -> Tensor:
        """A tensor by its published key, without `control_model.`."""
        return self.get_parameter(key.replace(".", "/"))

    def lora(self, name: str) -> tuple[Tensor, Tensor] | None:
        """(down, up) of a linear layer, or None if the condition leaves it alone."""
        if name not in self.layers:
            return None
        return self.tensor(f"{name}{LORA}down.weight"), self.tensor(f"{name}{LORA}up.weight")

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by its published key."""
        return {key.replace("/", "."): parameter for key, parameter in self.named_parameters()}


class Group(NamedTuple):
    """Rows of a batch that belong to one condition."""

    condition: Condition | None
    """None for the plain base."""
    strength: float
    """Scales the LoRA and moves zero convolutions and norms from the base's (0) to the condition's (1)."""
    rows: int


def _matches(groups: Sequence[Group], find: Callable[[Condition], bool]) -> bool:
    return any(g.condition is not None and g.strength != 0 and find(g.condition) for g in groups)


def _split(x: Tensor, groups: Sequence[Group]) -> tuple[Tensor, ...]:
    return x.split([group.rows for group in groups])


def adapted_linear(layer: Any, x: Tensor, groups: Sequence[Group]) -> Tensor:
    """A linear layer with each group's LoRA.

    Two exact ways: add the low-rank product, or multiply with a merged weight. Merging costs r*in*out once, the product
    r*(in+out) for every token, so that layers with many tokens and few channels are merged; nothing merged is kept.

    Args:
        layer: Linear, with `name`.
        x: (R, ..., in), rows in the order of the groups.
        groups: Their rows add up to R.

    Returns:
        (R, ..., out).
    """
    loras = [None if g.condition is None or g.strength == 0 else g.condition.lora(layer.name) for g in groups]
    if not any(loras):
        return layer(x)
    inputs, outputs = layer.in_features, layer.out_features
    tokens = x[..., 0].numel() // len(groups)
    if inputs * outputs < tokens * (inputs + outputs):
        weight, bias = layer.weight.to(x), None if layer.bias is None else layer.bias.to(x)
        parts = [
            F.linear(part, weight if lora is None else _merge(weight, lora, group.strength), bias)
            for part, group, lora in zip(_split(x, groups), groups, loras, strict=True)
        ]
    else:
        parts = [
            base if lora is None else base + F.linear(F.linear(part, lora[0].to(x)), lora[1].to(x)) * group.strength
            for base, part, group, lora in zip(_split(layer(x), groups), _split(x, groups), groups, loras, strict=True)
        ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _merge(weight: Tensor, lora: tuple[Tensor, Tensor], strength: float) -> Tensor:
    return torch.addmm(weight, lora[1].to(weight), lora[0].to(weight), alpha=strength)


def replaced_by_group(
    layer: Any, x: Tensor, groups: Sequence[Group], apply: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """A layer whose weight and bias a condition replaces.

    Args:
        layer: Zero convolution or norm, with `name`.
        x: (R, ...), rows in the order of the groups.
        groups: Their rows add up to R.
        apply: Maps rows, weight and bias to the layer's output.

    Returns:
        (R, ...).
    """
    key = f"{layer.name}.weight"
    if not _matches(groups, lambda condition: key in condition.keys):
        return layer(x)
    base = [parameter.to(x) for parameter in (layer.weight, layer.bias)]
    parts = []
    for part, group in zip(_split(x, groups), groups, strict=True):
        own = base
        if group.condition is not None and group.strength != 0 and key in group.condition.keys:
            trained = [group.condition.tensor(f"{layer.name}.{kind}").to(x) for kind in ("weight", "bias")]
            own = [torch.lerp(b, t, group.strength) for b, t in zip(base, trained, strict=True)]  # exact at 0 and 1
        parts.append(apply(part, own[0], own[1]))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Over the last dimension."""
    return F.layer_norm(x, weight.shape, weight, bias)


def group_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As a spatial transformer has it."""
    return F.group_norm(x, GROUPS, weight, bias, TRANSFORMER_EPSILON)
