"""A CtrLoRA for one condition, over a base that a loader has read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from comfy.model_patcher import ModelPatcher

from ...models.adapted import LORA
from ...training.config import TrainConfig
from ...training.method import HintForm
from ...training.method_ctrlora import CtrLoRAMethod
from ...training.trainable import start_condition, trainable_shapes
from .backbone import check_model
from .ctrlora_control import HEADS
from .ctrlora_load import CtrLoRABase
from .encoders import digest_of_weights


@dataclass(eq=False)
class CtrLoRARecipe:
    """See `train_job.Recipe`."""

    base: CtrLoRABase
    rank: int
    method = "ctrlora"
    folder = "ctrlora"
    suffixes = ("",)
    hint_form: HintForm = "latent"

    def check(self, model: ModelPatcher, config: TrainConfig) -> None:  # noqa: ARG002
        """See `train_job.Recipe`."""
        check_model(model, self.base.config.context_width, self.base.name)
        trainable_shapes(self.base.config, self.rank)

    def context_width(self, model: ModelPatcher) -> int:  # noqa: ARG002
        """That of the base."""
        return self.base.config.context_width

    def networks(self) -> list[ModelPatcher]:
        """The base."""
        return [self.base.network]

    def build(self, model: ModelPatcher, config: TrainConfig) -> CtrLoRAMethod:
        """A condition that does nothing yet."""
        network = self.base.network.model
        condition = start_condition(network, self.rank, config.seed, model.load_device)
        return CtrLoRAMethod(network, condition, heads_of(model), config.gradient_checkpointing)

    def identity(self) -> dict[str, str]:
        """The base's weights."""
        return {"base": self._base_hash}

    @cached_property
    def _base_hash(self) -> str:
        return digest_of_weights(dict(self.base.network.model.state_dict()), is_whole=True)

    def describe(self) -> dict[str, Any]:
        """Base and rank."""
        layers = sum(key.endswith(f"{LORA}down.weight") for key in trainable_shapes(self.base.config, self.rank))
        return {
            "kind": "ctrlora_lora",
            "family": "sd15",
            "base": self.base.name.replace("\\", "/"),
            "base_hash": self._base_hash,
            "rank": self.rank,
            "layers": layers,
        }


def heads_of(model: ModelPatcher) -> int:
    """Heads of every attention of the model; SD1.5's where each layer has its own number."""
    heads: int = model.model.model_config.unet_config.get("num_heads", -1)
    return heads if heads > 0 else HEADS
