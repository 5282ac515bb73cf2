"""The base of CtrLoRA: one control network for several conditions, each with a LoRA of its own.

Body, norms and zero convolutions are shared; a batch moves them and the LoRA of its condition.

Source: arXiv:2410.09400, section 3.2; xyfJASON/ctrlora@b4422b4 cldm/cldm.py `ControlPretrainLDM`, cldm/lora.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..models.adapted import LORA, Condition, Group
from ..models.ctrlora import CtrLoRA, CtrLoRAConfig
from ..models.ctrlora_file import is_replaced, stack_conditions
from ..models.state_dict import strip_prefix
from .backbone import Control
from .draws import generator_for
from .method import HintForm, Published
from .trainable import condition_of, published, trainable_shapes

STACKED = ".loras_dict"
"""Suffix of the file in the reference's layout: no condition's name has a dot."""


def start_lora(config: CtrLoRAConfig, rank: int, seed: int, name: str, device: torch.device | str = "cpu") -> Condition:
    """A LoRA that does nothing yet: down normal with deviation 1/rank, up zero.

    Args:
        config: Of the base.
        rank: Of each layer.
        seed: A layer's numbers depend on it, the condition's name and the layer's alone.
        name: Of the condition.
        device: Of the new tensors.

    Returns:
        fp32 tensors that take gradients; it replaces nothing.

    Source: xyfJASON/ctrlora@b4422b4 cldm/lora.py:62-63.
    """
    shapes = {key: shape for key, shape in trainable_shapes(config, rank).items() if LORA in key}
    tensors = {
        key: torch.randn(shape, generator=generator_for("lora", seed, name, key)) / rank
        if key.endswith("down.weight")
        else torch.zeros(shape)
        for key, shape in shapes.items()
    }
    return condition_of(tensors, device)


class CtrLoRABaseMethod:
    """See `training.method.Method`.

    A LoRA whose condition is not among the batches of an update has no gradient then, and AdamW leaves it and its moments
    alone: it neither decays nor counts the update. An average of the weights goes over all updates, and so comes closer to such
    a LoRA as it stands.

    Args:
        base: The network at its start, fp32.
        loras: By condition, on the same device; see `start_lora`.
        heads: Of the base's attention.
        checkpointing: Keep each block's input alone, and compute the block again in the backward pass.
        is_stacked: Publish the reference's layout too: base and LoRAs in one file.
    """

    hint_form: HintForm = "latent"

    def __init__(
        self,
        base: CtrLoRA,
        loras: Mapping[str, Condition],
        heads: int = 8,
        checkpointing: bool = False,
        is_stacked: bool = False,
    ) -> None:
        self.base = base.requires_grad_()
        self.loras = loras
        self.heads = heads
        self.checkpointing = checkpointing
        self.is_stacked = is_stacked

    def parameters(self) -> dict[str, Tensor]:
        """The base's tensors, and those of each LoRA under the name of its condition."""
        named: dict[str, Tensor] = {f"base/{key}": tensor for key, tensor in self.base.named_parameters()}
        for name, lora in self.loras.items():
            named |= {f"lora/{name}/{key}": tensor for key, tensor in lora.tensors().items()}
        return named

    def rate_factor(self, name: str) -> float:  # noqa: ARG002 - one rate for all
        """1."""
        return 1.0

    def control(self, noisy: Tensor, hints: Tensor, times: Tensor, context: Tensor, condition: str) -> Control:  # noqa: ARG002
        """The controls with one condition's LoRA; shapes as in `CtrLoRA.forward`."""
        groups = [Group(self.loras[condition], 1.0, len(hints))]
        checkpointing = self.checkpointing and torch.is_grad_enabled()
        return Control(self.base(hints, times.float(), context, self.heads, groups, checkpointing))

    def published(self, tensors: Mapping[str, Tensor]) -> Published:
        """The base, a file for each condition, and all of it stacked where that is asked for.

        Args:
            tensors: By the names of `parameters`.

        Returns:
            See `suffixes`. A condition's file has the base's zero convolutions and norms beside its LoRA, as the reference cuts
            it (xyfJASON/ctrlora@b4422b4 scripts/tool_extract_weights.py).
        """
        base = strip_prefix(tensors, "base/")
        shared = {key: tensor for key, tensor in base.items() if is_replaced(key)}
        loras = {name: strip_prefix(tensors, f"lora/{name}/") for name in self.loras}
        files = {"": published(base)} | {f"_{name}": published(lora | shared) for name, lora in loras.items()}
        if self.is_stacked:
            files[STACKED] = published(stack_conditions(base, loras))
        return files


def suffixes(conditions: Sequence[str], is_stacked: bool) -> tuple[str, ...]:
    """Of the files that the method publishes."""
    return ("", *(f"_{name}" for name in conditions), *([STACKED] if is_stacked else []))
