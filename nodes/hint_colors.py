"""Hints that are about a picture's colours."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io

from ..preprocessors.color_prompt import color_prompt
from ..preprocessors.grayscale import grayscale
from ..preprocessors.palette import palette
from ..preprocessors.pixel import pixel
from .host.hint_output import check_company, make_hints, seeds_for, show
from .host.hints import check_image
from .host.progress import FRAMES_PER_CHUNK
from .sockets import COLOR_HINTS, image_input, per_frame_input, preview_schema, resolution_input, seed_input

logger = logging.getLogger("nextcontrol")


class Palette(io.ComfyNode):
    """`IMAGE` to cells of colour."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return preview_schema(
            node_id="NextControlPalette",
            display_name="Palette Hint (Reference Colors)",
            category=COLOR_HINTS,
            description="Flat cells of colour, pixel for pixel as CtrLoRA's palette was trained.",
            search_aliases=[
                "color",
                "colour",
                "palette",
                "t2i color",
                "color palette",
                "reference colors",
                "color grid",
                "preprocessor",
                "annotator",
            ],
            inputs=[
                image_input(),
                resolution_input(),
                io.Int.Input(
                    "cell",
                    default=64,
                    min=8,
                    max=512,
                    step=8,
                    optional=True,
                    tooltip="Side of a cell in pixels of the hint. CtrLoRA was trained with 64.",
                ),
            ],
            outputs=[io.Image.Output(display_name="hint", tooltip="Cells of one colour each, one hint for each picture.")],
        )

    @classmethod
    def execute(cls, image: Any, resolution: int, cell: int = 64) -> io.NodeOutput:
        return show(make_hints(image, lambda frames: palette(frames, resolution, cell)))


class Pixel(io.ComfyNode):
    """`IMAGE` to pixel art."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return preview_schema(
            node_id="NextControlPixel",
            display_name="Pixel Hint (Pixel Art)",
            category=COLOR_HINTS,
            description="Large pixels in few colours, as CtrLoRA's pixel condition was trained.",
            search_aliases=["pixel art", "pixelate", "quantize", "k-means", "preprocessor", "annotator"],
            inputs=[
                image_input(),
                resolution_input(),
                io.Int.Input(
                    "scale",
                    default=6,
                    min=1,
                    max=64,
                    tooltip="Side of a large pixel, in pixels of the hint; no side of the hint has less than 32 large ones. "
                    "CtrLoRA was trained with 4 to 8.",
                ),
                io.Int.Input(
                    "colors",
                    default=12,
                    min=2,
                    max=256,
                    tooltip="How many colours. CtrLoRA was trained with 8 to 16.",
                ),
                seed_input("Where the search for the colours begins. Another seed may find slightly other ones."),
            ],
            outputs=[io.Image.Output(display_name="hint", tooltip="Pixel art, one hint for each picture.")],
        )

    @classmethod
    def execute(cls, image: Any, resolution: int, scale: int, colors: int, seed: int) -> io.NodeOutput:
        return show(make_hints(image, lambda frames: pixel(frames, resolution, scale, colors, seed)))


class Grayscale(io.ComfyNode):
    """`IMAGE` to its brightness."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return preview_schema(
            node_id="NextControlGrayscale",
            display_name="Grayscale Hint (Recolor, Colorize)",
            category=COLOR_HINTS,
            description="The picture without its colours, for controls that colour it anew. Pixel for pixel as CtrLoRA's "
            "grayscale was trained.",
            search_aliases=["gray", "grey", "black and white", "recolor", "colorize", "preprocessor", "annotator"],
            inputs=[image_input(), resolution_input()],
            outputs=[io.Image.Output(display_name="hint", tooltip="Three equal channels, one hint for each picture.")],
        )

    @classmethod
    def execute(cls, image: Any, resolution: int) -> io.NodeOutput:
        return show(make_hints(image, lambda frames: grayscale(frames, resolution)))


class ColorPrompt(io.ComfyNode):
    """`IMAGE` and a drawing of it to the drawing with dots of colour."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return preview_schema(
            node_id="NextControlColorPrompt",
            display_name="Color Prompt Hint",
            category=COLOR_HINTS,
            description="A line drawing with random dots in the colours of a picture, as CtrLoRA's lineart with colour prompt "
            "was trained. The control spreads each colour over what lies around its dot.",
            search_aliases=[
                "color dots",
                "lineart color",
                "colorize",
                "hint dots",
                "reference colors",
                "recolor",
                "preprocessor",
                "annotator",
            ],
            advanced=["per_frame"],
            inputs=[
                image_input(),
                resolution_input(),
                io.Image.Input(
                    "lines",
                    tooltip="A line drawing of the same picture, black on white: one, or one for each picture. It is resized "
                    "to the hint.",
                ),
                seed_input("Number, places and sizes of the dots."),
                per_frame_input(),
            ],
            outputs=[io.Image.Output(display_name="hint", tooltip="The drawing with its dots, one for each picture.")],
        )

    @classmethod
    def execute(cls, image: Any, resolution: int, lines: Any, seed: int, per_frame: bool = False) -> io.NodeOutput:
        check_image(image, "image")
        check_image(lines, "lines")
        check_company(lines, "lines", image)
        grey: list[int] = []

        def make(frames: Any, seeds: list[int], pages: Any = lines) -> Any:
            return color_prompt(frames, resolution, pages, seeds, grey.append)

        # One drawing for a clip is not repeated: sixteen large ones would take gigabytes.
        pages = (lines,) if len(lines) > 1 else ()
        hints = make_hints(image, make, FRAMES_PER_CHUNK, seeds_for(image, seed, per_frame), *pages)
        if grey:
            logger.warning("%d of %d pictures have no colours, so they give no dots.", len(grey), len(image))
        return show(hints)
