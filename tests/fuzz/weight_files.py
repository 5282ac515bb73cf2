"""Small weight files of every kind, and the same damaged."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

import torch
from fuzz.cases import Room
from fuzz.damage import damage_bytes, damage_header
from fuzz.pickles import damage_archive, save_pickle, written_by_hand
from fuzz.tensors import ATTENTION, OTHERS, damage_tensors
from torch import Tensor

EXTENSIONS = (".safetensors", ".safetensors", ".safetensors", ".sft", ".pt", ".ckpt", ".pth", ".bin")


def goods(model: Any) -> dict[str, dict[str, Tensor]]:
    """Small files of every kind."""
    from host_models import narrow_module
    from nextcontrol.models.controlnet import ControlNet
    from nextcontrol.models.ctrlora_file import stack_conditions
    from nextcontrol.training.trainable import published, start_condition
    from tiny_training import tiny_base

    network = tiny_base()
    base = {key: tensor.detach().clone() for key, tensor in network.state_dict().items()}
    condition = {key: tensor.detach().clone() for key, tensor in start_condition(network, 2, 0).tensors().items()}
    lora = {key: tensor for key, tensor in condition.items() if "lora_layer" in key}
    other = {key: tensor.clone() for key, tensor in lora.items()}
    pretraining = stack_conditions(base, {"hed": lora, "x": other})
    own = model.model.diffusion_model.state_dict()
    unet = {f"model.diffusion_model.{key}": own[key].clone() for key in list(own)[:12] if own[key].numel() < 10**5}
    checkpoint = {"first_stage_model.decoder.conv_in.weight": torch.ones(2), "cond_stage_model.x": torch.ones(2), **unet}
    modules = {f"module {number}": narrow_module(number) for number in (1, 2, 3)}
    bundle = {f"controlnext.{key}": tensor for key, tensor in modules["module 3"].items()}
    encoder = ControlNet(network.config).state_dict()
    return modules | {
        "bundle": bundle | {f"unet.{key.removeprefix('model.diffusion_model.')}": tensor for key, tensor in unet.items()},
        "unet": unet,
        "diffusers": {f"unet.{key}": torch.ones(8, 8) for key in ATTENTION[:1]} | {"mid_block.x.weight": torch.ones(2)},
        "base": published(base),
        "base, bare": base,
        "lora": published(condition),
        "lora alone": published(lora),
        "finetune": checkpoint | published(base | condition),
        "pretraining": published(pretraining),
        "pretraining, bare": pretraining,
        "controlnet": published(encoder),
        "others": {key: torch.ones(2, 2) for key in OTHERS},
        "one": {"weight": torch.ones(2, 2)},
    }


def detectors() -> dict[str, tuple[str, dict[str, Tensor]]]:
    """The smallest networks of controlnet-aux, if that is there."""
    from nextcontrol.preprocessors.aux_detector import DETECTORS, import_aux

    try:
        network = DETECTORS["teed"].build(import_aux(DETECTORS["teed"].module))
    except ImportError:
        return {}
    return {"teed": ("teed", {key: tensor.detach().clone() for key, tensor in network.state_dict().items()})}


def write_file(goods: dict[str, dict[str, Tensor]], draw: random.Random, room: Room) -> tuple[str, str]:
    """Write a damaged file.

    Returns:
        How it was made, and its name.
    """
    kind = draw.choice(list(goods))
    extension = draw.choice(EXTENSIONS)
    name = f"odd{extension}"
    path = room.folder / name
    if extension in (".safetensors", ".sft"):
        from safetensors.torch import save

        data = save({key: tensor.contiguous() for key, tensor in goods[kind].items()}, {"format": "pt"})
        if draw.random() < 0.55:
            how, data = damage_header(data, draw)
        elif draw.random() < 0.5:
            how, data = damage_bytes(data, draw, 8 + int.from_bytes(data[:8], "little"))
        else:
            how, data = _as_safetensors(goods[kind], draw, room)
    elif draw.random() < 0.12:
        how, data = written_by_hand(draw, room.outside)
    else:
        how, content = "", goods[kind]
        if draw.random() < 0.7:
            how, content = damage_tensors(content, draw, room.outside)
        try:
            way, data = save_pickle(content, draw)
        except Exception:  # noqa: BLE001 - not every form of tensor can be saved in every way
            way, data = "empty", b""
        how = f"{how} in {way}"
        if not how.startswith(" ") and draw.random() < 0.75:
            pass
        elif way == "zip" and draw.random() < 0.6:
            more, data = damage_archive(data, draw)
            how = f"{how}, {more}"
        else:
            more, data = damage_bytes(data, draw, 3000)
            how = f"{how}, {more}"
    path.write_bytes(data)
    return f"{kind}{extension}: {how}", name


def _as_safetensors(tensors: dict[str, Tensor], draw: random.Random, room: Room) -> tuple[str, bytes]:
    """A structure that safetensors can hold; else the file as it is."""
    from safetensors.torch import save

    how, content = damage_tensors(tensors, draw, room.outside)
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
        with suppress(Exception):  # not every form of tensor can be saved
            return how, save({key: value.contiguous().clone() for key, value in content.items()})
    return "as it is", save({key: tensor.contiguous() for key, tensor in tensors.items()})
