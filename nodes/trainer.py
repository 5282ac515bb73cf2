"""The node that trains."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..training.config import TrainConfig
from .host.recipe_ctrlora import CtrLoRARecipe
from .host.text import show_text
from .host.train_files import files_for
from .host.train_job import TrainJob, train
from .sockets import (
    ADVANCED_TRAINING,
    CTRLORA_BASE,
    FILE_NAME,
    PAIR_DATASET,
    TRAINING,
    optional_training_inputs,
    schema,
    training_inputs,
    training_outputs,
)

TOOLTIPS = {
    "steps": "Updates of the weights. 1,000 show the condition; colours need many more.",
    "learning_rate": "How far one update goes. 1e-5 as published.",
    "batch_size": "Pairs that are computed at once. 1 as published.",
    "seed": "Of the LoRA's first numbers, the order of the pairs, noise and timesteps.",
}


class TrainCtrLoRA(io.ComfyNode):
    """Pairs to a CtrLoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="NextControlTrainCtrLoRA",
            display_name="Train CtrLoRA",
            category=TRAINING,
            description="Train a CtrLoRA for a condition of your own from pairs of pictures. Cancel saves the whole state; "
            "queue the same again to go on. The file goes into models/ctrlora, with states, numbers and previews beside it.",
            search_aliases=["train controlnet", "train lora", "finetune", "control lora", "training", "fine-tune"],
            advanced=ADVANCED_TRAINING,
            inputs=[
                io.Model.Input("model", tooltip="An SD1.5 checkpoint, with LoRAs if you like. It is not changed."),
                io.Clip.Input("clip", tooltip="The checkpoint's text encoder. It leaves memory before the training."),
                io.Vae.Input("vae", tooltip="The checkpoint's VAE. It leaves memory before the training."),
                CTRLORA_BASE.Input("base", tooltip="From Load CtrLoRA Base. It is not changed."),
                PAIR_DATASET.Input("dataset", tooltip="From Pair Dataset."),
                io.String.Input(
                    "name",
                    default="my_condition",
                    tooltip="Name of the new LoRA in models/ctrlora, sub-folders allowed. Nothing is overwritten.",
                ),
                io.Int.Input(
                    "rank",
                    default=128,
                    min=1,
                    max=1024,
                    tooltip="Rank of the LoRA. 128 as published makes a file of 148 MB, 32 one of 72 MB.",
                ),
                *training_inputs(1000, 1, TOOLTIPS),
                *optional_training_inputs(),
            ],
            outputs=[
                FILE_NAME.Output(display_name="lora_file", tooltip="The new file, as Load CtrLoRA takes it."),
                *training_outputs(),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, name: str) -> bool | str:
        """Name an impossible name before anything runs."""
        try:
            files_for(name or "")
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, model: Any, clip: Any, vae: Any, base: Any, dataset: Any, name: str, resume: bool, **settings: Any
    ) -> io.NodeOutput:
        node = cls.hidden and cls.hidden.unique_id
        if settings["validation_pairs"] == 0:
            settings["preview_every"] = 0
        config = TrainConfig(**settings)
        job = TrainJob(model, clip, vae, CtrLoRARecipe(base, config.rank), dataset, name, config, resume)
        result = train(job, lambda text: show_text(text, node))
        return io.NodeOutput(result.files[0], {"loss": result.losses}, result.previews)
