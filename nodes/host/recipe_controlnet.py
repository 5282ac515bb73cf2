"""A ControlNet from the model's own encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfy.model_patcher import ModelPatcher

from ...models.foreign import shown
from ...training.config import TrainConfig
from ...training.method import HintForm
from ...training.method_controlnet import HINT_ENCODERS, ControlNetMethod, start_network
from .backbone import check_trainable
from .encoder_copy import check_topology, copy_encoder
from .recipe_ctrlora import heads_of
from .unet_structure import unet_config_of

AVERAGED = ("_shuffle", "_shuffle_fp16")
"""Endings of names that switch on global average pooling. Source: ComfyUI 0.3.75 comfy/controlnet.py, `load_controlnet`."""


@dataclass(eq=False)
class ControlNetRecipe:
    """See `train_job.Recipe`.

    Raises:
        ValueError: There is no such hint encoder, or the loader would take the name for another kind of ControlNet.
    """

    hint_encoder: str = "convolutions"
    """One of `HINT_ENCODERS`."""
    name: str = ""
    """Of the file, where it is known."""
    method = "controlnet"
    suffixes = ("",)

    def __post_init__(self) -> None:
        if self.hint_encoder not in HINT_ENCODERS:
            raise ValueError(
                f"hint_encoder is '{shown(self.hint_encoder)}' and must be {' or '.join(HINT_ENCODERS)}: choose one of these."
            )
        if self.has_convolutions and self.name.removesuffix(".safetensors").endswith(AVERAGED):
            raise ValueError(
                f"name is '{shown(self.name)}', and ComfyUI averages the controls of files with such an ending over the "
                "picture: choose one that does not end in _shuffle."
            )

    @property
    def has_convolutions(self) -> bool:
        """Whether the network has a hint encoder of its own."""
        return self.hint_encoder == "convolutions"

    @property
    def folder(self) -> str:
        """Where the loader looks: ComfyUI's own, or the one for bases."""
        return "controlnet" if self.has_convolutions else "ctrlora"

    @property
    def hint_form(self) -> HintForm:
        """See `train_job.Recipe`."""
        return "pixels" if self.has_convolutions else "latent"

    def check(self, model: ModelPatcher, config: TrainConfig) -> None:  # noqa: ARG002
        """See `train_job.Recipe`."""
        check_topology(model)
        check_trainable(model)

    def context_width(self, model: ModelPatcher) -> int:
        """That of the model."""
        width: int = unet_config_of(model)["context_dim"]
        return width

    def networks(self) -> list[ModelPatcher]:
        """None: what is trained is no network of the host."""
        return []

    def build(self, model: ModelPatcher, config: TrainConfig) -> ControlNetMethod:
        """A copy of the model's encoder that adds nothing yet."""
        encoder, sizes = copy_encoder(model)
        network = start_network(encoder, sizes, self.hint_encoder, config.seed, model.load_device)
        return ControlNetMethod(network, heads_of(model), config.gradient_checkpointing)

    def identity(self) -> dict[str, str]:
        """How hints are read; the network itself is the model's and the seed's."""
        return {"hint encoder": self.hint_encoder}

    def describe(self) -> dict[str, Any]:
        """What loads it, and how it reads hints."""
        kind = "controlnet" if self.has_convolutions else "ctrlora_base"
        return {"kind": kind, "family": "sd15", "hint_encoder": self.hint_encoder}
