"""What controls cost: parameters, at the demo's size and at SD1.5's, and the time of a sampling step."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bench_sd15 import UNET
from demo_train_controls import CONTROLS, RANK
from prove_sample import controls, sample
from prove_train import NEXT

if TYPE_CHECKING:
    from prove_world import World

REAL_RANK = 128
"""Of the published LoRAs."""
STEPS = 6
"""Of a run that is timed."""


def cost(world: World) -> dict[str, Any]:
    """6: parameters and times."""
    width = CONTROLS[NEXT].options.get("width", 1.0)
    return {
        "demo": parameters(world.models[0], RANK, width),
        "real": parameters(full_model(), REAL_RANK, 1.0),
        "ratios": times(world),
        "demo_rank": RANK,
        "real_rank": REAL_RANK,
        "width": width,
    }


def full_model() -> Any:
    """SD1.5 in full size, without memory for its weights."""
    import comfy.supported_models
    import torch
    from comfy.model_patcher import ModelPatcher

    model = comfy.supported_models.SD15({**UNET, "dtype": torch.float32}).get_model({}, device="meta")
    return ModelPatcher(model, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


def parameters(model: Any, rank: int, width: float) -> dict[str, int]:
    """How many numbers each kind of control has for a model of SD1.5's kind, from the shapes of what the trainer makes."""
    from nextcontrol.models.controlnet import ControlNet
    from nextcontrol.models.controlnext import GENERATIONS, ControlNeXt
    from nextcontrol.models.ctrlora import CtrLoRA
    from nextcontrol.nodes.host.encoder_copy import encoder_config
    from nextcontrol.nodes.host.recipe_controlnext import trained_names
    from nextcontrol.nodes.host.unet_structure import find_place
    from nextcontrol.training.method_controlnext import ControlNeXtOptions
    from nextcontrol.training.trainable import trainable_shapes

    unet, config = model.model.diffusion_model, encoder_config(model)
    sizes = replace(GENERATIONS[2].narrowed(width), out=find_place(unet, "after_down0").channels)
    names = trained_names(model, ControlNeXtOptions(), "sd15")
    return {
        "UNet": _count(unet),
        "ControlNeXt": _count(ControlNeXt(sizes, device="meta")),
        "ControlNeXt, its part of the UNet": sum(unet.get_parameter(name).numel() for name in names),
        "CtrLoRA base": _count(CtrLoRA(config, device="meta")),
        "CtrLoRA LoRA": sum(math.prod(shape) for shape in trainable_shapes(config, rank).values()),
        "ControlNet": _count(ControlNet(config, device="meta")),
    }


def _count(network: Any) -> int:
    return sum(tensor.numel() for tensor in network.parameters())


def times(world: World) -> dict[str, list[float]]:
    """Seconds of a guided step of one picture under each control, as multiples of one without, round by round."""
    found = controls(world)
    kinds: dict[str, list[Any]] = {"none": [], **{name: [use] for name, use in found.items() if "palette" not in name}}
    kinds["CtrLoRA canny and palette"] = [found["CtrLoRA canny"], found["CtrLoRA palette"]]
    ratios: dict[str, list[float]] = {name: [] for name in kinds if name != "none"}
    for number in range(world.extent.rounds + 1):
        seconds = {name: _seconds(world, uses) for name, uses in kinds.items()}
        if number:  # the first round warms up
            for name, values in ratios.items():
                values.append(seconds[name] / seconds["none"])
    return ratios


def _seconds(world: World, uses: list[Any]) -> float:
    """Median of the steps but the first, which waits for what is loaded and encoded."""
    ends: list[float] = []
    sample(world, uses, 0, STEPS, 1, lambda *_: ends.append(time.perf_counter()))
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(ends))
