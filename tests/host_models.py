"""Small but real models of the host: its own UNet and model classes, with weights made here."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import comfy.conds
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.ops
import comfy.sampler_helpers
import comfy.samplers
import comfy.supported_models
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from dynamic_vram import filled_layers
from nextcontrol.models.controlnext import GENERATIONS, ControlNeXt
from nextcontrol.nodes.host.managed import patcher_class
from seeded import seeded_state_dict

GOLDENS = Path(__file__).parent / "golden"
SHAPES: dict[str, dict[str, dict[str, list[int]]]] = json.loads((GOLDENS / "controlnext_shapes.json").read_text())

_COMMON = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [1, 1],
    "use_spatial_transformer": True, "legacy": False, "dtype": torch.float32,
}  # fmt: skip
_SD15 = _COMMON | {
    "num_heads": 8, "transformer_depth": [1, 0], "transformer_depth_output": [1, 1, 0, 0], "transformer_depth_middle": 1,
    "context_dim": 768, "channel_mult": [1, 2],
}  # fmt: skip
_SDXL = _COMMON | {
    "num_head_channels": 64, "transformer_depth": [0, 2], "transformer_depth_output": [0, 0, 2, 2],
    "transformer_depth_middle": 2, "context_dim": 2048, "channel_mult": [1, 2], "use_linear_in_transformer": True,
    "num_classes": "sequential", "adm_in_channels": 2816,
}  # fmt: skip
_SVD = _SD15 | {
    "num_heads": -1, "num_head_channels": 64, "context_dim": 1024, "in_channels": 8, "use_linear_in_transformer": True,
    "num_classes": "sequential", "adm_in_channels": 768, "use_temporal_attention": True, "use_temporal_resblock": True,
    "extra_ff_mix_layer": True, "use_spatial_context": True, "merge_strategy": "learned_with_images",
    "video_kernel_size": [3, 1, 1],
}  # fmt: skip

UNET_CONFIGS: dict[str, dict[str, Any]] = {
    "sd15": _SD15,
    "sd15_v0": _SD15 | {"channel_mult": [1, 4]},
    "sdxl": _SDXL,
    "svd_v1": _SVD | {"channel_mult": [1, 4]},
    "svd_v2": _SVD,
    "ctrlora": _SD15
    | {
        "model_channels": 64,
        "num_heads": 4,
        "context_dim": 96,
        "transformer_depth": [1, 1],
        "transformer_depth_output": [1, 1, 1, 1],
    },
    "sd15_short": _SD15
    | {"channel_mult": [1], "num_res_blocks": [1], "transformer_depth": [1], "transformer_depth_output": [1, 0]},
    "sd15_narrow": _SD15 | {"model_channels": 64},
    "sdxl_narrow": _SDXL | {"model_channels": 64},
    "svd_narrow": _SVD | {"model_channels": 64},
    "svd_tiny": _SVD | {"model_channels": 32, "num_head_channels": 16},
}
"""The reference's small UNets of the golden files in the host's classes, and narrow ones for everything else."""

_CONFIG_CLASSES = {
    "sd15": comfy.supported_models.SD15,
    "ctrlora": comfy.supported_models.SD15,
    "sdxl": comfy.supported_models.SDXL,
    "svd": comfy.supported_models.SVD_img2vid,
}


@cache
def build_model(variant: str, seed: int = 0) -> ModelPatcher:
    """A host model with the golden UNet of a variant; the same one for every test, since attaching leaves no trace.

    Args:
        variant: A row of `UNET_CONFIGS`.
        seed: Of random weights.

    Returns:
        Ready for a sampler, on the CPU.
    """
    return make_model(variant, seed, patcher_class())


def make_model(variant: str, seed: int = 0, kind: type[ModelPatcher] = ModelPatcher, **_: Any) -> ModelPatcher:
    """As `build_model`, another one at each call."""
    config_class = _CONFIG_CLASSES[variant.split("_", maxsplit=1)[0]]
    arguments = UNET_CONFIGS[variant]
    config = config_class({key: value[:] if isinstance(value, list) else value for key, value in arguments.items()})
    for name in ("num_heads", "num_head_channels"):
        if name in arguments:
            config.unet_config[name] = arguments[name]  # the class of the family has its own
    with filled_layers():
        model = config.get_model({}, "", device=None)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.diffusion_model.parameters():
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    device = comfy.model_management.get_torch_device()
    patcher = kind(model.eval(), load_device=device, offload_device=device)
    # The host calls this for a model without dynamic VRAM.
    patcher.cached_patcher_init = (make_model, (variant, seed))
    return patcher


def weight_in_use(model: ModelPatcher, key: str) -> torch.Tensor:
    """What a layer of a loaded model computes with, in fp32: under dynamic VRAM its patches come in on the way."""
    path, _, leaf = key.rpartition(".")
    layer = comfy.utils.get_attr(model.model, path)
    if leaf not in ("weight", "bias") or not hasattr(layer, "comfy_cast_weights"):
        return comfy.utils.get_attr(model.model, key)
    return comfy.ops.cast_bias_weight(layer, torch.zeros(1))[leaf == "bias"]


def narrow_module(generation: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    """The tensors of a control module for a narrow UNet: the published layout in other widths."""
    blocks = ((3, 32), (32, 64), (64, 64)) if generation == 1 else ((32, 32), (32, 64), (64, 64))[: 5 - generation]
    config = replace(
        GENERATIONS[generation - 1],
        stem=() if generation == 1 else (16, 16, 32),
        blocks=blocks,
        mid=64,
        out=64 if generation == 3 else 128,
        time_features=64,
        time_width=128,
    )
    shapes = {key: tuple(tensor.shape) for key, tensor in ControlNeXt(config, device="meta").state_dict().items()}
    return seeded_state_dict(shapes, seed)


def prompt(context: torch.Tensor, **extra: Any) -> dict[str, Any]:
    """One prompt as the sampler prepares it, from a text embedding and `y`, `c_concat`, `area` or `num_video_frames`."""
    wrapped = {"c_crossattn": comfy.conds.CONDCrossAttn(context)}
    if "y" in extra:
        wrapped["y"] = comfy.conds.CONDRegular(extra.pop("y"))
    if "c_concat" in extra:
        wrapped["c_concat"] = comfy.conds.CONDNoiseShape(extra.pop("c_concat"))
    if "num_video_frames" in extra:
        wrapped["num_video_frames"] = comfy.conds.CONDConstant(extra.pop("num_video_frames"))
    return {"model_conds": wrapped, "uuid": uuid.uuid4(), **extra}


@contextmanager
def running(model: ModelPatcher, memory: int | None = None) -> Iterator[dict[str, Any]]:
    """A model as it is during sampling: loaded, with its wrappers in the options that this yields.

    With `memory`, no more than these bytes of each network are loaded and the rest is cast layer by layer, as with --lowvram.
    """
    networks = [model, *model.get_nested_additional_models()]
    if memory is None:
        comfy.model_management.load_models_gpu(networks)
    else:
        comfy.model_management.unload_all_models()
        for network in networks:
            network.partially_load(network.load_device, memory)
    options = comfy.model_patcher.create_model_options_clone(model.model_options)
    comfy.sampler_helpers.prepare_model_patcher(model, {}, options)
    try:
        model.pre_run()
        yield options
    finally:
        model.cleanup()
        if memory is not None:
            for network in networks:
                network.detach()


def evaluate(
    model: ModelPatcher,
    prompts: list[list[dict[str, Any]] | None],
    latent: torch.Tensor,
    sigma: float,
    memory: int | None = None,
) -> list[torch.Tensor]:
    """What the UNet predicts for each prompt, through the sampler's own `calc_cond_batch`.

    Args:
        model: From `build_model`, patched or not.
        prompts: [conditional, unconditional], each a list of `prompt`s.
        latent: (B, 4, H, W), the UNet's input after the sampler's scaling.
        sigma: Noise level.
        memory: See `running`.

    Returns:
        One (B, 4, H, W) for each prompt: noise, or v for SVD.
    """
    with running(model, memory) as options:
        sampling = model.get_model_object("model_sampling")
        level = torch.full((len(latent),), sigma)
        x = latent * (sigma**2 + 1) ** 0.5
        denoised = comfy.samplers.calc_cond_batch(model.model, prompts, x, level, options)
        if isinstance(sampling, comfy.model_sampling.V_PREDICTION):
            return [(x / (sigma**2 + 1) - d) * (sigma**2 + 1) ** 0.5 / sigma for d in denoised]
        return [(x - d) / sigma for d in denoised]
