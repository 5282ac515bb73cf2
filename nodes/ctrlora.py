"""Nodes that load CtrLoRA."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .host.controlnext_file import NO_FILE, check_choice
from .host.ctrlora_control import CtrLoRAControl
from .host.ctrlora_hint import Posterior
from .host.ctrlora_load import load_base, load_condition
from .host.folders import CTRLORA_FOLDERS, file_options, find_file, fingerprint, list_files
from .sockets import CTRLORA_BASE, schema

POSTERIORS = ("mode", "sample")


class LoadCtrLoRABase(io.ComfyNode):
    """A file to `CTRLORA_BASE`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="NextControlLoadCtrLoRABase",
            display_name="Load CtrLoRA Base",
            category="NextControl",
            description="Read the Base ControlNet that all CtrLoRA conditions share. It is in memory once, however many "
            "conditions use it.",
            search_aliases=["ctrlora", "base controlnet", "control lora", "load controlnet"],
            advanced=["embedded_lora", "cache_megabytes"],
            inputs=[
                io.Combo.Input(
                    "base_file",
                    options=file_options(CTRLORA_FOLDERS),
                    tooltip="The base (ctrlora_sd15_basecn700k.ckpt), from models/ctrlora or models/controlnet. Training "
                    "checkpoints and full-parameter finetunes work as well.",
                ),
                io.Boolean.Input(
                    "embedded_lora",
                    default=False,
                    optional=True,
                    tooltip="Use the LoRA in the base's own file where Load CtrLoRA has none. Off for the released base, which "
                    "carries left-over tensors of one task; on for a base that was extracted from a finetuning checkpoint.",
                ),
                io.Int.Input(
                    "cache_megabytes",
                    default=1024,
                    min=0,
                    max=65536,
                    optional=True,
                    tooltip="Main memory for controls that are kept from run to run: another seed with the same hint, text and "
                    "steps then costs no control at all. 0 keeps none.",
                ),
            ],
            outputs=[CTRLORA_BASE.Output(display_name="base", tooltip="For Load CtrLoRA, as often as you like.")],
        )

    @classmethod
    def validate_inputs(cls, base_file: str) -> bool | str:
        """Name a missing file before anything runs."""
        # What comes through a link, such as from Train CtrLoRA Base, is not known yet.
        return True if base_file is None else _found(base_file)

    @classmethod
    def fingerprint_inputs(cls, base_file: str, **choices: Any) -> Any:
        """Read a file again when it has changed on disk."""
        return base_file and fingerprint(base_file, CTRLORA_FOLDERS), choices

    @classmethod
    def execute(cls, base_file: str, embedded_lora: bool = False, cache_megabytes: int = 1024) -> io.NodeOutput:
        return io.NodeOutput(load_base(base_file, embedded_lora, cache_megabytes))


class LoadCtrLoRA(io.ComfyNode):
    """A base and a file to `CONTROL_NET`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="NextControlLoadCtrLoRA",
            display_name="Load CtrLoRA",
            category="NextControl",
            description="Put a CtrLoRA condition on a base. The result goes into Apply ControlNet, with the checkpoint's VAE "
            "connected; several conditions on one base are computed together.",
            search_aliases=["ctrlora", "control lora", "load lora", "load controlnet"],
            advanced=["condition", "posterior", "seed"],
            inputs=[
                CTRLORA_BASE.Input("base", tooltip="From Load CtrLoRA Base."),
                io.Combo.Input(
                    "lora_file",
                    options=[NO_FILE, *list_files(CTRLORA_FOLDERS)],
                    tooltip="The condition, from models/ctrlora or models/controlnet; none uses the base alone, such as a "
                    "full-parameter finetune.",
                ),
                io.Float.Input(
                    "lora_strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip="How far to go from the plain base (0) to the trained condition (1). The strength of the control "
                    "is set on the Apply node.",
                ),
                io.String.Input(
                    "condition",
                    default="",
                    optional=True,
                    tooltip="Name of the condition in a pretraining checkpoint, which holds several, such as canny; empty "
                    "for all other files.",
                ),
                io.Combo.Input(
                    "posterior",
                    options=list(POSTERIORS),
                    default="mode",
                    optional=True,
                    tooltip="What the VAE gives for the hint: the mode, which is the same each time, or a sample with the seed "
                    "below, as the published code draws one.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    # The page would draw a new one after every run, and the file would be read again each time.
                    control_after_generate=False,
                    optional=True,
                    tooltip="Of the sample; the mode does not use it.",
                ),
            ],
            outputs=[io.ControlNet.Output(display_name="control_net", tooltip="For Apply ControlNet; connect the VAE there.")],
        )

    @classmethod
    def validate_inputs(cls, lora_file: str) -> bool | str:
        """Name a missing file before anything runs."""
        # What comes through a link, such as from Train CtrLoRA, is not known yet.
        return True if lora_file in {NO_FILE, None} else _found(lora_file)

    @classmethod
    def fingerprint_inputs(cls, lora_file: str, **choices: Any) -> Any:
        """Read a file again when it has changed on disk."""
        own = {name: value for name, value in choices.items() if name != "base"}
        return lora_file and fingerprint(lora_file, CTRLORA_FOLDERS), own

    @classmethod
    def execute(
        cls,
        base: Any,
        lora_file: str,
        lora_strength: float,
        condition: str = "",
        posterior: str = "mode",
        seed: int = 0,
    ) -> io.NodeOutput:
        check_choice("posterior", posterior, POSTERIORS)
        found, source = load_condition(base, lora_file, condition)
        sampled = Posterior(posterior == "sample", seed if posterior == "sample" else 0)
        return io.NodeOutput(
            CtrLoRAControl(base, found, lora_strength, sampled, source, "" if lora_file == NO_FILE else lora_file)
        )


def _found(name: str) -> bool | str:
    try:
        find_file(name, CTRLORA_FOLDERS)
    except FileNotFoundError as error:
        return str(error)
    return True
