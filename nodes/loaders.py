"""Nodes that read weight files."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..models.injection import INJECTIONS
from .host.controlnext_file import AUTO, NO_FILE, load_controlnext_file
from .host.demo_model import load_demo_model
from .host.folders import CONTROLNEXT_FOLDERS, UNET_FOLDERS, file_options, find_file, fingerprint, list_files
from .sockets import CONTROLNEXT, schema


class LoadControlNeXt(io.ComfyNode):
    """Files to `CONTROLNEXT`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="NextControlLoadControlNeXt",
            display_name="Load ControlNeXt",
            category="NextControl",
            description="Read a ControlNeXt module and the UNet weights that were trained with it. Recognises every published "
            "file by its contents and says in the log what it is.",
            search_aliases=["controlnext", "control next", "load controlnet", "load controlnext"],
            advanced=["variant", "unet_weights", "stem_padding"],
            inputs=[
                io.Combo.Input(
                    "control_file",
                    options=file_options(CONTROLNEXT_FOLDERS),
                    tooltip="The control module (controlnet.safetensors of a release), from models/controlnext or "
                    "models/controlnet.",
                ),
                io.Combo.Input(
                    "unet_file",
                    options=[NO_FILE, *list_files(UNET_FOLDERS)],
                    tooltip="The UNet weights trained with the module (unet.safetensors of the same release), from "
                    "models/controlnext, models/controlnet or models/diffusion_models; none uses the module alone, which "
                    "controls more weakly.",
                ),
                io.Combo.Input(
                    "variant",
                    options=[AUTO, *INJECTIONS],
                    default=AUTO,
                    tooltip="How the control enters the model. auto goes by the file and the model; choose sdxl_skip for "
                    "SDXL modules made from 10 to 20 August 2024.",
                ),
                io.Combo.Input(
                    "unet_weights",
                    options=[AUTO, "replace", "delta"],
                    default=AUTO,
                    tooltip="Whether unet_file holds weights (replace) or differences to add to the model's own (delta). auto "
                    "compares them with the model and says in the log what it found.",
                ),
                io.Combo.Input(
                    "stem_padding",
                    options=[AUTO, "0", "1"],
                    default=AUTO,
                    optional=True,
                    tooltip="Padding of the module's first convolutions. auto is the published inference code's: 0 for SVD, "
                    "else 1. Choose 1 for an SVD v2 module that you trained yourself.",
                ),
            ],
            outputs=[CONTROLNEXT.Output(display_name="controlnext", tooltip="For Apply ControlNeXt.")],
        )

    @classmethod
    def validate_inputs(cls, control_file: str, unet_file: str) -> bool | str:
        """Name a missing file before anything runs."""
        # What comes through a link, such as from Train ControlNeXt, is not known yet.
        try:
            if control_file is not None:
                find_file(control_file, CONTROLNEXT_FOLDERS)
            if unet_file not in {NO_FILE, None}:
                find_file(unet_file, UNET_FOLDERS)
        except FileNotFoundError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, control_file: str, unet_file: str, **choices: Any) -> Any:
        """Read a file again when it has changed on disk."""
        control = control_file and fingerprint(control_file, CONTROLNEXT_FOLDERS)
        return control, unet_file and fingerprint(unet_file, UNET_FOLDERS), choices

    @classmethod
    def execute(
        cls, control_file: str, unet_file: str, variant: str, unet_weights: str, stem_padding: str = AUTO
    ) -> io.NodeOutput:
        return io.NodeOutput(load_controlnext_file(control_file, unet_file, variant, unet_weights, stem_padding))


class LoadDemoModel(io.ComfyNode):
    """The files in demo/ to `MODEL`, `CLIP` and `VAE`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="NextControlLoadDemoModel",
            display_name="Load Demo Model",
            category="NextControl",
            description="A demo: a tiny text-to-image model that comes with NextControl, to try controls and training on a "
            "laptop without downloads. It draws 128x128 emoji of things that it was trained on and replaces no real model.",
            search_aliases=["demo", "demo checkpoint", "tiny model", "test model", "example model"],
            inputs=[],
            outputs=[
                io.Model.Output(display_name="model", tooltip="A UNet of SD1.5's kind with 6.5 million parameters."),
                io.Clip.Output(
                    display_name="clip", tooltip="Its text encoder. Prompts are names of things, such as red apple."
                ),
                io.Vae.Output(display_name="vae", tooltip="Its autoencoder: 8 pixels to a latent cell, 4 channels."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_demo_model())
