"""Networks of the pack under the host's memory management."""

from __future__ import annotations

from typing import NoReturn

import comfy.model_management
import comfy.model_patcher
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

ONE_GPU = (
    "'{}' runs on one GPU: remove 'MultiGPU CFG Split' from the workflow, and put 'Select Model Device' before the node that "
    "applies the control."
)
"""The sentence for a control that the host wants to copy to a second GPU."""


def manage(network: nn.Module, name: str, is_layered: bool = False, device: torch.device | None = None) -> ModelPatcher:
    """Put a network under the host's memory management.

    Args:
        network: Frozen here and put into evaluation mode.
        name: Of its file, for errors.
        is_layered: The network's weights are read by the host's layers alone, so that a host with dynamic VRAM may load them
            layer by layer. Adapted layers (`models.adapted`) read weights themselves and would get those in main memory, once
            more for each pass.
        device: Where it runs; the host's first choice by default.

    Returns:
        The host's patcher for networks that it loads whole, or its newer one.
    """
    patcher = patcher_class(disable_dynamic=not is_layered)(
        network.eval().requires_grad_(False),
        load_device=device or comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    # The host calls this to make the network anew on another device.
    patcher.cached_patcher_init = (_refuse_copy, (name,))
    return patcher


def patcher_class(disable_dynamic: bool = False) -> type[ModelPatcher]:
    """The host's class for models: with dynamic VRAM where the host has it, uses it, and is not told otherwise."""
    # Looked up at each call: the host decides after its start, by the device, whether the newer one is used.
    newer: type[ModelPatcher] = getattr(comfy.model_patcher, "CoreModelPatcher", ModelPatcher)
    return ModelPatcher if disable_dynamic else newer


def is_dynamic(patcher: ModelPatcher) -> bool:
    """Whether the host loads a model layer by layer ("dynamic VRAM"); older hosts know nothing of it."""
    return bool(getattr(patcher, "is_dynamic", bool)())


def load_whole(model: ModelPatcher) -> ModelPatcher:
    """A model that autograd can follow: one that the host loads whole.

    Under dynamic VRAM weights lie in memory that the host gives to other layers when it is short, also between a forward and
    its backward pass; and LoRAs are applied on the way there, so that a training would start from weights without them.

    Args:
        model: From any loader.

    Returns:
        The model itself, or a clone with the same patches and weights of its own.

    Raises:
        ValueError: The node that loaded it cannot load it a second time.
    """
    if not is_dynamic(model):
        return model
    if model.cached_patcher_init is None:
        raise ValueError(
            "The model comes from a node that cannot load it again, which training under dynamic VRAM needs: load it with "
            "'Load Checkpoint', or start ComfyUI with --disable-dynamic-vram."
        )
    return model.clone(disable_dynamic=True)


def _refuse_copy(name: str, **_options: object) -> NoReturn:
    # What the host itself raises for a model that cannot be copied: 'Select Model Device' then leaves the model where it is.
    raise RuntimeError(ONE_GPU.format(name))


def models_in_use() -> list[ModelPatcher]:
    """What the host has loaded for the present run, to be loaded again after something else was needed."""
    # It lists models that are gone as None until it cleans up.
    return [model for model in comfy.model_management.loaded_models(only_currently_used=True) if model is not None]
