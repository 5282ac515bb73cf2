"""Nodes that put controls on a model."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .host.attach import attach_controlnext
from .host.controlnext_file import check_choice
from .sockets import CONTROLNEXT, percent_inputs, schema

UNCOND = ("auto", "on", "off")


class ApplyControlNeXt(io.ComfyNode):
    """`MODEL` and `CONTROLNEXT` to a controlled `MODEL`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="NextControlApplyControlNeXt",
            display_name="Apply ControlNeXt",
            category="NextControl",
            description="Let a picture control a model. Works on SD1.5, SDXL and SVD; several controls are applied one after "
            "the other, in the order of the nodes.",
            search_aliases=["controlnext", "apply controlnet", "apply controlnext"],
            advanced=["uncond"],
            inputs=[
                io.Model.Input("model", tooltip="SD1.5, SDXL or SVD, with or without LoRAs. It is not changed."),
                CONTROLNEXT.Input("controlnext", tooltip="From Load ControlNeXt."),
                io.Image.Input(
                    "image",
                    tooltip="The hint that the control was trained for, such as Canny edges. One picture, or one for each "
                    "picture or frame of the latent batch; cut to the latent's aspect ratio if it differs.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="1 is the published strength, 0 gives back the model unchanged. Controls trained at a lower scale "
                    "(canny: 0.35) follow the hint best near that value.",
                ),
                *percent_inputs(),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the control is added, soft edges kept. The control's UNet weights act on the whole picture.",
                ),
                io.Combo.Input(
                    "uncond",
                    options=list(UNCOND),
                    default="auto",
                    optional=True,
                    tooltip="Whether the negative prompt is controlled as well. auto does as the published code: yes for SD1.5 "
                    "and SDXL, no for SVD v2, with the factor 0.65 for SVD v1.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For a sampler, or for another Apply ControlNeXt.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        controlnext: Any,
        image: Any,
        strength: float,
        start_percent: float,
        end_percent: float,
        mask: Any = None,
        uncond: str = "auto",
    ) -> io.NodeOutput:
        check_choice("uncond", uncond, UNCOND)
        return io.NodeOutput(
            attach_controlnext(model, controlnext, image, strength, (start_percent, end_percent), mask, uncond)  # type: ignore[arg-type]
        )
