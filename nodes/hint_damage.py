"""Hints that are damaged or distorted pictures."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io

from ..preprocessors.blur import Sigma, blur
from ..preprocessors.illusion import Channel, illusion
from ..preprocessors.jpeg import jpeg
from ..preprocessors.shuffle import shuffle
from .host.controlnext_file import check_choice
from .host.hint_output import make_hints, seeds_for, show
from .host.progress import FRAMES_PER_CHUNK
from .sockets import EFFECTS_HINTS, image_input, per_frame_input, preview_schema, resolution_input, seed_input

SIGMAS, CHANNELS = get_args(Sigma), get_args(Channel)


class Blur(io.ComfyNode):
    """`IMAGE` to a blurred one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return preview_schema(
            node_id="NextControlBlur",
            display_name="Blur Hint",
            category=EFFECTS_HINTS,
            description="The picture blurred by a Gaussian filter, for controls that sharpen. As CtrLoRA's blur was trained.",
            search_aliases=["gaussian", "deblur", "sharpen", "preprocessor", "annotator"],
            advanced=["sigma"],
            inputs=[
                image_input(),
                resolution_input(),
                io.Int.Input(
                    "kernel",
                    default=55,
                    min=1,
                    max=255,
                    step=2,
                    tooltip="Pixels that the filter spans, odd. CtrLoRA was trained with about 11 to 101.",
                ),
                io.Combo.Input(
                    "sigma",
                    options=list(SIGMAS),
                    default="fixed",
                    optional=True,
                    tooltip="fixed is a standard deviation of 4 whatever the kernel, as CtrLoRA was trained. kernel lets it "
                    "grow with the kernel: 8.6 at 55.",
                ),
            ],
            outputs=[io.Image.Output(display_name="hint", tooltip="Blurred, one hint for each picture.")],
        )

    @classmethod
    def execute(cls, image: Any, resolution: int, kernel: int, sigma: str = "fixed") -> io.NodeOutput:
        check_choice("sigma", sigma, SIGMAS)
        return show(make_hints(image, lambda frames: blur(frames, resolution, kernel, sigma)))  # type: ignore[arg-type]


class Jpeg(io.ComfyNode):
    """`IMAGE` to one that JPEG has damaged."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return preview_schema(
            node_id="NextControlJpeg",
            display_name="JPEG Hint",
            category=EFFECTS_HINTS,
            description="The picture after strong JPEG compression, for controls that repair it. As CtrLoRA's JPEG condition "
            "was trained.",
            search_aliases=["jpg", "compression", "artifacts", "restore", "preprocessor", "annotator"],
            inputs=[
                image_input(),
                resolution_input(),
                io.Int.Input(
                    "quality",
                    default=20,
                    min=1,
                    max=100,
                    tooltip="Of the compression; lower does more damage. CtrLoRA was trained with about 10 to 30.",
                ),
            ],
            outputs=[io.Image.Output(display_name="hint", tooltip="With JPEG's blocks, one hint for each picture.")],
        )

    @classmethod
    def execute(cls, image: Any, resolution: int, quality: int) -> io.NodeOutput:
        return show(make_hints(image, lambda frames: jpeg(frames, resolution, quality)))


class Illusion(io.ComfyNode):
    """`IMAGE` to three steps of brightness."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return preview_schema(
            node_id="NextControlIllusion",
            display_name="Illusion Hint",
            category=EFFECTS_HINTS,
            description="Black, grey and white areas, for pictures that hide another one. Pixel for pixel as CtrLoRA's "
            "illusion was trained.",
            search_aliases=["optical illusion", "hidden", "qr code", "threshold", "preprocessor", "annotator"],
            inputs=[
                image_input(),
                resolution_input(),
                io.Combo.Input(
                    "channel",
                    options=list(CHANNELS),
                    default="blue",
                    tooltip="What is divided at 85 and 170 of 255: blue, as the released LoRA was trained; value, the largest "
                    "channel, which suits pictures without blue.",
                ),
            ],
            outputs=[io.Image.Output(display_name="hint", tooltip="Black, grey and white, one hint for each picture.")],
        )

    @classmethod
    def execute(cls, image: Any, resolution: int, channel: str) -> io.NodeOutput:
        check_choice("channel", channel, CHANNELS)
        return show(make_hints(image, lambda frames: illusion(frames, resolution, channel)))  # type: ignore[arg-type]


class Shuffle(io.ComfyNode):
    """`IMAGE` to one with its contents stirred."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return preview_schema(
            node_id="NextControlShuffle",
            display_name="Shuffle Hint",
            category=EFFECTS_HINTS,
            description="The picture with its contents stirred: colours and materials stay, shapes go. As CtrLoRA's shuffle "
            "and ControlNet's were trained.",
            search_aliases=["content shuffle", "warp", "style", "preprocessor", "annotator"],
            advanced=["per_frame"],
            inputs=[
                image_input(),
                resolution_input(),
                seed_input("How the picture is stirred."),
                per_frame_input(),
            ],
            outputs=[io.Image.Output(display_name="hint", tooltip="Stirred, one hint for each picture.")],
        )

    @classmethod
    def execute(cls, image: Any, resolution: int, seed: int, per_frame: bool = False) -> io.NodeOutput:
        seeds = seeds_for(image, seed, per_frame)
        return show(make_hints(image, lambda frames, some: shuffle(frames, resolution, some), FRAMES_PER_CHUNK, seeds))
