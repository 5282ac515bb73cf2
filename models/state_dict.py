"""Arithmetic on state-dict keys: unwrap what trainers wrap, split what they bundle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from torch import Tensor

Value = TypeVar("Value")

CONTAINERS = ("state_dict", "module", "model")
"""Keys under which trainers keep the tensors beside their own notes."""
WRAPPERS = ("module.", "_orig_mod.", "ema_model.")
"""Prefixes that data-parallel, compiled and averaged copies of a module add to every key."""

MOST_LEVELS = 8
"""Of containers in containers, and of wrapper prefixes before a key; trainers make two."""

CONTROL_PREFIXES = ("controlnext.", "controlnet.", "control_model.")
UNET_PREFIXES = ("unet.", "model.diffusion_model.", "diffusion_model.")


def strip_prefix(state_dict: Mapping[str, Value], prefix: str) -> dict[str, Value]:
    """The entries under `prefix`, without it. A key that is no text is under none."""
    return {key[len(prefix) :]: value for key, value in state_dict.items() if isinstance(key, str) and key.startswith(prefix)}


def unwrap(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Take off the nesting and the wrapper prefixes that carry no meaning.

    Args:
        state_dict: As read from a file; may hold `state_dict`, `module` or `model` dictionaries.

    Returns:
        A flat dictionary. Values are the same objects.

    Raises:
        ValueError: Containers lie in each other without end.
    """
    flat: dict[str, Any] = dict(state_dict)
    for _ in range(MOST_LEVELS):
        inner = next((flat[k] for k in CONTAINERS if isinstance(flat.get(k), Mapping)), None)
        if inner is None:
            break
        flat = dict(inner)
    else:
        raise ValueError(f"its tensors lie in more than {MOST_LEVELS} containers")
    for _ in range(MOST_LEVELS):
        prefix = _common_prefix(flat, WRAPPERS)
        if prefix is None:
            break
        flat = strip_prefix(flat, prefix)
    return flat


def control_part(state_dict: Mapping[str, Value]) -> dict[str, Value]:
    """The control module's tensors: those under a control prefix if there are any, else all."""
    return _part(state_dict, CONTROL_PREFIXES)


def unet_part(state_dict: Mapping[str, Value]) -> dict[str, Value]:
    """The UNet's tensors: those under a UNet prefix if there are any, else all."""
    return _part(state_dict, UNET_PREFIXES)


def shapes_of(state_dict: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Key to shape."""
    return {key: tuple(tensor.shape) for key, tensor in state_dict.items()}


def _part(state_dict: Mapping[str, Value], prefixes: Iterable[str]) -> dict[str, Value]:
    for prefix in prefixes:
        if part := strip_prefix(state_dict, prefix):
            # Trainers wrap the two halves one by one before they bundle them.
            inner = _common_prefix(part, WRAPPERS)
            return strip_prefix(part, inner) if inner else part
    return dict(state_dict)


def _common_prefix(keys: Iterable[Any], prefixes: Iterable[str]) -> str | None:
    listed = list(keys)
    return next(
        (prefix for prefix in prefixes if listed and all(isinstance(key, str) and key.startswith(prefix) for key in listed)),
        None,
    )
