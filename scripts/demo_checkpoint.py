"""Weights for the tests: a small SD1.5 checkpoint and controls of each kind for it, random but always the same.

    HOST_PYTHON scripts/demo_checkpoint.py COMFYUI_FOLDER RESULT_FOLDER

Shapes come from ComfyUI's own classes and from the pack's, so that both load the files as they load published ones.
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from host import Host
    from torch import Tensor

    Shapes = Iterable[tuple[str, Tensor]]

ROOT = Path(__file__).resolve().parent.parent
# Where the files lie below models/, under the names that the workflows ask for.
CHECKPOINT = "checkpoints/v1-5-pruned-emaonly-fp16.safetensors"
CONTROL = "controlnext/controlnext-sd15/controlnet.safetensors"
UNET = "controlnext/controlnext-sd15/unet.safetensors"
CTRLORA_BASE = "ctrlora/ctrlora_sd15_basecn700k.ckpt"
CTRLORA_CANNY = "ctrlora/ctrlora_sd15_basecn700k_canny_rank128.ckpt"
CTRLORA_PALETTE = "ctrlora/ctrlora_sd15_basecn700k_palette_rank128_520kimgs_800ksteps.ckpt"
CTRLORA_LINEART = "ctrlora/ctrlora_sd15_basecn700k_lineart_rank128_100kimgs_100ksteps.ckpt"
CTRLORAS = (CTRLORA_CANNY, CTRLORA_PALETTE, CTRLORA_LINEART)
NATIVE_TILE = "controlnet/control_v11f1e_sd15_tile_fp16.safetensors"
NATIVE_DEPTH = "controlnet/control_v11f1p_sd15_depth_fp16.safetensors"
NATIVES = (NATIVE_TILE, NATIVE_DEPTH)
FILES = (CHECKPOINT, CONTROL, UNET, CTRLORA_BASE, *CTRLORAS, *NATIVES)
SEED = 2408_06070
RANK = 8
"""Of the CtrLoRAs, whatever their names say."""
HINT_WIDTHS = (16, 16, 32, 32, 96, 96, 256)
"""Of the hint encoder of a ControlNet."""
PACKAGE = "demo_models"
REST = 0.7
"""How much of the picture comes from the UNet's random part."""
# The widths that make ComfyUI recognise SD1.5 (320 channels, text of 768), and as few blocks as it takes.
UNET_CONFIG = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "channel_mult": [1, 1],
    "num_res_blocks": [1, 1], "transformer_depth": [0, 1], "transformer_depth_output": [0, 0, 0, 1],
    "transformer_depth_middle": -1, "num_heads": 8, "context_dim": 768, "use_spatial_transformer": True, "legacy": False,
}  # fmt: skip


def demo_models(host: Host) -> Path:
    """A folder to be used as models/, from the cache; `FILES` are in it.

    Returns:
        The folder, made on the first call.

    Raises:
        SetupError: The files cannot be made.
    """
    from provide import SetupError, provide, say

    def build(folder: Path) -> None:
        say("Making random weights for the tests, once: 0.4 GB.")
        command = [str(host.python), "-B", str(Path(__file__).resolve()), str(host.comfyui), str(folder)]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode:
            reason = (answer.stderr.strip().splitlines() or [f"exit status {answer.returncode}"])[-1]
            message = (
                f"The weights for the tests cannot be made with '{host.python}' ({reason}): try another ComfyUI with --comfyui."
            )
            raise SetupError(message)

    # Whoever changes this file changes the weights.
    recipe: dict[str, object] = {"source": hashlib.sha256(Path(__file__).read_bytes()).hexdigest()}
    return provide("demo", recipe, build, FILES)


