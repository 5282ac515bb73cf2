"""Nodes that look at weight files and convert them."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..models.extract import PARTS
from .host.convert import KEEP, LAYOUTS, SAFETENSORS, TYPES, check_name, convert_file
from .host.folders import CONTROL_FOLDERS, file_options, find_file, fingerprint
from .host.inspect_file import inspect_file
from .host.text import readable
from .sockets import schema


def file_input(tooltip: str) -> io.Combo.Input:
    """The first input of both nodes."""
    return io.Combo.Input("file", options=file_options(CONTROL_FOLDERS), tooltip=tooltip)


class InspectFile(io.ComfyNode):
    """A file to text."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="NextControlInspectFile",
            display_name="Inspect Control File (Model Info)",
            category="NextControl/files",
            description="Say what a weight file is, from its contents: family, variant, rank, conditions, size, types, "
            "metadata, and the node that loads it. The text appears on the node.",
            search_aliases=["metadata", "model info", "identify", "checkpoint", "rank"],
            inputs=[
                file_input(
                    "Any weight file in models/controlnext, models/ctrlora, models/controlnet or models/diffusion_models."
                )
            ],
            outputs=[io.String.Output(display_name="text", tooltip="One fact a line.")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, file: str) -> bool | str:
        """Name a missing file before anything runs."""
        return _check_file(file)

    @classmethod
    def fingerprint_inputs(cls, file: str) -> Any:
        """Read a file again when it has changed on disk."""
        return file and fingerprint(file, CONTROL_FOLDERS)

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        return _shown(inspect_file(file))


class ConvertFile(io.ComfyNode):
    """A file to a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="NextControlConvertFile",
            display_name="Convert Control File",
            category="NextControl/files",
            description="Write a control file, or one part of it, as safetensors: a LoRA out of a training checkpoint, a "
            "module out of a bundle, half the size in fp16. The new file goes into models/controlnext or models/ctrlora; no "
            "file is overwritten.",
            search_aliases=["safetensors", "pickle", "extract", "fp16", "bf16"],
            advanced=["condition", "format"],
            inputs=[
                file_input(
                    "A ControlNeXt or CtrLoRA file of any format, in models/controlnext, models/ctrlora, models/controlnet or "
                    "models/diffusion_models."
                ),
                io.Combo.Input(
                    "part",
                    options=list(PARTS),
                    default="auto",
                    tooltip="What to take. auto is the LoRA of a training checkpoint (the base of a full-parameter finetune), "
                    "the base of a pretraining checkpoint (the LoRA if condition is set), the control module of a bundle, and "
                    "all of any other file.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(TYPES),
                    default=KEEP,
                    tooltip="Type of the new weights. keep changes no bit; fp16 and bf16 halve an fp32 file.",
                ),
                io.String.Input(
                    "name",
                    default="",
                    tooltip="Name of the new file, sub-folders allowed, with or without .safetensors. Empty takes the old name "
                    "and adds what was changed.",
                ),
                io.String.Input(
                    "condition",
                    default="",
                    optional=True,
                    tooltip="For a CtrLoRA pretraining checkpoint: which of its conditions to take, such as canny. Inspect "
                    "Control File lists them.",
                ),
                io.Combo.Input(
                    "format",
                    options=list(LAYOUTS),
                    default=SAFETENSORS,
                    optional=True,
                    tooltip="Of the new file. ckpt is for the authors' own programs: the same tensors without a header.",
                ),
            ],
            outputs=[io.String.Output(display_name="file_name", tooltip="The new file as the loaders list it.")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, file: str, name: str) -> bool | str:
        """Name a missing file or an impossible name before anything runs."""
        try:
            check_name(name or "")
        except ValueError as error:
            return str(error)
        return _check_file(file)

    @classmethod
    def fingerprint_inputs(cls, file: str, **choices: Any) -> Any:
        """Convert a file again when it has changed on disk."""
        return file and fingerprint(file, CONTROL_FOLDERS), choices

    @classmethod
    def execute(
        cls,
        file: str,
        part: str,
        dtype: str,
        name: str,
        condition: str = "",
        format: str = SAFETENSORS,  # noqa: A002 - the input's name
    ) -> io.NodeOutput:
        return _shown(convert_file(file, part, dtype, name, condition, format))


def _check_file(file: str | None) -> bool | str:
    if file is not None:  # what comes through a link is not known yet
        try:
            find_file(file, CONTROL_FOLDERS)
        except FileNotFoundError as error:
            return str(error)
    return True


def _shown(text: str) -> io.NodeOutput:
    text = readable(text)
    return io.NodeOutput(text, ui=ui.PreviewText(text))
