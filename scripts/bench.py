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
    from collections.abc import Callable, Sequence

INSIDE = "NEXTCONTROL_BENCH_INSIDE"
LATENT = (4, 64, 64)
UNCOUNTED = 1
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
    parser.add_argument("subject", choices=["controlnext", "ctrlora"], help="what to measure")
    parser.add_argument("--steps", type=int, default=12, help="steps of each kind, after one that is not counted")
    parser.add_argument("--comfyui", type=Path, help="an existing ComfyUI")
    options = parser.parse_args(arguments)
    if os.environ.get(INSIDE):
        with tempfile.TemporaryDirectory() as base:
            import_host(options.comfyui, Path(base), is_cpu=os.environ[INSIDE] == "cpu")
            import_pack()
            measure(options.subject, options.steps)
        return 0
    try:
        host = find_host(options.comfyui)
    except SetupError as error:
        say(f"bench.py: {error}")
        return 1
    device = "accelerator" if has_accelerator(host.python) else "cpu"
    command = [str(host.python), "-B", __file__, options.subject, "--steps", str(options.steps), "--comfyui", str(host.comfyui)]
    return subprocess.run(command, env={**os.environ, INSIDE: device}, check=False).returncode


def measure(subject: str, steps: int) -> None:
    """Print the ratios for a guided SD1.5 step with full-size networks and random weights."""
    import torch

    with torch.inference_mode():
        {"controlnext": measure_controlnext, "ctrlora": measure_ctrlora}[subject](steps)


def measure_controlnext(steps: int) -> None:
    """Steps with a ControlNeXt and with a native ControlNet, over the bare step."""
    import torch
    from nextcontrol.models.controlnext import GENERATIONS, ControlNeXt
    from nextcontrol.nodes.host.attach import attach_controlnext
    from nextcontrol.nodes.host.controlnext_file import ControlNeXtFile

    model, hint = build_model(), torch.rand(1, 512, 512, 3)
    module = ControlNeXt(GENERATIONS[2], device="cpu")
    control = ControlNeXtFile("bench", module.state_dict(), GENERATIONS[2], ("sd15",), None, None)
    seconds = alternate(steps, {
        "bare": guided_step(model.clone()),
        "ControlNeXt": guided_step(attach_controlnext(model, control, hint, 1.0, (0.0, 1.0))),
        "native ControlNet": guided_step(model.clone(), [give_hint(build_controlnet(), hint)]),
    })  # fmt: skip
    for name in ("ControlNeXt", "native ControlNet"):
        report(f"{name} / bare", [a / b for a, b in zip(seconds[name], seconds["bare"], strict=True)])


def measure_ctrlora(steps: int) -> None:
    """What CtrLoRA adds to a step, over what native ControlNets add to it; and the weights of both."""
    import torch
    from nextcontrol.nodes.host.result_cache import ResultCache

    model, hint = build_model(), torch.rand(1, 512, 512, 3)
    base = build_base()
    natives = [build_controlnet() for _ in range(4)]
    ours = [build_condition(base, rank=128) for _ in range(4)]
    weights = [sum(p.nbytes for m in unique_networks(controls) for p in m.model.parameters()) for controls in (ours, natives)]
    print(f"weights of four conditions / of four native ControlNets: {weights[0] / weights[1]:.3f}", flush=True)
    base.cache = ResultCache(4 << 30)
    control = [give_hint(ours[0], hint)]
    first = guided_step(model.clone(), control)
    for sigma in noise_levels(steps):
        first(sigma)
    seconds = alternate(steps, {"bare": guided_step(model.clone()), "ours": guided_step(model.clone(), control)})
    report(
        "second seed with the cache: added / bare", [a / b - 1 for a, b in zip(seconds["ours"], seconds["bare"], strict=True)]
    )
    base.cache = ResultCache(0)
    for title, batch, count in (("1 image, 4 conditions", 1, 4), ("4 images, 1 condition", 4, 1)):
        seconds = alternate(steps, {
            "bare": guided_step(model.clone(), batch=batch),
            "ours": guided_step(model.clone(), [give_hint(control, hint) for control in ours[:count]], batch),
            "native": guided_step(model.clone(), [give_hint(control, hint) for control in natives[:count]], batch),
        })  # fmt: skip
        rounds = list(zip(seconds["ours"], seconds["native"], seconds["bare"], strict=True))
        report(f"{title}: added by CtrLoRA / added by native", [(a - c) / (b - c) for a, b, c in rounds])
        report(f"{title}: CtrLoRA / bare", [a / c for a, _, c in rounds])


