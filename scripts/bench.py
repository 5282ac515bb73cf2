"""What a control costs, as a part of the bare step: medians of ratios taken in alternation in one run.

python3 scripts/bench.py controlnext [--steps N] [--comfyui PATH]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from host import find_host
from host_library import import_host, import_pack
from host_server import has_accelerator
from provide import SetupError, say

if TYPE_CHECKING:
    from collections.abc import Callable

INSIDE = "NEXTCONTROL_BENCH_INSIDE"
LATENT = (1, 4, 64, 64)
# SD1.5 in full size, as ComfyUI detects it.
UNET: dict[str, Any] = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "channel_mult": [1, 2, 4, 4],
    "num_res_blocks": [2, 2, 2, 2], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "context_dim": 768, "num_heads": 8,
    "use_spatial_transformer": True, "legacy": False,
}  # fmt: skip


def main(arguments: list[str]) -> int:
    """Parse, bring up the host's interpreter, and measure in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=["controlnext"], help="what to measure")
    parser.add_argument("--steps", type=int, default=12, help="steps of each kind, after two that are not counted")
    parser.add_argument("--comfyui", type=Path, help="an existing ComfyUI")
    options = parser.parse_args(arguments)
    if os.environ.get(INSIDE):
        with tempfile.TemporaryDirectory() as base:
            import_host(options.comfyui, Path(base), is_cpu=os.environ[INSIDE] == "cpu")
            import_pack()
            measure(options.steps)
        return 0
    try:
        host = find_host(options.comfyui)
    except SetupError as error:
        say(f"bench.py: {error}")
        return 1
    device = "accelerator" if has_accelerator(host.python) else "cpu"
    command = [str(host.python), "-B", __file__, options.subject, "--steps", str(options.steps), "--comfyui", str(host.comfyui)]
    return subprocess.run(command, env={**os.environ, INSIDE: device}, check=False).returncode


def measure(steps: int) -> None:
    """Print the ratios of a guided SD1.5 step with each kind of control to the bare step."""
    import torch

    with torch.inference_mode():
        kinds = build_kinds()
        levels = torch.linspace(14, 0.1, steps + 2).tolist()
        seconds: dict[str, list[float]] = {name: [] for name in kinds}
        for sigma in levels:  # another noise level each step, as in sampling: what is kept for a level does not help
            for name, step in kinds.items():
                seconds[name].append(timed(lambda step=step, sigma=sigma: step(sigma)))  # type: ignore[misc]
    bare = seconds["bare"][2:]
    print(f"bare step: {statistics.median(bare):.3f} s (median of {steps}; batch 2 for guidance, latent 64x64)")
    for name in list(kinds)[1:]:
        ratios = [a / b for a, b in zip(seconds[name][2:], bare, strict=True)]
        first = seconds[name][0] / seconds["bare"][0]
        print(
            f"{name} / bare: {statistics.median(ratios):.3f} (of {min(ratios):.3f} to {max(ratios):.3f}; first step {first:.3f})"
        )


def timed(call: Callable[[], Any]) -> float:
    """Seconds that a call takes, the device's work included."""
    import torch

    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def build_kinds() -> dict[str, Callable[[float], Any]]:
    """A guided step of the same UNet for each kind of control, by name; each takes a noise level."""
    import torch
    from nextcontrol.models.controlnext import GENERATIONS, ControlNeXt
    from nextcontrol.nodes.host.attach import attach_controlnext
    from nextcontrol.nodes.host.controlnext_file import ControlNeXtFile

    model = build_model()
    hint = torch.rand(1, 512, 512, 3)
    module = ControlNeXt(GENERATIONS[2], device="cpu")
    control = ControlNeXtFile("bench", module.state_dict(), GENERATIONS[2], ("sd15",), None, None)
    native = build_controlnet().set_cond_hint(hint.movedim(-1, 1))
    native.pre_run(model.model, model.get_model_object("model_sampling").percent_to_sigma)
    return {
        "bare": guided_step(model.clone(), None),
        "ControlNeXt": guided_step(attach_controlnext(model, control, hint, 1.0, (0.0, 1.0)), None),
        "ControlNet": guided_step(model.clone(), native),
    }


def guided_step(model: Any, control: Any) -> Callable[[float], Any]:
    """One evaluation for a positive and a negative prompt in one call, through the host's sampler code."""
    import uuid

    import comfy.conds
    import comfy.model_management
    import comfy.model_patcher
    import comfy.sampler_helpers
    import comfy.samplers
    import torch

    device = model.load_device
    networks = [*model.get_nested_additional_models(), *(control.get_models() if control else [])]
    comfy.model_management.load_models_gpu([model, *networks])
    options = comfy.model_patcher.create_model_options_clone(model.model_options)
    comfy.sampler_helpers.prepare_model_patcher(model, {}, options)
    model.pre_run()
    latent = torch.randn(LATENT, device=device)
    extra = {"control": control} if control else {}
    prompts = [
        [{"model_conds": {"c_crossattn": comfy.conds.CONDCrossAttn(torch.randn(1, 77, 768))}, "uuid": uuid.uuid4(), **extra}]
        for _ in range(2)
    ]

    def step(sigma: float) -> Any:
        model.model.current_patcher = model
        level = torch.full((1,), sigma, device=device)
        return comfy.samplers.calc_cond_batch(model.model, prompts, latent * sigma, level, options)

    return step


def build_model() -> Any:
    """SD1.5 in full size with random weights."""
    import comfy.model_management
    import comfy.supported_models
    from comfy.model_patcher import ModelPatcher

    device = comfy.model_management.get_torch_device()
    config = comfy.supported_models.SD15({**UNET, "dtype": comfy.model_management.unet_dtype(model_params=860_000_000)})
    model = fill(config.get_model({}, device=comfy.model_management.unet_offload_device()))
    return ModelPatcher(model, load_device=device, offload_device=comfy.model_management.unet_offload_device())


def build_controlnet() -> Any:
    """The host's own ControlNet for it."""
    import comfy.controlnet
    import comfy.model_management
    import comfy.ops
    from comfy.cldm.cldm import ControlNet

    arguments = {key: value for key, value in UNET.items() if key not in ("out_channels", "transformer_depth_output")}
    dtype = comfy.model_management.unet_dtype(model_params=360_000_000)
    network = ControlNet(**arguments, hint_channels=3, dtype=dtype, operations=comfy.ops.disable_weight_init)
    return comfy.controlnet.ControlNet(fill(network), load_device=comfy.model_management.get_torch_device())


def fill(network: Any) -> Any:
    """Random weights that keep the size of what passes through; speed does not depend on them."""
    for parameter in network.parameters():
        parameter.data.normal_(std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1)
    return network.eval()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
