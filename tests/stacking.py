"""Stacks of small controls, and what they add."""

from __future__ import annotations

from functools import cache

import comfy.cldm.cldm
import comfy.controlnet
import comfy.model_management
import comfy.ops
import torch
from ctrlora_files import GivenLatents, control_of, load_small_base, numbered
from dynamic_vram import filled_layers
from host_models import UNET_CONFIGS, build_model
from nextcontrol.nodes.host.control_stack import ControlStack
from nextcontrol.nodes.host.stack import apply_stack
from nextcontrol.nodes.host.stack_entry import Entry, Options
from seeded import seeded_state_dict, seeded_tensor

import nodes as host_nodes

SIZE = (8, 12)
LEFT = torch.cat([torch.ones(1, 64, 48), torch.zeros(1, 64, 48)], dim=2)


class Adapter(comfy.controlnet.ControlBase):
    """Adds to the encoder as T2I-Adapters do: one row for all where there is one hint, the deepest place first in the list."""

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        """Its residuals on those of its predecessor."""
        before = self.previous_controlnet and self.previous_controlnet.get_control(
            x_noisy, t, cond, batched_number, transformer_options
        )
        rows = len(self.cond_hint_original)
        deep, shallow = (seeded_tensor(f"adapter{c}", [rows, c, SIZE[0] // s, SIZE[1] // s]) for c, s in ((128, 2), (64, 1)))
        return self.control_merge({"input": [deep, None, shallow, None]}, before, x_noisy.dtype)

    def copy(self):
        """A control of the same kind."""
        copy = Adapter()
        self.copy_to(copy)
        return copy


@cache
def native(variant: str = "ctrlora", seed: int = 0) -> comfy.controlnet.ControlNet:
    """The host's own ControlNet for one of the small models; users take copies of it."""
    arguments = {k: v for k, v in UNET_CONFIGS[variant].items() if k not in {"out_channels", "transformer_depth_output"}}
    arguments = {key: value[:] if isinstance(value, list) else value for key, value in arguments.items()}
    with filled_layers():
        network = comfy.cldm.cldm.ControlNet(**arguments, hint_channels=3, operations=comfy.ops.disable_weight_init)
    network.load_state_dict(seeded_state_dict({key: tensor.shape for key, tensor in network.state_dict().items()}, seed))
    return comfy.controlnet.ControlNet(network.eval(), load_device=comfy.model_management.get_torch_device())


def control(kind: str, base_folder, seed: int = 0):
    if kind == "native":
        return native(seed=seed)
    return control_of(base_folder, load_small_base(base_folder), f"condition{seed}.")


def entry(thing, strength: float = 1.0, percents=(0.0, 1.0), mask=None, curve: str = "constant", image=None) -> Entry:
    return Entry(thing, numbered(0).movedim(1, -1) if image is None else image, strength, percents, mask, curve)


def prompts(width: int = 96):
    return [[[seeded_tensor(name, [1, 7, width]), {}]] for name in ("positive", "negative")]


def vae():
    return GivenLatents("hint_latent")


def stacked(entries, *, model=None, conditioning=None, node=None, **options):
    model = build_model("ctrlora") if model is None else model
    width = model.model.model_config.unet_config["context_dim"]
    return apply_stack(model, *(conditioning or prompts(width)), entries, Options(**options), vae(), node)


def sample(model, positive, negative, batch: int = 1, seed: int = 0, sampler: str = "euler"):
    latent = {"samples": torch.zeros(batch, 4, *SIZE)}
    return host_nodes.common_ksampler(model, seed, 3, 4.0, sampler, "normal", positive, negative, latent)[0]["samples"]


def residuals(stack: ControlStack, model, rows: int = 2, sigma: float = 3.0, options=None):
    """What a stack gives the UNet in one call for two prompts."""
    stack.pre_run(model.model, model.get_model_object("model_sampling").percent_to_sigma)
    width = model.model.model_config.unet_config["context_dim"]
    call = (torch.zeros(rows, 4, *SIZE), torch.full((rows,), sigma), {"c_crossattn": seeded_tensor("text", [rows, 7, width])})
    try:
        return stack.get_control(*call, 2, {} if options is None else options)
    finally:
        stack.cleanup()


def of(positive) -> ControlStack:
    (stack,) = [given["control"] for _, given in positive]
    return stack


def found(entries, sigma: float = 3.0, rows: int = 2, **options) -> list[torch.Tensor]:
    model = build_model("ctrlora")
    given = residuals(of(stacked(entries, **options)[1]), model, rows, sigma)
    return [] if given is None else [*given["output"], *given["middle"]]
