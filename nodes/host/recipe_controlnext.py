"""A ControlNeXt for SD1.5, SDXL or SVD: a new module, and the part of the model that learns with it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher

from ...models.controlnext import GENERATIONS
from ...models.foreign import shown
from ...models.injection import INJECTIONS, Family
from ...training.config import TrainConfig
from ...training.method import HintForm
from ...training.method_controlnext import UNET_SUFFIX, ControlNeXtMethod, ControlNeXtOptions, start_module
from .backbone import check_trainable
from .backbone_svd import check_video_model
from .unet_keys import published_names
from .unet_structure import family_of, find_place, unet_config_of

STEM_PADDING = 1
"""Of every module trained here, as in the reference's trainers."""
VARIANTS: Mapping[Family, str] = {"sd15": "sd15", "sdxl": "sdxl", "svd": "svd_v2"}
"""The row of `INJECTIONS` that is trained on a model of each family."""


@dataclass(eq=False)
class ControlNeXtRecipe:
    """See `train_job.Recipe`."""

    options: ControlNeXtOptions = field(default_factory=ControlNeXtOptions)
    method = "controlnext"
    folder = "controlnext"
    hint_form: HintForm = "pixels"
    _about: dict[str, Any] = field(default_factory=dict)
    """What `build` has learned of the model."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The module, and the difference to the UNet where a part of it is trained."""
        return ("",) if self.options.unet_part == "none" else ("", UNET_SUFFIX)

    def check(self, model: ModelPatcher, config: TrainConfig) -> None:  # noqa: ARG002
        """See `train_job.Recipe`."""
        family = family_of(model)
        (check_video_model if family == "svd" else check_trainable)(model)
        if not trained_names(model, self.options, family) and self.options.unet_part != "none":
            raise ValueError(f"The model has no tensors of unet_part '{shown(self.options.unet_part)}': set it to none.")

    def context_width(self, model: ModelPatcher) -> int:
        """That of the model."""
        width: int = unet_config_of(model)["context_dim"]
        return width

    def networks(self) -> list[ModelPatcher]:
        """None but the model."""
        return []

    def build(self, model: ModelPatcher, config: TrainConfig) -> ControlNeXtMethod:
        """A module with new weights."""
        unet: UNetModel = model.model.diffusion_model
        family = family_of(model)
        injection = INJECTIONS[VARIANTS[family]]
        sizes = GENERATIONS[injection.generation - 1].narrowed(self.options.width)
        sizes = replace(sizes, out=find_place(unet, injection.site).channels)
        network = start_module(sizes, self.options, config.seed, STEM_PADDING).to(model.load_device)
        names = trained_names(model, self.options, family)
        originals = {name: unet.get_parameter(name) for name in names}
        method = ControlNeXtMethod(network, injection, self.options, originals, names, config.gradient_checkpointing)
        self._about = {
            "family": family,
            "variant": VARIANTS[family],
            "parameters": sum(tensor.numel() for tensor in network.parameters()),
            "unet_parameters": sum(tensor.numel() for tensor in method.weights.values()),
        }
        return method

    def identity(self) -> dict[str, str]:
        """The options."""
        return {"controlnext options": hashlib.blake2b(self.options.to_json().encode(), digest_size=20).hexdigest()}

    def describe(self) -> dict[str, Any]:
        """What the loader reads, and the sizes; `build` comes first."""
        has_unet = self.options.unet_part != "none"
        return {
            "kind": "controlnext",
            **self._about,
            "unet_weights": "delta" if has_unet else "",
            "stem_padding": STEM_PADDING,
            "normalization": self.options.normalization,
            "scale": self.options.scale,
            "unet_part": self.options.unet_part,
            "control_rate_factor": self.options.control_rate_factor,
            "width": self.options.width,
        }


def trained_names(model: ModelPatcher, options: ControlNeXtOptions, family: Family) -> dict[str, str]:
    """The UNet's tensors that are trained: the host's name to the published one."""
    own = [name for name, _ in model.model.diffusion_model.named_parameters()]
    # Files for SVD have the host's names, as the one that others repacked for it: its own table lacks the time axis.
    names = dict(zip(own, own, strict=True)) if family == "svd" else published_names(unet_config_of(model), own)
    return {name: published for name, published in names.items() if options.is_trained(published, family)}
