"""What is trained: a LoRA for every linear layer, zero convolutions and transformer norms. All the rest is frozen.

Source: xyfJASON/ctrlora@b4422b4 cldm/lora.py, cldm/cldm.py `configure_optimizers`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..models.adapted import LORA, Condition
from ..models.ctrlora import CtrLoRA, CtrLoRAConfig
from ..models.ctrlora_file import PREFIX, is_replaced
from .draws import generator_for

Shape = tuple[int, ...]


def trainable_shapes(config: CtrLoRAConfig, rank: int) -> dict[str, Shape]:
    """Key to shape of every trained tensor, in the order of the network's modules.

    Args:
        config: Of the base.
        rank: Of each LoRA.

    Returns:
        Keys without `control_model.`.

    Raises:
        ValueError: The rank is larger than a side of the smallest linear layer.
    """
    shapes: dict[str, Shape] = {}
    smallest: tuple[int, str] | None = None
    for name, module in CtrLoRA(config, device="meta").named_modules():
        if hasattr(module, "in_features"):
            sides = (int(module.in_features), int(module.out_features))
            smallest = min(smallest or (min(sides), name), (min(sides), name))
            shapes[f"{name}{LORA}down.weight"] = (rank, sides[0])
            shapes[f"{name}{LORA}up.weight"] = (sides[1], rank)
        elif is_replaced(f"{name}."):
            shapes.update({f"{name}.{key}": tuple(t.shape) for key, t in module.named_parameters(recurse=False)})
    if smallest is not None and rank > smallest[0]:
        raise ValueError(f"rank ({rank}) must be at most {smallest[0]}, the smaller side of the base's '{smallest[1]}'.")
    return shapes


def start_condition(base: CtrLoRA, rank: int, seed: int, device: torch.device | str = "cpu") -> Condition:
    """A condition that does nothing yet: LoRA down normal with deviation 1/rank, up zero, the rest as in the base.

    Args:
        base: With its weights.
        rank: Of each LoRA.
        seed: Of the LoRA; a layer's numbers depend on it and the layer's name alone.
        device: Of the new tensors.

    Returns:
        fp32 tensors that take gradients.
    """
    tensors: dict[str, Tensor] = {}
    for key, shape in trainable_shapes(base.config, rank).items():
        if key.endswith(f"{LORA}down.weight"):
            tensors[key] = torch.randn(shape, generator=generator_for("lora", seed, key)) / rank
        elif LORA in key:
            tensors[key] = torch.zeros(shape)
        else:
            tensors[key] = base.get_parameter(key).detach().float().clone()
    return condition_of(tensors, device)


def condition_of(tensors: Mapping[str, Tensor], device: torch.device | str = "cpu") -> Condition:
    """A condition from its tensors by key, ready to be trained."""
    ready = {key: tensor.to(device).requires_grad_() for key, tensor in tensors.items()}
    names = dict.fromkeys(key.partition(LORA)[0] for key in ready if LORA in key)
    lora = {name: (ready[f"{name}{LORA}down.weight"], ready[f"{name}{LORA}up.weight"]) for name in names}
    return Condition(lora, {key: tensor for key, tensor in ready.items() if LORA not in key})


def published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, keys as in the published files."""
    return {PREFIX + key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}
