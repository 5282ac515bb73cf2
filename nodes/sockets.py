"""Socket types of our own, and schemas that every supported host understands."""

from __future__ import annotations

import inspect
from typing import Any

from comfy_api.latest import io

from ..preprocessors.canvas import HINT_FOR

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


HINTS = "NextControl/hints"
"""The category of the hint nodes."""
VIDEO = "NextControl/video"
"""The category of the video nodes."""
TRAINING = "NextControl/training"
"""The category of the nodes around training."""


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


def schema(**arguments: Any) -> io.Schema:
    """An `io.Schema` without the arguments that this host's version does not know.

    Args:
        arguments: Of the newest supported host's `io.Schema`, `search_aliases` among them.

    Returns:
        The schema.
    """
    known = inspect.signature(io.Schema).parameters
    return io.Schema(**{name: value for name, value in arguments.items() if name in known})
