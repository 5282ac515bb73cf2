"""Hints with a black part, which is to be painted, and its mask."""

from __future__ import annotations

from typing import Any, get_args

import torch
from comfy_api.latest import io

from ..preprocessors.canvas import hint_size
from ..preprocessors.holes import Shape, draw_holes
from ..preprocessors.inpaint import inpaint
from ..preprocessors.outpaint import Mode, outpaint, outpaint_window
from .host.controlnext_file import check_choice
from .host.hint_output import fit_holes, make_hints, seeds_for, show
from .host.hints import check_image, real_mask
from .host.progress import FRAMES_PER_CHUNK
from .sockets import REGIONS_HINTS, image_input, per_frame_input, preview_schema, resolution_input, seed_input

SHAPES, MODES = get_args(Shape), get_args(Mode)


class Inpaint(io.ComfyNode):
    """`IMAGE` to one with a hole."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return preview_schema(
            node_id="NextControlInpaint",
            display_name="Inpaint Hint (Mask)",
            category=REGIONS_HINTS,
            description="The picture, black where it is to be painted: in a random hole, as CtrLoRA's inpainting was trained, "
            "or in your own mask.",
            search_aliases=["hole", "mask", "inpainting", "brush", "masked", "preprocessor", "annotator"],
            advanced=["per_frame"],
            inputs=[
                image_input(),
                resolution_input(),
                io.Combo.Input(
                    "shape",
                    options=list(SHAPES),
                    default="brush",
                    tooltip="Of the random hole: strokes of a brush, or a rectangle around the middle. CtrLoRA has a condition "
                    "for each.",
                ),
                seed_input("Size and place of the random hole."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Your own hole in place of the random one: black above 0.5. One mask, or one for each picture, in "
                    "the picture's proportions.",
                ),
                per_frame_input(),
            ],
            outputs=[
                io.Image.Output(display_name="hint", tooltip="The pictures with their holes."),
                io.Mask.Output(display_name="mask", tooltip="1 in the hole, at the hint's size, one for each picture."),
            ],
        )

    @classmethod
    def execute(
        cls, image: Any, resolution: int, shape: str, seed: int, mask: Any = None, per_frame: bool = False
    ) -> io.NodeOutput:
        check_choice("shape", shape, SHAPES)
        check_image(image, "image")
        size = hint_size(image.shape[1], image.shape[2], resolution)
        mask = real_mask(mask, image)
        if mask is None:
            holes = draw_holes(size, len(image), shape, seeds_for(image, seed, per_frame))  # type: ignore[arg-type]
        else:
            holes = fit_holes(mask, image, size)
        hints = make_hints(image, lambda frames, some: inpaint(frames, resolution, holes=some), FRAMES_PER_CHUNK, holes)
        return show(hints, holes)


class Outpaint(io.ComfyNode):
    """`IMAGE` to one with black around it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return preview_schema(
            node_id="NextControlOutpaint",
            display_name="Outpaint Hint (Uncrop)",
            category=REGIONS_HINTS,
            description="The picture in the middle and black around it, which is to be painted. As CtrLoRA's outpainting was "
            "trained.",
            search_aliases=["pad", "uncrop", "extend", "outpainting", "preprocessor", "annotator"],
            inputs=[
                image_input(),
                resolution_input(),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="pad",
                    tooltip="pad shows the whole picture with black around it. window blackens the picture's own border, as in "
                    "training.",
                ),
                io.Int.Input(
                    "keep_height",
                    default=50,
                    min=10,
                    max=100,
                    tooltip="Percent of the hint's height that is picture. CtrLoRA was trained with 20 to 79.",
                ),
                io.Int.Input(
                    "keep_width",
                    default=50,
                    min=10,
                    max=100,
                    tooltip="Percent of the hint's width that is picture. CtrLoRA was trained with 20 to 79.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="hint", tooltip="The pictures with black around them."),
                io.Mask.Output(display_name="mask", tooltip="1 in the black part, at the hint's size, one for each picture."),
            ],
        )

    @classmethod
    def execute(cls, image: Any, resolution: int, mode: str, keep_height: int, keep_width: int) -> io.NodeOutput:
        check_choice("mode", mode, MODES)
        hints = make_hints(image, lambda frames: outpaint(frames, resolution, mode, keep_height, keep_width))  # type: ignore[arg-type]
        _, window = outpaint_window(image.shape[1], image.shape[2], resolution, mode, keep_height, keep_width)  # type: ignore[arg-type]
        mask = torch.ones(hints.shape[:3])
        mask[:, window[0], window[1]] = 0
        return show(hints, mask)
