"""Hints that are shapes in space."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..preprocessors.canvas import HINT_FOR
from ..preprocessors.depth import depth
from ..preprocessors.normal import BACKGROUND, normal, normal_from_depth
from .host.annotators import annotator_stamp, check_annotator, list_annotators, make_annotated
from .host.controlnext_file import check_choice
from .host.hint_output import make_hints, show
from .host.hints import check_image
from .sockets import DEPTH_HINTS, hint_for_input, image_input, preview_schema, resolution_input

TASK = "depth"


class Depth(io.ComfyNode):
    """`IMAGE` to depth."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return preview_schema(
            node_id="NextControlDepth",
            display_name="Depth Hint (Depth Map)",
            category=DEPTH_HINTS,
            description="Estimate how near everything in a picture is, with a depth network from models/annotators. Near is "
            "bright, or coloured as ControlNeXt's depth controls want it.",
            search_aliases=["depth", "midas", "dpt", "depth anything", "zoe", "depth map", "preprocessor", "annotator"],
            inputs=[
                image_input(),
                resolution_input(),
                io.Combo.Input(
                    "model",
                    options=list_annotators(TASK),
                    tooltip="The folder of a depth network in models/annotators, as the Hugging Face hub has it. A known one "
                    "that is not there yet is listed too, and the error then has the command that fetches it.",
                ),
                hint_for_input(
                    "ctrlora is grey, near is bright, in 256 steps. controlnext colours the distance in viridis, near is dark "
                    "violet, for vidit_depth. plain is grey without steps."
                ),
                io.Boolean.Input("invert", default=False, optional=True, tooltip="Exchange near and far."),
            ],
            outputs=[
                io.Image.Output(
                    display_name="hint",
                    tooltip="One depth picture for each picture, each from its nearest to its farthest point.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, model: str) -> bool | str:
        """Name a missing or wrong network before anything runs."""
        return check_annotator(model, TASK)

    @classmethod
    def fingerprint_inputs(cls, model: str, **_: Any) -> object:
        """Run again when the network's files have changed."""
        return annotator_stamp(model)

    @classmethod
    def execute(cls, image: Any, resolution: int, model: str, hint_for: str, invert: bool = False) -> io.NodeOutput:
        check_choice("hint_for", hint_for, HINT_FOR)
        return show(
            make_annotated(
                image,
                resolution,
                model,
                TASK,
                lambda frames, side, annotator: depth(frames, side, annotator, hint_for, invert),  # type: ignore[arg-type]
            )
        )


class Normal(io.ComfyNode):
    """`IMAGE` to normals."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return preview_schema(
            node_id="NextControlNormal",
            display_name="Normal Hint (Normal Map)",
            category=DEPTH_HINTS,
            description="Show which way every surface faces, as CtrLoRA colours it, from the depth that a network estimates or "
            "from a depth picture that is there already.",
            search_aliases=["normal", "normal map", "midas", "preprocessor", "annotator"],
            inputs=[
                image_input(),
                resolution_input(),
                io.Combo.Input(
                    "model",
                    options=list_annotators(TASK),
                    tooltip="The folder of a depth network in models/annotators, as in Depth Hint. Not used when depth is "
                    "connected.",
                ),
                io.Float.Input(
                    "background",
                    default=BACKGROUND,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Everything farther than this part of the nearness faces the camera. CtrLoRA was trained with "
                    "0.02.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Multiplies the slopes; 1 is as CtrLoRA was trained with DPT-Large, more shows finer shapes.",
                ),
                io.Image.Input(
                    "depth",
                    optional=True,
                    tooltip="Depth pictures, grey, near is bright. The hint is made from them alone: no network runs and image "
                    "is not looked at.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="hint",
                    tooltip="Red is the slope to the right, green the slope down, blue points at the camera.",
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, model: str, **_: Any) -> object:
        """Run again when the network's files have changed."""
        return annotator_stamp(model)

    @classmethod
    def execute(
        cls, image: Any, resolution: int, model: str, background: float, strength: float, depth: Any = None
    ) -> io.NodeOutput:
        if depth is None:
            return show(
                make_annotated(
                    image,
                    resolution,
                    model,
                    TASK,
                    lambda frames, side, annotator: normal(frames, side, annotator, background, strength),
                )
            )
        check_image(depth, "depth")
        return show(make_hints(depth, lambda pictures: normal_from_depth(pictures, resolution, background, strength)))
