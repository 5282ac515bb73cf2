"""Hints that are lines."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io

from ..preprocessors.canny import Thresholds, canny
from .host.controlnext_file import check_choice
from .host.hint_output import make_hints, show
from .sockets import LINES_HINTS, image_input, preview_schema, resolution_input

THRESHOLDS = get_args(Thresholds)


class Canny(io.ComfyNode):
    """`IMAGE` to edges."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return preview_schema(
            node_id="NextControlCanny",
            display_name="Canny Hint (Edges)",
            category=LINES_HINTS,
            description="White edges on black, pixel for pixel as the annotators of CtrLoRA and ControlNeXt draw them.",
            search_aliases=["edge", "canny", "edges", "edge detection", "preprocessor", "annotator"],
            advanced=["thresholds"],
            inputs=[
                image_input(),
                resolution_input(),
                io.Int.Input(
                    "low_threshold",
                    default=100,
                    min=0,
                    max=255,
                    tooltip="Where a line that has begun may go on; lower gives longer lines. CtrLoRA was trained with 100.",
                ),
                io.Int.Input(
                    "high_threshold",
                    default=200,
                    min=0,
                    max=255,
                    tooltip="Where a line begins; lower gives more lines. CtrLoRA was trained with 200.",
                ),
                io.Combo.Input(
                    "thresholds",
                    options=list(THRESHOLDS),
                    default="fixed",
                    optional=True,
                    tooltip="fixed takes the two values above. median takes them from each picture's brightness instead, as "
                    "ControlNeXt SDXL does.",
                ),
            ],
            outputs=[io.Image.Output(display_name="hint", tooltip="White lines on black, one for each picture.")],
        )

    @classmethod
    def execute(
        cls, image: Any, resolution: int, low_threshold: int, high_threshold: int, thresholds: str = "fixed"
    ) -> io.NodeOutput:
        check_choice("thresholds", thresholds, THRESHOLDS)
        return show(
            make_hints(image, lambda frames: canny(frames, resolution, low_threshold, high_threshold, thresholds))  # type: ignore[arg-type]
        )