def random_weights(shapes: Shapes, seed: int) -> dict[str, Tensor]:
    """Weights that keep the size of what passes through, norms that do nothing, biases of zero; in fp16.

    Args:
        shapes: Names and tensors of the right shapes, on any device.
        seed: Of the weights.

    Returns:
        One new tensor for each name.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, like in shapes:
        if like.ndim > 1:
            scale = 0.05 if "embedding" in name else like[0].numel() ** -0.5
            weights[name] = (torch.randn(like.shape, generator=generator) * scale).half()
        else:
            weights[name] = (torch.zeros if name.endswith("bias") else torch.ones)(like.shape).half()
    return weights


def random_unet() -> dict[str, Tensor]:
    """A UNet that finds noise in its input, and adds what the random rest of it makes of prompt and hint.

    With nothing but random weights a sampler would end in noise. Here 8 channels carry the input to the last layer: as it is,
    for its coarse part, and what is finer than its surroundings. Both signs of each, because silu(x) - silu(-x) = x.

    Returns:
        The state dict.
    """
    import torch
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    unet = random_weights(UNetModel(**UNET_CONFIG, device="meta").state_dict().items(), SEED)
    first, last = unet["input_blocks.0.0.weight"], unet["out.2.weight"]
    end = max(int(name.split(".")[1]) for name in unet if name.startswith("output_blocks."))
    # The rest says little about the noisy input and much that is the same everywhere: a control takes on that strength.
    first *= 0.1
    unet["input_blocks.0.0.bias"] += first.sum((1, 2, 3)) * 20
    unet["input_blocks.1.0.out_layers.3.weight"] *= 0.1
    unet["input_blocks.2.0.op.weight"][:, :8] = 0
    for block in (end - 1, end):
        for layer in ("in_layers.2", "skip_connection"):
            unet[f"output_blocks.{block}.0.{layer}.weight"][:, 320:] = 0
    carry = unet[f"output_blocks.{end}.0.skip_connection.weight"]
    # Two groups of the last norm, 10 channels each, 8 of them in use.
    unet[f"output_blocks.{end}.0.out_layers.3.weight"][:20] = carry[:20] = first[:8] = 0
    last *= REST
    last[:, :20] = 0
    point, blur = torch.zeros(3, 3), torch.tensor([0.25, 0.5, 0.25]).outer(torch.tensor([0.25, 0.5, 0.25]))
    point[1, 1] = 1
    for channel in range(4):
        first[channel, channel], first[4 + channel, channel] = point.half(), (point - blur).half()
        for row, sign in ((2 * channel, 1), (2 * channel + 1, -1)):
            carry[row, 320 + channel] = carry[10 + row, 324 + channel] = sign
            last[channel, row], last[channel, 10 + row] = (sign * 0.8**0.5 * blur).half(), (sign * 0.8**1.5 * point).half()
    return unet


def plain_vae() -> dict[str, Tensor]:
    """A VAE that shows the 4 latent channels as colours; of the tiny kind (TAESD), which ComfyUI knows too.

    Returns:
        The state dict; the encoder is random.
    """
    import torch
    from comfy.taesd.taesd import TAESD

    vae = random_weights(TAESD().state_dict().items(), SEED + 2)
    vae["vae_scale"], vae["vae_shift"] = torch.tensor(0.18215), torch.tensor(0.0)
    first, *between, last = (name for name in vae if name.startswith("taesd_decoder.") and vae[name].ndim == 4)
    colours = vae[last][:, :4, 1, 1].clone()
    for name in (first, *between, last):
        vae[name] *= 0
    for channel in range(4):
        for row, sign in ((channel, 1), (channel + 4, -1)):
            # Both signs again: ReLU takes the negative one away.
            vae[first][row, channel, 1, 1] = sign
            vae[last][:, row, 1, 1] = sign * colours[:, channel]
    for name in between:
        if name.count(".") == 2:  # between the residual blocks, after each enlargement: smooth it
            vae[name][range(64), range(64)] = torch.tensor([0.25, 0.5, 0.25]).outer(torch.tensor([0.25, 0.5, 0.25])).half()
    vae[last.replace("weight", "bias")] += 0.5
    return vae


def random_checkpoint(unet: dict[str, Tensor]) -> dict[str, Tensor]:
    """A UNet, text encoder and VAE as one SD1.5 checkpoint."""
    import json

    import comfy.sd1_clip
    import torch
    from comfy.clip_model import CLIPTextModel
    from comfy.ops import disable_weight_init

    config = json.loads((Path(comfy.sd1_clip.__file__).parent / "sd1_clip_config.json").read_text(encoding="utf-8"))
    text = random_weights(CLIPTextModel(config, torch.float16, "meta", disable_weight_init).state_dict().items(), SEED + 1)
    checkpoint = {f"model.diffusion_model.{name}": weight for name, weight in unet.items()}
    checkpoint |= {f"cond_stage_model.transformer.{name}": weight for name, weight in text.items()}
    return checkpoint | {f"first_stage_model.{name}": weight for name, weight in plain_vae().items()}


def pack_module(name: str) -> Any:
    """One of the pack's models/, without the pack: under a name that no module of ComfyUI has."""
    if PACKAGE not in sys.modules:
        folder = ROOT / "models"
        spec = importlib.util.spec_from_file_location(PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)])
        assert spec is not None
        assert spec.loader is not None
        sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[PACKAGE])
    return importlib.import_module(f"{PACKAGE}.{name}")


