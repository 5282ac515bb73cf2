"""CtrLoRA: a condition of its own (LoRA, zero convolutions, norms) over a frozen base.

Source: arXiv:2410.09400; xyfJASON/ctrlora@b4422b4 cldm/cldm.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..models.adapted import Condition, Group
from ..models.ctrlora import CtrLoRA
from .backbone import Control
from .method import HintForm, Published
from .trainable import published


class CtrLoRAMethod:
    """See `training.method.Method`.

    Args:
        base: The network, frozen, on the backbone's device.
        condition: What is trained, fp32.
        heads: Of the base's attention.
        checkpointing: Keep each block's input alone, and compute the block again in the backward pass.
    """

    hint_form: HintForm = "latent"

    def __init__(self, base: CtrLoRA, condition: Condition, heads: int = 8, checkpointing: bool = False) -> None:
        self.base = base.requires_grad_(requires_grad=False)
        self.condition = condition
        self.heads = heads
        self.checkpointing = checkpointing

    def parameters(self) -> dict[str, Tensor]:
        """The condition's tensors."""
        return self.condition.tensors()

    def rate_factor(self, name: str) -> float:  # noqa: ARG002 - one rate for all
        """1."""
        return 1.0

    def control(self, noisy: Tensor, hints: Tensor, times: Tensor, context: Tensor, condition: str) -> Control:  # noqa: ARG002
        """The condition's controls; shapes as in `CtrLoRA.forward`."""
        groups = [Group(self.condition, 1.0, len(hints))]
        checkpointing = self.checkpointing and torch.is_grad_enabled()
        return Control(self.base(hints, times.float(), context, self.heads, groups, checkpointing))

    def published(self, tensors: Mapping[str, Tensor]) -> Published:
        """One file, keys as in the published LoRAs."""
        return {"": published(tensors)}
