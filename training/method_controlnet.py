"""ControlNet: a copy of the encoder, all of it trained, with the hint from a few convolutions or from the VAE.

What the noisy latent does: with "convolutions" the copy reads it as the diffusion model does, and the hint is added after the
first block; with "vae" the hint's latent takes its place and the network never sees it, which is CtrLoRA's base.

Source: arXiv:2302.05543, section 3; arXiv:2410.09400, the ablation of the hint encoder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..models.controlnet import HINT_BLOCK, ControlNet
from ..models.ctrlora import CtrLoRA, CtrLoRAConfig
from .backbone import Control
from .draws import generator_for
from .method import HintForm, Published
from .trainable import published

HINT_ENCODERS = ("convolutions", "vae")
PROMPT_DROPOUT = 0.5
"""Fraction of the draws with an empty caption, so that the network looks for meaning in the hint. Source: section 3.3."""


class ControlNetMethod:
    """See `training.method.Method`.

    Args:
        network: What is trained, fp32, on the backbone's device.
        heads: Of its attention.
        checkpointing: Keep each block's input alone, and compute the block again in the backward pass.
    """

    def __init__(self, network: ControlNet | CtrLoRA, heads: int = 8, checkpointing: bool = False) -> None:
        self.network = network.requires_grad_()
        self.heads = heads
        self.checkpointing = checkpointing
        self.hint_form: HintForm = "pixels" if isinstance(network, ControlNet) else "latent"

    def parameters(self) -> dict[str, Tensor]:
        """All of the network's."""
        return dict(self.network.named_parameters())

    def rate_factor(self, name: str) -> float:  # noqa: ARG002 - one rate for all
        """1."""
        return 1.0

    def control(self, noisy: Tensor, hints: Tensor, times: Tensor, context: Tensor, condition: str) -> Control:  # noqa: ARG002
        """The network's controls; shapes as in `ControlEncoder.controls`."""
        checkpointing = self.checkpointing and torch.is_grad_enabled()
        if isinstance(self.network, ControlNet):
            return Control(self.network(noisy, hints, times.float(), context, self.heads, checkpointing))
        return Control(self.network(hints, times.float(), context, self.heads, checkpointing=checkpointing))

    def published(self, tensors: Mapping[str, Tensor]) -> Published:
        """One file: with "convolutions" as published ControlNets are, with "vae" as CtrLoRA's base is."""
        return {"": published(tensors)}


def start_network(
    encoder: Mapping[str, Tensor], config: CtrLoRAConfig, hint_encoder: str, seed: int, device: torch.device | str = "cpu"
) -> ControlNet | CtrLoRA:
    """A network that does nothing yet: the encoder as it is, zero convolutions, and the hint encoder as torch starts them.

    Args:
        encoder: A diffusion model's encoder with zero convolutions, keys without `control_model.`.
        config: Its sizes.
        hint_encoder: One of `HINT_ENCODERS`.
        seed: Of the hint encoder; a layer's numbers depend on it and the layer's name alone.
        device: Of the network.

    Returns:
        In fp32.
    """
    network = (CtrLoRA if hint_encoder == "vae" else ControlNet)(config, device="meta")
    own = {key: tensor for key, tensor in network.state_dict().items() if key.startswith(HINT_BLOCK)}
    tensors = {**encoder, **_start_hint_block(own, seed)}
    network.load_state_dict({key: tensor.float() for key, tensor in tensors.items()}, assign=True)
    return network.to(device)


def _start_hint_block(shapes: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Each convolution uniform in 1 / sqrt(its inputs), as torch's own; the last one zero."""
    last = list(shapes)[-1].rpartition(".")[0] if shapes else ""
    started = {}
    for key, like in shapes.items():
        layer = key.rpartition(".")[0]
        bound = 0.0 if layer == last else 1 / math.sqrt(shapes[f"{layer}.weight"][0].numel())
        started[key] = (torch.rand(like.shape, generator=generator_for("hint encoder", seed, key)) * 2 - 1) * bound
    return started
