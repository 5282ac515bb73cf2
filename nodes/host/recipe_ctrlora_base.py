"""A base for CtrLoRAs from the model's own encoder, trained with several conditions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfy.model_patcher import ModelPatcher

from ...models.adapted import LORA
from ...models.ctrlora import CtrLoRA
from ...models.ctrlora_file import control_tensors
from ...models.foreign import shown
from ...training.config import TrainConfig
from ...training.method import HintForm, Published
from ...training.method_ctrlora_base import STACKED, CtrLoRABaseMethod, start_lora, suffixes
from ...training.mixed import check_conditions
from ...training.trainable import trainable_shapes
from .backbone import check_trainable
from .encoder_copy import copy_encoder, encoder_config
from .encoders import digest_of_weights
from .recipe_ctrlora import heads_of
from .train_files import files_for
from .unet_structure import unet_config_of

LAYOUTS = ("files", "loras_dict")
"""What is written: a base and a file for each condition; or all of these, and the reference's one file as well."""


@dataclass(eq=False)
class CtrLoRABaseRecipe:
    """See `train_job.Recipe`.

    Raises:
        ValueError: A condition's name cannot be used, or there is no such layout.
    """

    conditions: tuple[str, ...]
    rank: int
    name: str
    """Of the base's file, for the headers of the others."""
    layout: str = "files"
    method = "ctrlora_base"
    folder = "ctrlora"
    hint_form: HintForm = "latent"

    def __post_init__(self) -> None:
        check_conditions(self.conditions)
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout is '{shown(self.layout)}' and must be {' or '.join(LAYOUTS)}: choose one of these.")

    @property
    def is_stacked(self) -> bool:
        """Whether the reference's one file is written."""
        return self.layout == "loras_dict"

    @property
    def suffixes(self) -> tuple[str, ...]:
        """See `train_job.Recipe`."""
        return suffixes(self.conditions, self.is_stacked)

    def check(self, model: ModelPatcher, config: TrainConfig) -> None:  # noqa: ARG002
        """See `train_job.Recipe`."""
        trainable_shapes(encoder_config(model), self.rank)
        check_trainable(model)

    def context_width(self, model: ModelPatcher) -> int:
        """That of the model."""
        width: int = unet_config_of(model)["context_dim"]
        return width

    def networks(self) -> list[ModelPatcher]:
        """None: what is trained is no network of the host."""
        return []

    def build(self, model: ModelPatcher, config: TrainConfig) -> CtrLoRABaseMethod:
        """A copy of the model's encoder that adds nothing yet, and LoRAs that change nothing yet."""
        device = model.load_device
        tensors, sizes = copy_encoder(model)
        base = CtrLoRA(sizes, device="meta")
        base.load_state_dict({key: tensor.to(device) for key, tensor in tensors.items()}, assign=True)
        loras = {name: start_lora(sizes, self.rank, config.seed, name, device) for name in self.conditions}
        return CtrLoRABaseMethod(base, loras, heads_of(model), config.gradient_checkpointing, self.is_stacked)

    def identity(self) -> dict[str, str]:
        """The conditions; base and LoRAs are the model's and the seed's."""
        return {"list of conditions": ", ".join(self.conditions)}

    def describe(self) -> dict[str, Any]:
        """What all files share."""
        return {"family": "sd15", "conditions": ", ".join(self.conditions), "rank": self.rank}

    def describe_files(self, published: Published) -> dict[str, dict[str, Any]]:
        """Kinds, and which base each LoRA belongs to."""
        own = control_tensors(published[""])
        base = {"base": files_for(self.name).name, "base_hash": digest_of_weights(own, is_whole=True)}
        files: dict[str, dict[str, Any]] = {"": {"kind": "ctrlora_base"}, STACKED: {"kind": "ctrlora_pretraining"}}
        for name in self.conditions:
            layers = sum(key.endswith(f"{LORA}down.weight") for key in published[f"_{name}"])
            files[f"_{name}"] = {"kind": "ctrlora_lora", "condition": name, "layers": layers}
        return {suffix: own | base for suffix, own in files.items()}
