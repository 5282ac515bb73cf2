"""CtrLoRA's files on the host: what flows through the `CTRLORA_BASE` socket, and the conditions that are put on it."""

from __future__ import annotations

import logging
from collections.abc import Hashable
from dataclasses import dataclass

import comfy.model_management
import comfy.ops
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...models.adapted import LORA
from ...models.ctrlora import CtrLoRA, CtrLoRAConfig
from ...models.ctrlora_file import (
    base_tensors,
    check_base,
    condition_names,
    control_tensors,
    is_replaced,
    linear_names,
    read_condition,
)
from ...models.detect import UnsupportedCheckpointError, describe, detect_kind
from ...models.foreign import shown
from ...models.state_dict import shapes_of
from .controlnext_file import NO_FILE
from .files import check_weights, read_file
from .folders import CTRLORA_FOLDERS, find_file, fingerprint
from .managed import manage
from .result_cache import ResultCache

logger = logging.getLogger("nextcontrol")

BASE_KINDS = ("ctrlora_base", "ctrlora_checkpoint", "ctrlora_pretraining")
CONDITION_KINDS = ("ctrlora_lora", *BASE_KINDS)
MEGABYTE = 1024 * 1024


@dataclass(eq=False)
class CtrLoRABase:
    """One base in memory, for any number of conditions."""

    name: str
    source: Hashable
    """Identifies the file's content."""
    config: CtrLoRAConfig
    shapes: dict[str, tuple[int, ...]]
    network: ModelPatcher
    embedded: ModelPatcher | None
    """The LoRA that lies in the base's own file, if it was asked for."""
    cache: ResultCache


def load_base(base_file: str, use_embedded_lora: bool, cache_megabytes: int) -> CtrLoRABase:
    """Read a base.

    Args:
        base_file: As chosen in the combo.
        use_embedded_lora: Where no other LoRA is chosen, use the one in the base's file. Released bases carry left-over tensors
            of one task, which are left out otherwise.
        cache_megabytes: Bound of the controls that are kept across runs.

    Returns:
        The base; its tensors are mapped from the file where type and format allow.

    Raises:
        FileNotFoundError: The file is not there.
        UnsupportedCheckpointError: It is damaged or something else.
        ValueError: It has no LoRA of its own.
    """
    _, tensors = _read(base_file, BASE_KINDS, "a CtrLoRA Base ControlNet")
    own = base_tensors(tensors)
    config = check_base(own, base_file)
    check_weights(own, base_file)
    shapes = shapes_of(own)
    embedded = None
    if use_embedded_lora:
        own_lora = read_condition(tensors, shapes, base_file)
        if not own_lora.layers:
            raise ValueError(f"'{shown(base_file)}' has no LoRA of its own: switch embedded_lora off.")
        check_weights(own_lora.tensors(), base_file)
        embedded = manage(own_lora, base_file)
    network = CtrLoRA(config, comfy.ops.manual_cast, device="meta")
    network.load_state_dict(_to_host_type(own), strict=True, assign=True)
    logger.info("'%s': CtrLoRA base, %d parameters", shown(base_file), sum(tensor.numel() for tensor in own.values()))
    return CtrLoRABase(
        base_file, fingerprint(base_file, CTRLORA_FOLDERS), config, shapes, manage(network, base_file), embedded,
        ResultCache(cache_megabytes * MEGABYTE),
    )  # fmt: skip


def load_condition(base: CtrLoRABase, lora_file: str, condition: str) -> tuple[ModelPatcher | None, Hashable]:
    """Read a condition for a base.

    Args:
        base: It has to fit.
        lora_file: As chosen in the combo, or "none" for the base alone or with the LoRA in its own file.
        condition: Which one, of a pretraining checkpoint.

    Returns:
        The condition under the host's memory management (None for the plain base) and what identifies its content.

    Raises:
        FileNotFoundError: The file is not there.
        UnsupportedCheckpointError: It is damaged, something else, or for another base.
        ValueError: The file has several conditions and none of that name.
    """
    if lora_file == NO_FILE:
        return base.embedded, (base.source, base.embedded is not None)
    kind, tensors = _read(lora_file, CONDITION_KINDS, "a CtrLoRA LoRA")
    _check_choice(lora_file, condition, condition_names(tensors))
    layers = linear_names(base.config) if condition else None
    found = read_condition(tensors, base.shapes, lora_file, condition, layers)
    if fingerprint(lora_file, CTRLORA_FOLDERS) == base.source and kind == "ctrlora_base" and found.layers:
        raise UnsupportedCheckpointError(
            f"'{shown(lora_file)}' is the base itself, and its LoRA may be a left-over: choose a condition as lora_file, or "
            "none with embedded_lora switched on in 'Load CtrLoRA Base'."
        )
    if not found.layers:
        raise UnsupportedCheckpointError(
            f"'{shown(lora_file)}' has no LoRA in it, it is a CtrLoRA Base ControlNet: load it with 'Load CtrLoRA Base' and "
            "set lora_file to none."
        )
    check_weights(found.tensors(), lora_file)
    if missing := [key for key in base.shapes if is_replaced(key) and key not in found.keys]:
        logger.warning("'%s' lacks %d tensors such as '%s': the base's are used", shown(lora_file), len(missing), missing[0])
    ranks = sorted({len(found.tensor(f"{name}{LORA}down.weight")) for name in found.layers})
    logger.info("'%s': CtrLoRA LoRA of rank %s on %d layers", shown(lora_file), "/".join(map(str, ranks)), len(found.layers))
    return manage(found, lora_file), (base.source, fingerprint(lora_file, CTRLORA_FOLDERS), condition)


def _check_choice(lora_file: str, condition: str, names: list[str]) -> None:
    """A pretraining checkpoint needs the name of one of its conditions, every other file none."""
    if names and condition not in names:
        raise ValueError(
            f"'{shown(lora_file)}' holds {len(names)} conditions and condition is '{shown(condition)}': set it to one of "
            f"{shown(', '.join(names))}."
        )
    if condition and not names:
        raise ValueError(f"'{shown(lora_file)}' holds one condition and condition is '{shown(condition)}': leave it empty.")


def _read(name: str, kinds: tuple[str, ...], wanted: str) -> tuple[str, dict[str, Tensor]]:
    state_dict, _ = read_file(find_file(name, CTRLORA_FOLDERS), name)
    kind = detect_kind(state_dict)
    if kind is None or kind.id not in kinds:
        raise UnsupportedCheckpointError(describe(shapes_of(state_dict), name, wanted))
    return kind.id, control_tensors(state_dict)


def _to_host_type(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The type that the host stores diffusion models in on this device; nothing is copied where it is the file's."""
    given = next(iter(tensors.values())).dtype
    parameters = sum(tensor.numel() for tensor in tensors.values())
    wanted = comfy.model_management.unet_dtype(model_params=parameters, weight_dtype=given)
    if comfy.model_management.get_torch_device().type == "cpu":
        return tensors  # weights are cast layer by layer: a copy in another type would only cost memory
    return {key: tensor.to(wanted) for key, tensor in tensors.items()}
