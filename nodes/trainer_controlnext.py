"""The node that trains a ControlNeXt."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..models.injection import NORMALIZATIONS
from ..training.clips import ClipSettings
from ..training.config import TrainConfig
from ..training.method_controlnext import UNET_PARTS, ControlNeXtOptions
from .host.controlnext_file import NO_FILE
from .host.recipe_controlnext import ControlNeXtRecipe
from .host.text import show_text
from .host.train_files import files_for
from .host.train_job import TrainJob, train
from .sockets import (
    ADVANCED_TRAINING,
    FILE_NAME,
    PAIR_DATASET,
    TRAINING,
    optional_training_inputs,
    schema,
    training_inputs,
    training_outputs,
)

# Source: dvlab-research/ControlNeXt@ab4b3ac ControlNeXt-SD1.5-Training/README.md, one GPU's share; for SDXL issue 36 there.
STEPS, ACCUMULATION = 2000, 6
TOOLTIPS = {
    "steps": "Updates of the weights. The authors' Canny run for SDXL, at batch 16, converged from 2,000 on and was done by "
    "5,000.",
    "learning_rate": "How far one update of the UNet's part goes. 1e-5 as published. The module learns faster, see "
    "control_rate_factor.",
    "batch_size": "Pairs that are computed at once. The authors had 6 on each of four GPUs for SD1.5: here 1 with 6 "
    "accumulation_steps makes the 6 of one GPU.",
    "seed": "Of the module's first numbers, the order of the pairs, noise and timesteps.",
}


class TrainControlNeXt(io.ComfyNode):
    """Pairs to a ControlNeXt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="NextControlTrainControlNeXt",
            display_name="Train ControlNeXt",
            category=TRAINING,
            description="Train a ControlNeXt of your own from pairs of pictures, for SVD of clips: a small module that reads "
            "the hint, and the part of the UNet that goes with it. Cancel saves the state; queue the same again to go on. The "
            "files go into models/controlnext, with states, numbers and previews beside them.",
            search_aliases=["train controlnext", "train controlnet", "finetune", "control next", "training", "fine-tune"],
            advanced=["control_rate_factor", "normalization", *ADVANCED_TRAINING],
            inputs=[
                io.Model.Input("model", tooltip="An SD1.5, SDXL or SVD checkpoint, with LoRAs if you like. It is not changed."),
                io.Vae.Input("vae", tooltip="The checkpoint's VAE. It leaves memory before the training."),
                PAIR_DATASET.Input("dataset", tooltip="From Pair Dataset: pictures for SD1.5 and SDXL, clips for SVD."),
                io.String.Input(
                    "name",
                    default="my_control",
                    tooltip="Name of the new files in models/controlnext, sub-folders allowed; the UNet's part has _unet "
                    "behind it. Nothing is overwritten.",
                ),
                io.Float.Input(
                    "scale",
                    default=1.0,
                    min=0.01,
                    max=10.0,
                    step=0.01,
                    tooltip="Factor of the control in training; later strength 1 means it. The authors advise 1 for dense "
                    "hints such as depth, and 0.35 for Canny.",
                ),
                io.Combo.Input(
                    "unet_part",
                    options=list(UNET_PARTS),
                    default=UNET_PARTS[0],
                    tooltip="What is trained of the UNet: output projections of its attentions (to_out), of those to the text "
                    "alone (attn2_to_out), all or none of it. auto is as published: to_out for SD1.5, attn2_to_out for SDXL, "
                    "all for SVD.",
                ),
                *training_inputs(STEPS, ACCUMULATION, TOOLTIPS),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The checkpoint's text encoder, needed for SD1.5 and SDXL. It leaves memory before the training.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="The checkpoint's image encoder, needed for SVD. It leaves memory before the training.",
                ),
                io.Float.Input(
                    "control_rate_factor",
                    default=10.0,
                    min=0.1,
                    max=1000.0,
                    step=0.1,
                    optional=True,
                    tooltip="Learning rate of the module, as a multiple of learning_rate. 10 as published for SD1.5 and SDXL, "
                    "1 for SVD.",
                ),
                io.Combo.Input(
                    "normalization",
                    options=list(NORMALIZATIONS),
                    default=NORMALIZATIONS[0],
                    optional=True,
                    tooltip="How the control is added: with the mean and spread of the UNet's own feature, as published, or as "
                    "it is, through a convolution that starts at zero. The second is for comparison.",
                ),
                *optional_training_inputs(),
                io.Int.Input(
                    "frames",
                    default=ClipSettings.frames,
                    min=2,
                    max=256,
                    optional=True,
                    tooltip="For SVD: frames of a clip that are trained at once, the reference among them. Memory follows it.",
                ),
                io.Int.Input(
                    "interval",
                    default=ClipSettings.interval,
                    min=0,
                    max=1000,
                    optional=True,
                    tooltip="For SVD: how many frames of the clip lie from one to the next. 0 draws 2 to 7 each time.",
                ),
            ],
            outputs=[
                FILE_NAME.Output(display_name="control_file", tooltip="The new module, as Load ControlNeXt takes it."),
                FILE_NAME.Output(
                    display_name="unet_file",
                    tooltip="The UNet's part, as Load ControlNeXt takes it: differences to this checkpoint. none where no part "
                    "of the UNet was trained.",
                ),
                *training_outputs(),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, name: str) -> bool | str:
        """Name an impossible name before anything runs."""
        try:
            files_for(name or "", ControlNeXtRecipe.folder)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model: Any,
        vae: Any,
        dataset: Any,
        name: str,
        scale: float,
        unet_part: str,
        resume: bool,
        clip: Any = None,
        clip_vision: Any = None,
        control_rate_factor: float = ControlNeXtOptions.control_rate_factor,
        normalization: str = ControlNeXtOptions.normalization,
        frames: int = ClipSettings.frames,
        interval: int = ClipSettings.interval,
        **settings: Any,
    ) -> io.NodeOutput:
        node = cls.hidden and cls.hidden.unique_id
        if settings["validation_pairs"] == 0:
            settings["preview_every"] = 0
        recipe = ControlNeXtRecipe(ControlNeXtOptions(scale, unet_part, control_rate_factor, normalization))
        clips = ClipSettings(frames=frames, interval=interval)
        job = TrainJob(model, clip, vae, recipe, dataset, name, TrainConfig(**settings), resume, clip_vision, clips)
        result = train(job, lambda text: show_text(text, node))
        control_file, unet_file = (*result.files, NO_FILE)[:2]
        return io.NodeOutput(control_file, unet_file, {"loss": result.losses}, result.previews)
