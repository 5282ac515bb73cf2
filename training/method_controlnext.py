"""ControlNeXt: a small module whose control enters the diffusion model at one place, and a part of the diffusion model itself.

Source: arXiv:2408.06070; dvlab-research/ControlNeXt@ab4b3ac ControlNeXt-SD1.5-Training/train_controlnext.py,
ControlNeXt-SDXL-Training/train_controlnext.py.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..models.controlnext import ControlNeXt, ControlNeXtConfig
from ..models.injection import NORMALIZATIONS, Family, Injection, cross_normalize
from .backbone import Control
from .draws import generator_for
from .method import HintForm, Published
from .settings import settings_from

MODULE, UNET = "module.", "unet."
"""Prefixes of the names of what is trained."""
UNET_SUFFIX = "_unet"
"""Of the name of the file with the diffusion model's part."""
UNET_PARTS = ("auto", "none", "to_out", "attn2_to_out", "all")
WIDTHS = (0.25, 0.5, 1.0)
PUBLISHED_PARTS: Mapping[Family, str] = {"sd15": "to_out", "sdxl": "attn2_to_out", "svd": "all"}
"""What the reference's trainers train of each family's UNet."""


@dataclass(frozen=True)
class ControlNeXtOptions:
    """What distinguishes one ControlNeXt training from another; the defaults are the reference's.

    Raises:
        ValueError: With every contradiction in one sentence.
    """

    scale: float = 1.0
    """Multiplier of the control; the authors advise 1 for dense hints such as depth, and 0.35 for canny."""
    unet_part: str = "auto"
    """Name, one of `UNET_PARTS`: which tensors of the UNet are trained; "auto" takes those of the reference."""
    control_rate_factor: float = 10.0
    """Multiple of the run's learning rate that the module has; the UNet's part has 1."""
    normalization: str = "cross"
    """Name, one of `NORMALIZATIONS`; "zero_convolution" adds the control as it is, through a convolution that starts at 0."""
    width: float = 1.0
    """Channels of the module as a multiple of the published ones, one of `WIDTHS`; less suits a model that is small itself."""

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise ValueError("; ".join(problems) + ".")

    def _problems(self) -> Iterator[str]:
        for name in ("scale", "control_rate_factor"):
            if not 0 < getattr(self, name) < math.inf:
                yield f"{name} ({getattr(self, name)}) must be above 0"
        for name, choices in (("unet_part", UNET_PARTS), ("normalization", NORMALIZATIONS)):
            if getattr(self, name) not in choices:
                yield f"{name} ('{getattr(self, name)}') must be {' or '.join(choices)}"
        if self.width not in WIDTHS:
            yield f"width ({self.width}) must be {' or '.join(map(str, WIDTHS))}"

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> ControlNeXtOptions:
        """Options as a configuration file has them.

        Args:
            values: By name.

        Returns:
            What is left out has its default.

        Raises:
            ValueError: A name is unknown, a type is wrong, or the options contradict each other.
        """
        return settings_from(cls, values, "no option of controlnext")

    def to_json(self) -> str:
        """All options as one JSON object; the usual width is left out, as in states from before there was another."""
        values = dataclasses.asdict(self)
        return json.dumps({name: value for name, value in values.items() if name != "width" or value != 1.0})

    def is_trained(self, name: str, family: Family) -> bool:
        """Whether a tensor of the UNet is trained.

        Args:
            name: Its published (diffusers) name.
            family: Of the UNet.

        Returns:
            True for those of `unet_part`.
        """
        part = PUBLISHED_PARTS[family] if self.unet_part == "auto" else self.unet_part
        if part == "all":
            return True
        return part != "none" and "to_out" in name and (part == "to_out" or "attn2" in name.partition("to_out")[0])


