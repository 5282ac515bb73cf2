"""Socket types of our own, and schemas that every supported host understands."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from comfy_api.latest import io

from ..preprocessors.canvas import HINT_FOR
from ..training.config import OPTIMIZERS, PRECISIONS, SCHEDULES

CONTROLNEXT = io.Custom("CONTROLNEXT")
CTRLORA_BASE = io.Custom("CTRLORA_BASE")
PAIR_DATASET = io.Custom("PAIR_DATASET")
FILE_NAME = io.Custom("STRING,COMBO")
"""A name that goes into a text field as well as into a list of files."""
LOSS_MAP = io.Custom("LOSS_MAP")
"""ComfyUI's own: {"loss": one number for each step}."""
CONTROL_STACK = io.Custom("CONTROL_STACK")
POSE_KEYPOINT = io.Custom("POSE_KEYPOINT")
"""Key points in OpenPose's JSON shape, as ComfyUI's own SDPose nodes and comfyui_controlnet_aux exchange them."""


LINES_HINTS = "NextControl/hints/lines"
"""The categories of the hint nodes; every word of a category has its Chinese in locales/zh/main.json."""
DEPTH_HINTS = "NextControl/hints/depth"
POSE_HINTS = "NextControl/hints/pose"
COLOR_HINTS = "NextControl/hints/color"
REGIONS_HINTS = "NextControl/hints/regions"
EFFECTS_HINTS = "NextControl/hints/effects"
VIDEO = "NextControl/video"
"""The category of the video nodes."""
TRAINING = "NextControl/training"
"""The category of the nodes around training."""
FROM_SVD = "From Image Only Checkpoint Loader (newer ComfyUI: Load Checkpoint Image Only), of an SVD checkpoint."
"""Tooltip of what an SVD checkpoint holds."""
ADVANCED_TRAINING = (
    "gradient_checkpointing",
    "optimizer",
    "schedule",
    "warmup_steps",
    "max_grad_norm",
    "ema_decay",
    "min_snr_gamma",
    "sensitivity_every",
)
"""The inputs of `optional_training_inputs`."""
MANY = 100_000
"""The most steps of a training."""


def image_input() -> io.Image.Input:
    """The first input of every hint node."""
    return io.Image.Input("image", tooltip="One picture, or a batch or clip of any length.")


def resolution_input() -> io.Int.Input:
    """The second input of every hint node."""
    return io.Int.Input(
        "resolution",
        default=512,
        min=0,
        max=8192,
        step=8,
        tooltip="Shorter side of the hint in pixels; both sides become multiples of 64. 0 keeps the picture's size, rounded "
        "down to multiples of 8.",
    )


def hint_for_input(tooltip: str) -> io.Combo.Input:
    """For the hints whose colours or polarity differ between families."""
    return io.Combo.Input("hint_for", options=list(HINT_FOR), default="ctrlora", tooltip=tooltip)


def percent_inputs() -> tuple[io.Float.Input, io.Float.Input]:
    """The part of sampling in which a control acts."""
    return (
        io.Float.Input(
            "start_percent",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.001,
            tooltip="Where the control begins, as a part of sampling: 0 is the first step.",
        ),
        io.Float.Input(
            "end_percent",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.001,
            tooltip="Where the control ends, as a part of sampling: 1 is the last step.",
        ),
    )


def seed_input(tooltip: str) -> io.Int.Input:
    """For the hints that draw random numbers. Not re-rolled after a run: the same picture gives the same hint."""
    return io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=False, tooltip=tooltip)


def per_frame_input() -> io.Boolean.Input:
    """The last input of the hints that draw random numbers."""
    return io.Boolean.Input(
        "per_frame",
        default=False,
        optional=True,
        tooltip="Off: every picture of a clip gets the same random numbers, so that it does not flicker. On: each gets others, "
        "the seed plus its index.",
    )


def training_inputs(steps: int, accumulation_steps: int, tooltips: Mapping[str, str]) -> list[io.Input]:
    """The settings of every training, `steps` first and `resume` last.

    Args:
        steps: The default.
        accumulation_steps: Likewise.
        tooltips: Of `steps`, `learning_rate`, `batch_size` and `seed`, which differ between methods.

    Returns:
        Required inputs, in their order.
    """
    return [
        io.Int.Input("steps", default=steps, min=1, max=MANY, tooltip=tooltips["steps"]),
        io.Float.Input(
            "learning_rate",
            default=1e-5,
            min=1e-7,
            max=0.1,
            step=1e-7,
            round=False,
            tooltip=tooltips["learning_rate"],
        ),
        io.Int.Input("batch_size", default=1, min=1, max=256, tooltip=tooltips["batch_size"]),
        io.Int.Input(
            "accumulation_steps",
            default=accumulation_steps,
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
            tooltip=tooltips["seed"],
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
    ]


def optional_training_inputs() -> list[io.Input]:
    """The rest of them."""
    return [
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
    ]


def training_outputs() -> list[io.Output]:
    """What every training gives out besides its files."""
    return [
        LOSS_MAP.Output(display_name="loss", tooltip="The loss of every step, for Plot Loss Graph."),
        io.Image.Output(
            display_name="previews",
            tooltip="Hint, result and target of the held-out pairs, one picture for each preview; black without any.",
        ),
    ]


def schema(advanced: Collection[str] = (), **arguments: Any) -> io.Schema:
    """An `io.Schema` without what this host's version does not know.

    Args:
        advanced: Inputs that most users never touch: newer pages fold them away.
        arguments: Of the newest supported host's `io.Schema`, `search_aliases` among them.

    Returns:
        The schema.
    """
    inputs = {spec.id: spec for spec in arguments.get("inputs", ())}
    for spec in (inputs[name] for name in advanced):
        if hasattr(spec, "advanced"):
            spec.advanced = True
    known = inspect.signature(io.Schema).parameters
    return io.Schema(**{name: value for name, value in arguments.items() if name in known})


def preview_schema(**arguments: Any) -> io.Schema:
    """The `schema` of a node that shows pictures: newer hosts show them again when all of the workflow is cached."""
    return schema(has_intermediate_output=True, **arguments)
