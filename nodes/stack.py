"""Nodes that combine several controls."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..models.combine import BALANCES
from .host.controlnext_file import check_choice
from .host.schedule import CURVES
from .host.stack import apply_stack
from .host.stack_entry import Entry, Options, check_entry, is_off
from .sockets import CONTROL_STACK, CONTROLNEXT, percent_inputs, schema

BRANCH = ("control", "image", "mask")
"""Inputs that are not evaluated while the control is off."""


class StackControl(io.ComfyNode):
    """A control, its hint and its settings to `CONTROL_STACK`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="NextControlStackControl",
            display_name="Stack Control (Multi-ControlNet)",
            category="NextControl/stack",
            description="Add a control with its hint, strength, range and mask to a stack. With strength 0 or an empty range "
            "its loader and its hint are not even run.",
            search_aliases=["multi controlnet", "combine controls", "controlnet stack", "multiple controlnets"],
            advanced=["curve"],
            inputs=[
                io.MultiType.Input(
                    "control",
                    [io.ControlNet, CONTROLNEXT],
                    lazy=True,
                    tooltip="From Load ControlNeXt, Load CtrLoRA, or ComfyUI's own Load ControlNet Model.",
                ),
                io.Image.Input(
                    "image",
                    lazy=True,
                    tooltip="The hint that the control was trained for. One picture, or one for each picture or frame of the "
                    "latent batch.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="Weight of this control in the stack; 1 is the published strength, 0 switches it off.",
                ),
                *percent_inputs(),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    lazy=True,
                    tooltip="Where in the picture the control acts, soft edges kept. Complementary masks give each control "
                    "its region.",
                ),
                CONTROL_STACK.Input("stack", optional=True, tooltip="The controls before this one."),
                io.Combo.Input(
                    "curve",
                    options=list(CURVES),
                    default="constant",
                    optional=True,
                    tooltip="Strength over the active range: constant, from 0 to full (ease in), from full to 0 (ease out), "
                    "or from 0 to full to 0 (ease in-out).",
                ),
            ],
            outputs=[CONTROL_STACK.Output(display_name="stack", tooltip="For Apply Control Stack, or another Stack Control.")],
        )

    @classmethod
    def check_lazy_status(cls, strength: float, start_percent: float, end_percent: float, **inputs: Any) -> list[str]:
        """Ask for the branch only where it will act."""
        if is_off(strength, start_percent, end_percent):
            return []
        return [name for name in BRANCH if name in inputs and inputs[name] is None]

    @classmethod
    def execute(
        cls,
        strength: float,
        start_percent: float,
        end_percent: float,
        control: Any = None,
        image: Any = None,
        mask: Any = None,
        stack: Any = (),
        curve: str = "constant",
    ) -> io.NodeOutput:
        check_choice("curve", curve, CURVES)
        entry = Entry(control, image, strength, (start_percent, end_percent), mask, curve)
        check_entry(entry, len(stack or ()) + 1)
        return io.NodeOutput((*(stack or ()), entry))


class ApplyControlStack(io.ComfyNode):
    """`MODEL`, prompts and `CONTROL_STACK` to controlled ones."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="NextControlApplyStack",
            display_name="Apply Control Stack (Multi-ControlNet)",
            category="NextControl/stack",
            description="Let several controls act together: ControlNeXts on the model, CtrLoRAs and native ControlNets on the "
            "prompts, CtrLoRAs of one base in one pass. Controls that are on the prompts already stay.",
            search_aliases=[
                "multi controlnet",
                "combine controls",
                "controlnet stack",
                "apply controlnet",
                "multiple controlnets",
            ],
            advanced=["resolution_weighting", "guess_mode"],
            inputs=[
                io.Model.Input("model", tooltip="SD1.5, SDXL or SVD. It is not changed."),
                io.Conditioning.Input("positive", tooltip="The positive prompt."),
                io.Conditioning.Input("negative", tooltip="The negative prompt."),
                CONTROL_STACK.Input("stack", lazy=True, tooltip="From Stack Control."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="Multiplies every control of the stack, after the balance; 0 changes nothing at all.",
                ),
                io.Combo.Input(
                    "balance",
                    options=list(BALANCES),
                    default="sum",
                    tooltip="sum adds the controls with their strengths, as in the papers. mean divides the strengths by "
                    "their sum. cap adds them, and then limits each sum to the size of its largest term.",
                ),
                io.Boolean.Input(
                    "resolution_weighting",
                    default=False,
                    tooltip="CFG resolution weighting of the ControlNet paper: control on the positive prompt only, stronger "
                    "in deeper blocks (1, 2, 4 and 8 times).",
                ),
                io.Vae.Input("vae", optional=True, tooltip="The checkpoint's VAE, for CtrLoRAs in the stack."),
                io.Boolean.Input(
                    "guess_mode",
                    default=False,
                    optional=True,
                    tooltip="Guess mode of the ControlNet authors: control on the positive prompt only, full in the deepest "
                    "block and 0.825 times weaker in each one before it.",
                ),
                io.Boolean.Input(
                    "readout",
                    default=False,
                    optional=True,
                    tooltip="After sampling, show each control's share of what it was added to, and a map of where it acted. "
                    "Connect the model output too.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For a sampler."),
                io.Conditioning.Output(display_name="positive", tooltip="For the same sampler."),
                io.Conditioning.Output(display_name="negative", tooltip="For the same sampler."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def check_lazy_status(cls, strength: float, stack: Any = None, **_: Any) -> list[str]:
        """Ask for the stack only where it will act."""
        return ["stack"] if strength != 0 and stack is None else []

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        strength: float,
        balance: str,
        resolution_weighting: bool,
        stack: Any = None,
        vae: Any = None,
        guess_mode: bool = False,
        readout: bool = False,
    ) -> io.NodeOutput:
        check_choice("balance", balance, BALANCES)
        if resolution_weighting and guess_mode:
            raise ValueError("resolution_weighting and guess_mode exclude each other: switch one of them off.")
        options = Options(strength, balance, resolution_weighting, guess_mode)
        node = ((cls.hidden and cls.hidden.unique_id) or "") if readout else None
        *results, shown = apply_stack(model, positive, negative, stack or (), options, vae, node)
        return io.NodeOutput(*results, ui=shown and shown.ui())
