"""Fine-tuned UNet weights as weight patches on a clone."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import comfy.utils
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from torch import Tensor

from ...models.foreign import shown, some
from ...models.injection import FAMILY_TITLES, Family
from ...models.unet_weights import Mode, compare
from .managed import is_dynamic
from .unet_keys import to_host_keys
from .unet_structure import unet_config_of

logger = logging.getLogger("nextcontrol")

_APPLIED = "nextcontrol.unet_weights"
_SAMPLED = 8


@dataclass(frozen=True, eq=False)
class UNetWeights:
    """The UNet half of a ControlNeXt."""

    name: str
    source: tuple[Any, ...]
    """Identifies the file's content, so that it is applied once however many controls use it."""
    tensors: Mapping[str, Tensor]
    """Diffusers or ldm names, no prefix."""
    family: Family | None
    """As far as names and shapes tell."""
    mode: Mode | Literal["auto"]


def add_unet_weights(clone: ModelPatcher, weights: UNetWeights, family: Family) -> None:
    """Add fine-tuned weights to a model's patches; strength does not scale them.

    Args:
        clone: Changed.
        weights: Applied once, however often this is called with them.
        family: Of the model.

    Raises:
        ValueError: They belong to another model, or nothing tells absolute weights from differences.
    """
    applied: frozenset[tuple[Any, ...]] = clone.attachments.get(_APPLIED, frozenset())
    if weights.source in applied:
        return
    if weights.family not in (None, family):
        raise ValueError(
            f"'{shown(weights.name)}' holds {FAMILY_TITLES[weights.family]} weights and the model is {FAMILY_TITLES[family]}: "
            f"load {FAMILY_TITLES[weights.family]}, or choose the file made for this model."
        )
    tensors = _match(clone, weights, family)
    mode = _decide(clone, weights, tensors) if weights.mode == "auto" else weights.mode
    kind = "set" if mode == "replace" else "diff"
    clone.add_patches({key: (kind, (tensor,)) for key, tensor in tensors.items()})
    if mode == "replace":
        for key in tensors:
            _move_to_base(clone.patches[key])
    if not applied:
        clone.add_callback_with_key(CallbacksMP.ON_LOAD, _APPLIED, _patch_the_rest)
    clone.attachments[_APPLIED] = applied | {weights.source}
    logger.info("'%s': %d %s UNet weights, %s", shown(weights.name), len(tensors), FAMILY_TITLES[family], mode)


def _patch_the_rest(patcher: ModelPatcher, device_to: Any, *_: object) -> None:
    """Patch what a host with dynamic VRAM loads without its patches: parameters of modules outside its casting layers.

    SVD's mix factors are such parameters. The host has kept the original in `backup` and puts it back from there, also when it
    frees memory: like every weight that it loads at once, they are patched again when the model is loaded again.
    """
    if not is_dynamic(patcher):
        return
    for key in patcher.patches:
        if not hasattr(comfy.utils.get_attr(patcher.model, key.rpartition(".")[0]), "comfy_cast_weights"):
            patcher.patch_weight_to_device(key, device_to=device_to)


def _match(model: ModelPatcher, weights: UNetWeights, family: Family) -> dict[str, Tensor]:
    """The file's tensors under the host's names; every one must fit."""
    names = to_host_keys(weights.tensors, unet_config_of(model))
    state_dict = model.model_state_dict()
    lost = [key for key, name in names.items() if name not in state_dict]
    if lost:
        raise ValueError(
            f"'{shown(weights.name)}' has {len(lost)} of {len(names)} weights without a counterpart in this "
            f"{FAMILY_TITLES[family]} model ({some(lost)}): use the file made for this model."
        )
    matched = {name: weights.tensors[key] for key, name in names.items() if name is not None}
    # Of the weight itself: in a state dict a quantized one has the shape that it is packed in.
    shapes_here = {name: comfy.utils.get_attr(model.model, name).shape for name in matched}
    wrong = [name for name, tensor in matched.items() if tensor.shape != shapes_here[name]]
    if wrong:
        shapes = f"{tuple(matched[wrong[0]].shape)} where the model has {tuple(shapes_here[wrong[0]])}"
        raise ValueError(
            f"'{shown(weights.name)}' has {len(wrong)} weights of another shape than this {FAMILY_TITLES[family]} model's "
            f"({some(wrong)}: {shapes}): use the file made for this model."
        )
    return matched


def _decide(model: ModelPatcher, weights: UNetWeights, tensors: Mapping[str, Tensor]) -> Mode:
    """Absolute weights or differences, told by the largest tensors."""
    largest = sorted((key for key, tensor in tensors.items() if tensor.ndim > 1), key=lambda key: -tensors[key].numel())
    resemblance = compare((tensors[key], _unpatched(model, key)) for key in largest[:_SAMPLED])
    if resemblance.mode is None:
        raise ValueError(
            f"'{shown(weights.name)}' may hold absolute weights or differences (cosine {resemblance.cosine:.2f} and norm ratio "
            f"{resemblance.ratio:.2f} to the model's own): set unet_weights to replace or delta."
        )
    logger.info(
        "'%s' looks like %s (cosine %.3f, norm ratio %.3f)",
        shown(weights.name),
        resemblance.mode,
        resemblance.cosine,
        resemblance.ratio,
    )
    return resemblance.mode


def _unpatched(model: ModelPatcher, key: str) -> Tensor:
    """A weight of the model as loaded, even while its patches are in place."""
    backup = model.backup.get(key)
    return comfy.utils.get_attr(model.model, key) if backup is None else backup.weight


def _move_to_base(patches: list[tuple[Any, ...]]) -> None:
    """Put the replacement that was added last before every LoRA, and behind what makes up the base itself.

    The host applies patches in order and a replacement wipes out what came before it. Merged models are patches with a
    factor for the old weight, or with a list of patches as their value; a replacement overrides these.
    """
    replacement = patches.pop()
    is_base = [
        strength_model != 1.0 or isinstance(value, list) or value[:1] == ("set",) for _, value, strength_model, *_ in patches
    ]
    patches.insert(max((i + 1 for i, base in enumerate(is_base) if base), default=0), replacement)
