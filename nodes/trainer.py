"""The node that trains."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..training.config import OPTIMIZERS, PRECISIONS, SCHEDULES, TrainConfig
from .host.inspect_file import show_text
from .host.recipe_ctrlora import CtrLoRARecipe
from .host.train_files import files_for
from .host.train_job import TrainJob, train
from .sockets import CTRLORA_BASE, FILE_NAME, LOSS_MAP, PAIR_DATASET, TRAINING, schema

MANY = 100_000


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
            search_aliases=["train controlnet", "train lora", "finetune", "control lora"],
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
                io.Int.Input(
                    "steps",
                    default=1000,
                    min=1,
                    max=MANY,
                    tooltip="Updates of the weights. 1,000 show the condition; colours need many more.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=1e-5,
                    min=1e-7,
                    max=0.1,
                    step=1e-7,
                    round=False,
                    tooltip="How far one update goes. 1e-5 as published.",
                ),
                io.Int.Input(
                    "batch_size", default=1, min=1, max=256, tooltip="Pairs that are computed at once. 1 as published."
                ),
                io.Int.Input(
                    "accumulation_steps",
                    default=1,
                    min=1,
                    max=256,
                    tooltip="Batches in one update: the same as a larger batch, in the memory of a small one.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="fp32",
                    tooltip="Type of the computation. fp32 as published; bf16 takes about half the memory. What is trained is "
                    "kept in fp32 in any case.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    # A new seed after every run would be another training, which could not go on from the state.
                    control_after_generate=False,
                    tooltip="Of the LoRA's first numbers, the order of the pairs, noise and timesteps.",
                ),
                io.Int.Input(
                    "save_every", default=250, min=1, max=MANY, tooltip="Steps between two saved states. The last two are kept."
                ),
                io.Int.Input(
                    "preview_every",
                    default=250,
                    min=0,
                    max=MANY,
                    tooltip="Steps between two previews, each 20 sampling steps for up to four pairs. 0 makes none.",
                ),
                io.Int.Input(
                    "validation_pairs",
                    default=4,
                    min=0,
                    max=64,
                    tooltip="Pairs that are held out: for previews, and to measure whether the hint is heard.",
                ),
                io.Boolean.Input(
                    "resume",
                    default=True,
                    tooltip="Go on from the saved state of this name, if there is one. Off refuses a name that is taken.",
                ),
                io.Boolean.Input(
                    "gradient_checkpointing",
                    default=False,
                    optional=True,
                    tooltip="Compute more, keep less: for small memory. The numbers stay the same.",
                ),
                io.Combo.Input(
                    "optimizer",
                    options=list(OPTIMIZERS),
                    default="adamw",
                    optional=True,
                    tooltip="AdamW, or AdamW with a state of eight bits, which needs the package bitsandbytes.",
                ),
                io.Combo.Input(
                    "schedule",
                    options=list(SCHEDULES),
                    default="constant",
                    optional=True,
                    tooltip="Learning rate over the steps: constant as published, or a cosine down to 0.",
                ),
                io.Int.Input(
                    "warmup_steps",
                    default=0,
                    min=0,
                    max=MANY,
                    optional=True,
                    tooltip="Steps in which the learning rate rises from 0.",
                ),
                io.Float.Input(
                    "max_grad_norm",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    optional=True,
                    tooltip="Length that the gradient is cut to. 0 leaves it, as published.",
                ),
                io.Float.Input(
                    "ema_decay",
                    default=0.0,
                    min=0.0,
                    max=0.9999,
                    step=0.0001,
                    round=False,
                    optional=True,
                    tooltip="Average the weights over the steps, and save the average: 0.999 is usual. 0 saves the weights.",
                ),
                io.Float.Input(
                    "min_snr_gamma",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.5,
                    optional=True,
                    tooltip="Weigh timesteps by their signal-to-noise ratio, cut at this value: 5 is usual. 0 weighs all "
                    "alike, as published.",
                ),
                io.Int.Input(
                    "sensitivity_every",
                    default=50,
                    min=0,
                    max=MANY,
                    optional=True,
                    tooltip="Steps between two measurements of how much worse the prediction gets with another pair's hint. 0 "
                    "takes none.",
                ),
            ],
            outputs=[
                FILE_NAME.Output(display_name="lora_file", tooltip="The new file, as Load CtrLoRA takes it."),
                LOSS_MAP.Output(display_name="loss", tooltip="The loss of every step, for Plot Loss Graph."),
                io.Image.Output(
                    display_name="previews",
                    tooltip="Hint, result and target of the held-out pairs, one picture for each preview; black without any.",
                ),
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