def alternate(steps: int, kinds: dict[str, Callable[[float], Any]]) -> dict[str, list[float]]:
    """Seconds of each kind of step, taken in turn; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for sigma in noise_levels(steps):
        for name, step in kinds.items():
            seconds[name].append(timed(step, sigma))
    bare = seconds["bare"][UNCOUNTED:]
    print(f"bare step: {statistics.median(bare):.3f} s", flush=True)
    return {name: values[UNCOUNTED:] for name, values in seconds.items()}


def noise_levels(steps: int) -> list[float]:
    """Another for each step, as in sampling, so that what is kept for a level does not help."""
    return [14 - 13.9 * i / (steps + UNCOUNTED - 1) for i in range(steps + UNCOUNTED)]


def report(title: str, ratios: list[float]) -> None:
    """One line: the median, and the range."""
    print(f"{title}: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})", flush=True)


def timed(step: Callable[[float], Any], sigma: float) -> float:
    """Seconds that a step takes, the device's work included."""
    import torch

    start = time.perf_counter()
    step(sigma)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def give_hint(control: Any, hint: Any) -> Any:
    """What the Apply node does with a control."""
    return control.copy().set_cond_hint(hint.movedim(-1, 1), 1.0, (0.0, 1.0), vae=RandomLatents())


def unique_networks(controls: list[Any]) -> list[Any]:
    """The networks of several controls, each once."""
    networks: list[Any] = []
    for network in (network for control in controls for network in control.get_models()):
        if not any(network.is_clone(other) for other in networks):
            networks.append(network)
    return networks


def guided_step(model: Any, controls: Sequence[Any] = (), batch: int = 1) -> Callable[[float], Any]:
    """One evaluation for a positive and a negative prompt in one call, through the host's sampler code."""
    import uuid

    import comfy.conds
    import comfy.model_management
    import comfy.model_patcher
    import comfy.sampler_helpers
    import comfy.samplers
    import torch

    device = model.load_device
    comfy.model_management.load_models_gpu([model, *model.get_nested_additional_models(), *unique_networks(list(controls))])
    options = comfy.model_patcher.create_model_options_clone(model.model_options)
    comfy.sampler_helpers.prepare_model_patcher(model, {}, options)
    model.pre_run()
    last = None
    for control in controls:
        last = control.set_previous_controlnet(last)
    extra = {"control": last} if last else {}
    if last:
        last.pre_run(model.model, model.get_model_object("model_sampling").percent_to_sigma)
    latent = torch.randn((batch, *LATENT), generator=torch.Generator().manual_seed(0)).to(device)
    prompts = []
    for seed in (1, 2):
        text = torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(seed))
        prompts.append([{"model_conds": {"c_crossattn": comfy.conds.CONDCrossAttn(text)}, "uuid": uuid.uuid4(), **extra}])

    def step(sigma: float) -> Any:
        model.model.current_patcher = model
        level = torch.full((batch,), sigma, device=device)
        return comfy.samplers.calc_cond_batch(model.model, prompts, latent * sigma, level, options)

    return step


class RandomLatents:
    """In the place of a VAE: the hint's latent is worked out once a run and is not part of a step."""

    latent_channels, latent_dim = LATENT[0], 2

    def encode(self, pixels: Any) -> Any:
        """The same latent for every picture."""
        import torch

        return torch.randn((len(pixels), *LATENT), generator=torch.Generator().manual_seed(3))


def build_base() -> Any:
    """A CtrLoRA base in full size with random weights."""
    import comfy.ops
    from nextcontrol.models.ctrlora import CtrLoRA, read_config
    from nextcontrol.models.state_dict import shapes_of
    from nextcontrol.nodes.host.ctrlora_load import CtrLoRABase, manage
    from nextcontrol.nodes.host.result_cache import ResultCache

    native = build_controlnet().control_model.state_dict()
    own = {key: tensor for key, tensor in native.items() if not key.startswith("input_hint_block")}
    network = CtrLoRA(read_config(shapes_of(own)), comfy.ops.manual_cast, device="meta")
    network.load_state_dict(own, assign=True)
    return CtrLoRABase("bench", "bench", network.config, shapes_of(own), manage(network), None, ResultCache(0))


def build_condition(base: Any, rank: int) -> Any:
    """A condition with random weights on a base."""
    import torch
    from nextcontrol.models.adapted import Condition
    from nextcontrol.models.ctrlora_file import is_replaced, linear_names
    from nextcontrol.nodes.host.ctrlora_control import CtrLoRAControl
    from nextcontrol.nodes.host.ctrlora_hint import Posterior
    from nextcontrol.nodes.host.ctrlora_load import manage

    dtype = next(base.network.model.parameters()).dtype
    lora = {}
    for name in linear_names(base.config):
        out, width = base.shapes[f"{name}.weight"]
        lora[name] = (torch.randn(rank, width, dtype=dtype) / rank, torch.randn(out, rank, dtype=dtype) / rank)
    replaced = {key: torch.randn(shape, dtype=dtype) / 100 for key, shape in base.shapes.items() if is_replaced(key)}
    return CtrLoRAControl(base, manage(Condition(lora, replaced)), 1.0, Posterior(), object())


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
