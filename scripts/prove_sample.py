"""Controls from their files on the demo model, and pictures drawn under them by the host's own nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from demo_train_controls import BASE
from prove_metrics import measure
from prove_train import NEXT, Training, is_shipped, load_base, train, trained_base

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from prove_world import World
    from torch import Tensor

NATIVE = "demo_controlnet_canny"
CFG = 4.0
SAMPLER, SCHEDULER = "euler", "normal"
FACTOR = 8
"""Pixels of a latent's cell."""
KEPT = 8
"""Controls in memory."""


class Use(NamedTuple):
    """A control at work."""

    control: Mapping[str, str]
    """As `train` gives it."""
    condition: str
    """Type of the hints that it reads."""
    strength: float = 1.0


def measured(world: World, uses: Sequence[Use], seed: int) -> dict[str, float]:
    """Every metric of the held-out pictures drawn under some controls, one after the other on the model; kept."""
    settings = [[list(use) for use in uses], seed, world.extent.sampling_steps, SAMPLER, SCHEDULER, CFG]
    return world.keeper.keep("measure", settings, lambda: _measure(world, uses, seed))


def _measure(world: World, uses: Sequence[Use], seed: int) -> dict[str, float]:
    return measure(draw(world, uses, seed), world.hints, world.draw)


def draw(world: World, uses: Sequence[Use], seed: int, count: int | None = None) -> Tensor:
    """Pictures (N, H, W, 3) from the captions of all held-out pictures, or of the first."""
    import torch

    with torch.inference_mode():
        return world.models[2].decode(sample(world, uses, seed, world.extent.sampling_steps, count)).float().cpu()


def sample(
    world: World,
    uses: Sequence[Use],
    seed: int,
    steps: int,
    count: int | None = None,
    on_step: Callable[..., None] | None = None,
) -> Tensor:
    """Latents (N, 4, h, w) by one call of the host's sampler; `on_step` is called after each step."""
    import comfy.sample
    import torch

    model, positive, negative = world.models[0], [[world.texts[1][:count], {}]], [[world.texts[0][-1:], {}]]
    pictures = world.held_out.pictures[:count]
    height, width = (side // FACTOR for side in pictures.shape[1:3])
    with torch.inference_mode():
        for use in uses:
            model, positive, negative = apply(world, use, model, positive, negative, count)
        empty = torch.zeros(len(pictures), 4, height, width)
        noise = comfy.sample.prepare_noise(empty, seed)
        return comfy.sample.sample(
            model, noise, steps, CFG, SAMPLER, SCHEDULER, positive, negative, empty, callback=on_step, disable_pbar=True,
            seed=seed,
        )  # fmt: skip


def apply(world: World, use: Use, model: Any, positive: Any, negative: Any, count: int | None = None) -> tuple[Any, Any, Any]:
    """A control on a model or on prompts, by the same nodes as in a workflow."""
    from nextcontrol.nodes.host.attach import attach_controlnext

    import nodes

    hints = world.hints[use.condition][:count]
    network = load_control(world, use.control)
    if use.control["kind"] == "controlnext":
        return attach_controlnext(model, network, hints, use.strength, (0.0, 1.0)), positive, negative
    vae = world.models[2] if use.control["kind"] == "ctrlora" else None
    node = nodes.ControlNetApplyAdvanced()
    return model, *node.apply_controlnet(positive, negative, network, hints, use.strength, 0.0, 1.0, vae)


def load_control(world: World, control: Mapping[str, str]) -> Any:
    """What our loaders, or the host's classes, make of a control's files."""
    key = str(sorted(control.items()))
    if key not in world.loaded:
        # The controls of a curve are used once each: the latest are enough.
        for old in [name for name in world.loaded if name.startswith("[")][: -KEPT + 1]:
            del world.loaded[old]
        world.loaded[key] = _load(world, control)
    return world.loaded[key]


def _load(world: World, control: Mapping[str, str]) -> Any:
    from nextcontrol.nodes.host.controlnext_file import load_controlnext_file
    from nextcontrol.nodes.host.ctrlora_control import CtrLoRAControl
    from nextcontrol.nodes.host.ctrlora_hint import Posterior
    from nextcontrol.nodes.host.ctrlora_load import load_condition

    if control["kind"] == "controlnext":
        return load_controlnext_file(control["file"], control.get("unet", "none"), "auto", "auto")
    if control["kind"] == "controlnet":
        return load_native(world, control["file"])
    base = load_base(world, control["base"])
    condition, source = load_condition(base, control["file"], "")
    return CtrLoRAControl(base, condition, 1.0, Posterior(), source)


def load_native(world: World, name: str) -> Any:
    """The host's own ControlNet, of the demo model's sizes: the host's loader takes the number of heads from SD1.5's sizes."""
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.model_management
    import comfy.ops
    import torch
    from nextcontrol.nodes.host.folders import find_file
    from nextcontrol.nodes.host.unet_structure import unet_config_of
    from safetensors.torch import load_file

    left_out = {"out_channels", "transformer_depth_output", "use_temporal_attention"}
    sizes = {key: value for key, value in unet_config_of(world.models[0]).items() if key not in left_out}
    sizes |= {"hint_channels": 3, "dtype": torch.float32, "operations": comfy.ops.disable_weight_init}
    network = comfy.cldm.cldm.ControlNet(**sizes)
    tensors = load_file(find_file(name, ("controlnet",)))
    network.load_state_dict({key.removeprefix("control_model."): tensor.float() for key, tensor in tensors.items()})
    return comfy.controlnet.ControlNet(network.eval(), load_device=comfy.model_management.get_torch_device())


def controls(world: World) -> dict[str, Use]:
    """The controls of the first proof by name: those that ship where they do, else trained now on the same pictures."""
    has_base, has_next = is_shipped(world, "ctrlora", BASE), is_shipped(world, "controlnext", NEXT)
    base = {"base": f"{BASE}.safetensors"} if has_base else trained_base(world)
    files = {name: f"{BASE}_{name}.safetensors" if has_base else base[name] for name in ("canny", "palette")}
    loras = {name: {"kind": "ctrlora", "base": base["base"], "file": file} for name, file in files.items()}
    following = {"kind": "controlnext", "file": f"{NEXT}.safetensors", "unet": f"{NEXT}_unet.safetensors"}
    native = {"kind": "controlnet", "file": f"{NATIVE}.safetensors"}
    return {
        "ControlNeXt canny": Use(following if has_next else _trained(world, "controlnext"), "canny"),
        "CtrLoRA canny": Use(loras["canny"], "canny"),
        "CtrLoRA palette": Use(loras["palette"], "palette"),
        "ControlNet canny": Use(native if is_shipped(world, "controlnet", NATIVE) else _trained(world, "controlnet"), "canny"),
    }


def _trained(world: World, method: str) -> Mapping[str, str]:
    return train(world, Training(method, "canny", 0, world.extent.base_steps, world.extent.pairs))[-1][1]


def origin(world: World, use: Use) -> dict[str, str]:
    """What the header of a control's file says of its training, and whether the file ships."""
    from nextcontrol.nodes.host.folders import CONTROL_FOLDERS, find_file
    from safetensors import safe_open

    path = find_file(use.control["file"], CONTROL_FOLDERS)
    with safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
    ships = world.shipped is not None and world.shipped in path.parents
    told = {key: header.get(f"nextcontrol.{key}", "") for key in ("steps", "pairs")}
    return {**told, "origin": "ships" if ships else "trained here"}
