"""What the files of CtrLoRA hold: a base, a condition, or a training checkpoint with both.

Source: xyfJASON/ctrlora@b4422b4 scripts/tool_extract_weights.py, cldm/switchable.py; arXiv:2410.09400.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from .adapted import LORA, Condition
from .ctrlora import CtrLoRA, CtrLoRAConfig, read_config
from .detect import Shapes, UnsupportedCheckpointError
from .foreign import first_line, shown, some
from .state_dict import shapes_of, strip_prefix

PREFIX = "control_model."
STACKED = "loras_dict."
"""Begins the LoRAs of a pretraining checkpoint."""
_PRETRAINING = re.compile(r"^loras_dict\.([^.]+)\.([0-9]{1,6})\.(?:(down|up)\.weight|(alpha))$")
# Other trainers' notes beside a LoRA: kohya-ss writes '<layer>.alpha', diffusers names it network_alpha and PEFT lora_alpha.
_ALPHA = re.compile(r"^(.+?)(?:\.lora_layer)?\.(?:network_|lora_)?alpha$")


def control_tensors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The control network's tensors, without `control_model.`; the rest of a full checkpoint is left out."""
    return strip_prefix(state_dict, PREFIX) or dict(state_dict)


def is_replaced(key: str) -> bool:
    """Whether a tensor of the base belongs to the condition: zero convolutions and transformer norms, by name."""
    return "zero_convs" in key or "middle_block_out" in key or "norm" in key


def base_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The base alone: without left-over LoRAs."""
    return {key: tensor for key, tensor in tensors.items() if not lora_part(key)[1] and not key.startswith(STACKED)}


def lora_part(key: str) -> tuple[str, str]:
    """What a tensor is in a LoRA.

    Args:
        key: Without prefix; none of a pretraining checkpoint's own.

    Returns:
        The layer, and "down", "up" or "alpha"; something else for a LoRA's tensor that nobody knows, and nothing for a tensor
        of no LoRA.
    """
    if match := _ALPHA.match(key):
        return match[1], "alpha"
    layer, _, half = key.partition(LORA)
    return layer, half.removesuffix(".weight")


def is_alpha(key: str) -> bool:
    """Whether a tensor is the alpha of a LoRA, in any kind of file."""
    return _ALPHA.match(key) is not None


def check_base(tensors: Mapping[str, Tensor], name: str) -> CtrLoRAConfig:
    """Make sure that every tensor of a base is there, is known and fits the others.

    Args:
        tensors: From `base_tensors`.
        name: Of the file, for the error.

    Returns:
        The configuration to build.

    Raises:
        UnsupportedCheckpointError: Something is missing, left over or of another shape.
    """
    shapes = shapes_of(tensors)
    try:
        config = read_config(shapes)
        expected = shapes_of(CtrLoRA(config, device="meta").state_dict())
    except (KeyError, IndexError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise UnsupportedCheckpointError(
            f"'{shown(name)}' is an incomplete CtrLoRA Base ControlNet ({first_line(error)}): use a complete, unmodified file."
        ) from error
    _compare(shapes, expected, name)
    return config


def _compare(shapes: Shapes, expected: Shapes, name: str) -> None:
    for title, wrong in (
        ("without", [key for key in expected if key not in shapes]),
        ("with the unknown", [key for key in shapes if key not in expected]),
        ("with a misshapen", [key for key in expected if key in shapes and shapes[key] != expected[key]]),
    ):
        if wrong:
            raise UnsupportedCheckpointError(
                f"'{shown(name)}' is a CtrLoRA Base ControlNet {title} {some(wrong)}: use a complete, unmodified file."
            )


def condition_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """The conditions of a pretraining checkpoint; empty for any other file."""
    return list(dict.fromkeys(match[1] for key in tensors if (match := _PRETRAINING.match(key))))


def linear_names(config: CtrLoRAConfig) -> list[str]:
    """The base's linear layers in the order that numbers the LoRAs of a pretraining checkpoint."""
    return [name for name, module in CtrLoRA(config, device="meta").named_modules() if hasattr(module, "in_features")]


