"""Take from a weight file what one loader reads: a module out of a bundle, a condition out of a training checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .adapted import LORA
from .ctrlora_file import (
    PREFIX,
    base_tensors,
    check_base,
    condition_names,
    control_tensors,
    is_alpha,
    is_replaced,
    linear_names,
    lora_part,
)
from .describe import CTRLORA_KINDS, MODULE_KINDS, check_file, type_name
from .detect import Kind, UnsupportedCheckpointError, describe, detect_kind
from .foreign import shown
from .state_dict import control_part, shapes_of, strip_prefix, unet_part

PARTS_OF: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(MODULE_KINDS, ("auto", "all", "control")),
    "unet": ("auto", "all", "unet"),
    "bundle": ("auto", "all", "control", "unet"),
    "ctrlora_lora": ("auto", "all", "lora"),
    **dict.fromkeys(("ctrlora_base", "ctrlora_checkpoint", "ctrlora_pretraining"), ("auto", "all", "base", "lora", "control")),
}
"""The parts that can be taken from each kind of file; no other kind can be converted."""
PARTS = ("auto", "all", "base", "lora", "control", "unet")


@dataclass(frozen=True)
class Extract:
    """Tensors for a file of their own, keys as published."""

    kind: str
    """Row of `KINDS` that the new file will be recognised as."""
    part: str
    """What was taken: one of `PARTS` except "auto"."""
    tensors: dict[str, Tensor]
    condition: str
    """Of a pretraining checkpoint, empty for any other."""
    is_whole: bool
    """Nothing was left out."""

    @property
    def is_ctrlora(self) -> bool:
        """Belongs into the folder of CtrLoRA, not of ControlNeXt."""
        return self.kind in CTRLORA_KINDS


def extract_part(tensors: Mapping[str, Tensor], name: str, part: str = "auto", condition: str = "") -> Extract:
    """Choose the tensors of one part, under their published names.

    Args:
        tensors: Unwrapped.
        name: Of the file, for errors.
        part: One of `PARTS`. "auto" is the LoRA of a training checkpoint that has one, else its base; the condition that is
            named, else the base, of a pretraining checkpoint; the module of a bundle; "all" of any other file.
        condition: Which one, of a pretraining checkpoint.

    Returns:
        The part, sharing memory with `tensors`; a bundle or a pretraining checkpoint stays one with "all".

    Raises:
        UnsupportedCheckpointError: The file is damaged, or of a kind that is not converted.
        ValueError: The file has no such part, or no such condition.
    """
    kind = detect_kind(tensors)
    if kind is None or kind.id not in PARTS_OF:
        raise UnsupportedCheckpointError(describe(shapes_of(tensors), name, "a ControlNeXt or CtrLoRA file"))
    if part not in PARTS_OF[kind.id]:
        *others, last = PARTS_OF[kind.id]
        raise ValueError(f"part is '{shown(part)}' and '{shown(name)}' is {kind.title}: choose {', '.join(others)} or {last}.")
    check_file(tensors, name, kind)
    own = control_tensors(tensors) if kind.id in CTRLORA_KINDS else {}
    names = condition_names(own)
    if condition and not names:
        raise ValueError(
            f"condition is '{shown(condition)}' and '{shown(name)}' is no pretraining checkpoint: leave condition empty."
        )
    if part == "auto":
        part = _auto(kind, any(LORA in key for key in own), bool(condition))
    if condition and part != "lora":
        raise ValueError(
            f"condition is '{shown(condition)}' and part is '{shown(part)}': set part to lora, or leave condition empty."
        )
    if part == "lora" and names:
        condition = _choose_condition(name, condition, names)
    chosen = _of_ctrlora(own, name, part, condition) if own else _of_controlnext(tensors, kind, part)
    result = detect_kind(chosen)
    if result is None:
        raise UnsupportedCheckpointError(describe(shapes_of(chosen), name, "a set of fine-tuned UNet weights"))
    return Extract(result.id, part, chosen, condition, len(chosen) == len(tensors))


def to_dtype(tensor: Tensor, dtype: torch.dtype | None, key: str, name: str) -> Tensor:
    """Change the type of a weight.

    Args:
        tensor: Finite.
        dtype: None keeps it, as do integers and the alphas of LoRAs.
        key: Of the tensor, for the error.
        name: Of the file, for the error.

    Returns:
        The same tensor where nothing changes.

    Raises:
        ValueError: A value is beyond the range of the type.
    """
    if dtype is None or tensor.dtype == dtype or not is_converted(key, tensor):
        return tensor
    converted = tensor.to(dtype)
    if converted.isinf().any():
        raise ValueError(
            f"'{shown(name)}' has values up to {float(tensor.abs().max()):.6g} in '{shown(key)}' and {type_name(dtype)} ends "
            f"at {torch.finfo(dtype).max:.6g}: choose bf16, fp32 or keep."
        )
    return converted


def is_converted(key: str, tensor: Tensor) -> bool:
    """Whether a tensor takes on a new type: weights do, and the alpha of a LoRA is a number that no type may round."""
    return tensor.is_floating_point() and not is_alpha(key)


def _auto(kind: Kind, has_lora: bool, has_condition: bool) -> str:
    return {
        "ctrlora_checkpoint": "lora" if has_lora else "base",
        "ctrlora_pretraining": "lora" if has_condition else "base",
        "bundle": "control",
    }.get(kind.id, "all")


def _of_controlnext(tensors: Mapping[str, Tensor], kind: Kind, part: str) -> dict[str, Tensor]:
    if kind.id == "bundle" and part == "all":
        module, unet = control_part(tensors), unet_part(tensors)
        return {f"controlnext.{k}": t for k, t in module.items()} | {f"unet.{k}": t for k, t in unet.items()}
    return unet_part(tensors) if "unet" in (part, kind.id) else control_part(tensors)


def _of_ctrlora(own: Mapping[str, Tensor], name: str, part: str, condition: str) -> dict[str, Tensor]:
    if part == "base":
        chosen = base_tensors(own)
    elif part == "lora":
        chosen = _named_lora(own, name, condition) if condition else _live_lora(own)
        if not any(LORA in key for key in chosen):
            raise ValueError(f"part is 'lora' and '{shown(name)}' has no LoRA in it: choose base.")
    else:
        # "control" is cut as the authors' tool does it: without the stacked conditions.
        chosen = {key: tensor for key, tensor in own.items() if part == "all" or not key.startswith("loras_dict.")}
    return {PREFIX + key: tensor for key, tensor in chosen.items()}


def _live_lora(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the authors' tool writes for a condition. Source: xyfJASON/ctrlora@b4422b4 scripts/tool_extract_weights.py."""
    return {key: tensor for key, tensor in own.items() if lora_part(key)[1] or is_replaced(key)}


def _named_lora(own: Mapping[str, Tensor], name: str, condition: str) -> dict[str, Tensor]:
    base = base_tensors(own)
    layers = linear_names(check_base(base, name))
    chosen = {key: tensor for key, tensor in base.items() if is_replaced(key)}
    for key, tensor in strip_prefix(own, f"loras_dict.{condition}.").items():
        number, _, half = key.partition(".")
        if not (number.isdecimal() and len(number) < 7 and int(number) < len(layers)):
            raise UnsupportedCheckpointError(
                f"'{shown(name)}' has the unknown 'loras_dict.{shown(condition)}.{shown(key)}': use a complete, "
                "unmodified file."
            )
        chosen[f"{layers[int(number)]}{LORA}{half}"] = tensor
    return chosen


def _choose_condition(name: str, condition: str, names: list[str]) -> str:
    if condition in names:
        return condition
    if len(names) == 1 and not condition:
        return names[0]
    raise ValueError(
        f"'{shown(name)}' holds {len(names)} conditions and condition is '{shown(condition)}': set it to one of "
        f"{shown(', '.join(names))}."
    )