def start_module(config: ControlNeXtConfig, options: ControlNeXtOptions, seed: int, stem_padding: int = 1) -> ControlNeXt:
    """A module that has learned nothing.

    Args:
        config: Its sizes.
        options: Of the training.
        seed: A tensor's numbers depend on it and the tensor's name alone.
        stem_padding: See `ControlNeXt`.

    Returns:
        fp32 on the CPU, with torch's own distributions as in the reference.
    """
    network = ControlNeXt(config, stem_padding, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for path, module in network.named_modules():
            weight = getattr(module, "weight", None)
            for name, tensor in module.named_parameters(recurse=False):
                if weight is None or weight.ndim < 2:  # a norm
                    tensor.fill_(float(name != "bias"))
                    continue
                limit = weight[0].numel() ** -0.5
                drawn = torch.rand(tensor.shape, generator=generator_for("controlnext", seed, f"{path}.{name}"))
                tensor.copy_((2 * drawn - 1) * limit)
        if options.normalization == "zero_convolution":
            for tensor in network.mid_convs[-1].parameters():
                tensor.zero_()
    return network


class ControlNeXtMethod:
    """See `training.method.Method`.

    Args:
        network: The module, fp32, on the backbone's device; wholly trained.
        injection: How the control meets the feature: a row of `INJECTIONS`.
        options: Of the training.
        originals: The diffusion model's tensors to train, by its own names, any type; they are copied.
        names: Their published names, by its own.
        checkpointing: Keep the module's input alone, and compute it again in the backward pass.
    """

    hint_form: HintForm = "pixels"

    def __init__(
        self,
        network: ControlNeXt,
        injection: Injection,
        options: ControlNeXtOptions,
        originals: Mapping[str, Tensor],
        names: Mapping[str, str],
        checkpointing: bool = False,
    ) -> None:
        self.network = network.requires_grad_(requires_grad=True)
        self.options = options
        self.injection = dataclasses.replace(injection, is_normalized=options.normalization == "cross")
        self.multiplier = self.injection.multiplier(options.scale, is_uncond=False)
        self.names = dict(names)
        self.checkpointing = checkpointing
        # Copies: the host moves its weights, and writes into them when it takes LoRAs off.
        self._originals = {name: tensor.detach().to("cpu", copy=True) for name, tensor in originals.items()}
        device = next(network.parameters()).device
        self.weights = {
            name: tensor.detach().to(device, torch.float32, copy=True).requires_grad_() for name, tensor in originals.items()
        }

    def parameters(self) -> dict[str, Tensor]:
        """The module's tensors, and the diffusion model's."""
        module = {MODULE + name: tensor for name, tensor in self.network.named_parameters()}
        return module | {UNET + name: tensor for name, tensor in self.weights.items()}

    def rate_factor(self, name: str) -> float:
        """The module learns faster."""
        return self.options.control_rate_factor if name.startswith(MODULE) else 1.0

    def control(self, noisy: Tensor, hints: Tensor, times: Tensor, context: Tensor, condition: str) -> Control:  # noqa: ARG002
        """One control for each row, and the trained weights of the diffusion model.

        Args:
            noisy: Not read.
            hints: (N, 3, H, W), pixels in [0, 1]; a row for each row of the feature, frames of a clip included.
            times: (N,), as the diffusion model sees them.
            context: Not read.
            condition: Not read.

        Returns:
            For `Backbone.predict`.
        """
        if self.checkpointing and torch.is_grad_enabled():
            control = checkpoint(self.network, hints, times, use_reentrant=False)
        else:
            control = self.network(hints, times)

        def inject(feature: Tensor) -> Tensor:
            return feature + (cross_normalize(control, feature, self.injection) * self.multiplier).to(feature.dtype)

        return Control(site=self.injection.site, inject=inject, weights=self.weights)

    def published(self, tensors: Mapping[str, Tensor]) -> Published:
        """The module, and what training has added to the diffusion model's weights, where any are trained."""
        module = {
            name.removeprefix(MODULE): tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
            for name, tensor in tensors.items()
            if name.startswith(MODULE)
        }
        # One tensor after the other: a whole UNet is large.
        deltas = {
            self.names[name]: tensors[UNET + name].detach().to("cpu", torch.float32) - original.float()
            for name, original in self._originals.items()
        }
        return {"": module, UNET_SUFFIX: deltas} if deltas else {"": module}