def stack_conditions(base: Mapping[str, Tensor], conditions: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Base and conditions as a pretraining checkpoint has them: `loras_dict.<condition>.<number of the layer>`.

    Args:
        base: Without prefix.
        conditions: By name, without prefix. The layout has one set of zero convolutions and norms, the base's: what a condition
            has of them must be the same.

    Returns:
        Sharing memory with what is given.

    Raises:
        ValueError: A condition has zero convolutions or norms of its own, or a LoRA for a layer that the base does not have.
    """
    numbers = {layer: number for number, layer in enumerate(linear_names(read_config(shapes_of(base))))}
    stacked = dict(base)
    for name, tensors in conditions.items():
        for key, tensor in tensors.items():
            layer, half = lora_part(key)
            if half and layer in numbers:
                stacked[f"{STACKED}{name}.{numbers[layer]}.{half}" + (".weight" if half != "alpha" else "")] = tensor
            elif half or key not in base or not torch.equal(tensor, base[key]):
                raise ValueError(
                    f"'{shown(name)}' has '{shown(key)}' of its own, which a file of several conditions has no place for: "
                    "keep it in a file of its own."
                )
    return stacked


def read_condition(
    tensors: Mapping[str, Tensor], base: Shapes, name: str, condition: str = "", layers: list[str] | None = None
) -> Condition:
    """Build a condition from a file's tensors.

    Args:
        tensors: Of the control network, without prefix; what belongs to the base is left out.
        base: Shapes of the base.
        name: Of the file, for the error.
        condition: Which one, of a pretraining checkpoint.
        layers: From `linear_names`, for a pretraining checkpoint.

    Returns:
        The condition, sharing memory with `tensors`, except for what an alpha multiplies.

    Raises:
        UnsupportedCheckpointError: Something has only one half, or does not fit the base.
    """
    factors: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if match := _PRETRAINING.match(key):
            if match[1] == condition and layers is not None:
                number = int(match[2])
                layer = layers[number] if number < len(layers) else f"{STACKED}{condition}.{number}"
                factors.setdefault(layer, {})[match[3] or match[4]] = tensor
        elif not condition and not key.startswith(STACKED) and (part := lora_part(key))[1]:
            factors.setdefault(part[0], {})[part[1]] = tensor
    replaced = {key: tensor for key, tensor in base_tensors(tensors).items() if is_replaced(key)}
    odd = [layer for layer, halves in factors.items() if halves.keys() - {"alpha"} != {"down", "up"}]
    if odd:
        raise UnsupportedCheckpointError(f"'{shown(name)}' has half a LoRA for {some(odd)}: it is damaged, download it again.")
    stems = dict.fromkeys(key.rpartition(".")[0] for key in replaced)
    odd = [stem for stem in stems if not {f"{stem}.weight", f"{stem}.bias"} <= replaced.keys()]
    if odd:
        raise UnsupportedCheckpointError(
            f"'{shown(name)}' has only one of weight and bias for {some(odd)}: it is damaged, download it again."
        )
    wrong = [layer for layer, halves in factors.items() if not _fits(halves["down"], halves["up"], base.get(f"{layer}.weight"))]
    wrong += [key for key, tensor in replaced.items() if tuple(tensor.shape) != base.get(key)]
    if wrong:
        raise UnsupportedCheckpointError(
            f"'{shown(name)}' does not fit the base at {some(wrong)}: use the base that the condition was trained on."
        )
    lora = {layer: (halves["down"], _scaled(halves, layer, name)) for layer, halves in factors.items()}
    return Condition(lora, replaced)


def _scaled(halves: Mapping[str, Tensor], layer: str, name: str) -> Tensor:
    """The second factor of a LoRA with alpha / rank in it: in fp32 where that changes it, so that nothing is rounded."""
    up, alpha = halves["up"], halves.get("alpha")
    if alpha is None or not up.is_floating_point():
        return up
    value = alpha_value(alpha)
    if value is None:
        raise UnsupportedCheckpointError(
            f"'{shown(name)}' has an alpha for '{shown(layer)}' that is no number: it is damaged, download it again."
        )
    scale = value / len(halves["down"])
    return up if scale == 1 else up.to(torch.promote_types(up.dtype, torch.float32)) * scale


def alpha_value(alpha: Tensor) -> float | None:
    """An alpha as a number, or None if it is none: one finite value, whatever its shape and type."""
    if alpha.numel() != 1 or alpha.is_meta or alpha.is_complex() or alpha.dtype == torch.bool:
        return None
    value = float(alpha.reshape(()))
    return value if math.isfinite(value) else None


def with_alpha(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The same LoRAs without alphas, for programs that know of none: alpha / rank is multiplied into one of the two factors.

    Args:
        tensors: Of any file of CtrLoRA's that has been checked, with or without prefix.
        name: Of the file, for the error.

    Returns:
        Sharing memory with `tensors` where no alpha changes anything.

    Raises:
        UnsupportedCheckpointError: An alpha is no number.
    """
    merged = {key: tensor for key, tensor in tensors.items() if not is_alpha(key)}
    for key in tensors.keys() - merged.keys():
        layer = _ALPHA.match(key)[1]  # type: ignore[index]
        stem = layer if f"{layer}.up.weight" in merged else f"{layer}{LORA.removesuffix('.')}"
        down, up = f"{stem}.down.weight", f"{stem}.up.weight"
        if down in merged and up in merged:
            scaled = _scaled({"down": merged[down], "up": merged[up], "alpha": tensors[key]}, layer, name)
            merged[up] = scaled.to(merged[up].dtype)
    return merged


def _fits(down: Tensor, up: Tensor, weight: tuple[int, ...] | None) -> bool:
    return (
        weight is not None
        and down.ndim == up.ndim == 2
        and (up.shape[0], down.shape[1]) == weight
        and up.shape[1] == len(down) > 0
    )