def random_control() -> dict[str, Tensor]:
    """A ControlNeXt module in the published sizes."""
    module = pack_module("controlnext")
    network = module.ControlNeXt(module.GENERATIONS[2], device="meta")
    return {name: weight.float() for name, weight in random_weights(network.state_dict().items(), SEED + 3).items()}


def tuned_unet_weights(checkpoint: dict[str, Tensor]) -> dict[str, Tensor]:
    """The UNet half of a ControlNeXt: the output projections of the attentions, a little off, as training leaves them."""
    prefix = "model.diffusion_model."
    names = {name: weight for name, weight in checkpoint.items() if name.startswith(prefix) and ".to_out." in name}
    steps = random_weights(names.items(), SEED + 4)
    return {name.removeprefix(prefix): weight + 0.1 * steps[name] * (weight.ndim > 1) for name, weight in names.items()}


def random_base(unet: dict[str, Tensor]) -> dict[str, Tensor]:
    """A CtrLoRA Base ControlNet that fits a UNet: its encoder blocks, with zero convolutions that are not zero.

    Args:
        unet: Of which only the shapes are used.

    Returns:
        The state dict, without the published prefix.
    """
    network = pack_module("ctrlora")
    config = network.read_config({name: tuple(weight.shape) for name, weight in unet.items()})
    return random_weights(network.CtrLoRA(config, device="meta").state_dict().items(), SEED + 5)


def random_native(base: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """A ControlNet of the usual kind: a Base ControlNet with a hint encoder in pixels before it.

    Args:
        base: From `random_base`, of which only the shapes are used.
        seed: Of the weights.

    Returns:
        The state dict.
    """
    import torch

    widths = (3, *HINT_WIDTHS, base["input_blocks.0.0.weight"].shape[0])
    shapes = dict(base)
    for layer, (width_in, width_out) in enumerate(pairwise(widths)):
        shapes[f"input_hint_block.{2 * layer}.weight"] = torch.empty(width_out, width_in, 3, 3, device="meta")
        shapes[f"input_hint_block.{2 * layer}.bias"] = torch.empty(width_out, device="meta")
    return random_weights(shapes.items(), seed)


def random_condition(base: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """A CtrLoRA for a base: LoRA on every linear layer, zero convolutions and norms.

    Args:
        base: From `random_base`.
        seed: Of the weights.

    Returns:
        The state dict, without the published prefix.
    """
    import torch

    file = pack_module("ctrlora_file")
    linear = file.linear_names(pack_module("ctrlora").read_config({name: tuple(weight.shape) for name, weight in base.items()}))
    shapes = {name: weight for name, weight in base.items() if file.is_replaced(name)}
    for name in linear:
        width_out, width_in = base[f"{name}.weight"].shape
        shapes[f"{name}.lora_layer.down.weight"] = torch.empty(RANK, width_in, device="meta")
        shapes[f"{name}.lora_layer.up.weight"] = torch.empty(width_out, RANK, device="meta")
    return random_weights(shapes.items(), seed)


def main(comfyui: str, folder: str) -> None:
    """Write the files."""
    sys.path.insert(0, comfyui)
    from comfy.cli_args import args

    args.cpu = True
    import torch
    from safetensors.torch import save_file

    unet = random_unet()
    checkpoint = random_checkpoint(unet)
    base = random_base(unet)
    files = {CHECKPOINT: checkpoint, CONTROL: random_control(), UNET: tuned_unet_weights(checkpoint), CTRLORA_BASE: base}
    files |= {name: random_condition(base, SEED + 6 + i) for i, name in enumerate(CTRLORAS)}
    files |= {name: random_native(base, SEED + 16 + i) for i, name in enumerate(NATIVES)}
    for name, tensors in files.items():
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".ckpt":
            torch.save({f"control_model.{key}": tensor for key, tensor in tensors.items()}, path)
        else:
            save_file(tensors, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
