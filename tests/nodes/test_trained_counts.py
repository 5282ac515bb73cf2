"""How much each method trains on the models in full size, as the README has it; nothing here has a byte of weights."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import comfy.supported_models
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from dynamic_vram import filled_layers
from nextcontrol.models.adapted import LORA
from nextcontrol.models.controlnet import ControlNet
from nextcontrol.models.controlnext import GENERATIONS, ControlNeXt
from nextcontrol.models.ctrlora import CtrLoRA, CtrLoRAConfig, read_config
from nextcontrol.nodes.host.recipe_controlnext import trained_names
from nextcontrol.training.method_controlnext import ControlNeXtOptions
from nextcontrol.training.trainable import trainable_shapes

README = Path(__file__).resolve().parents[2] / "README.md"
RANK, CONDITIONS = 128, 9
FAMILIES = ("sd15", "sdxl", "svd")
COLUMNS = 7
"""Of the README's table: method, a number for each family, data, what is written, what loads it."""
MODULE = 3_526_400
COUNTS = {
    "ctrlora": {"sd15": 36_945_536},
    "ctrlora_base": {"sd15": 588_970_624},
    "controlnext": {"sd15": MODULE + 24_805_760, "sdxl": MODULE + 102_483_200, "svd": MODULE + 1_524_623_082},
    "controlnet": {"sd15": 361_279_120},
}
"""Method and family to the number of trained parameters, with the published settings."""
_COMMON = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "use_spatial_transformer": True,
    "legacy": False, "dtype": torch.float32,
}  # fmt: skip
_SD15 = _COMMON | {
    "channel_mult": [1, 2, 4, 4], "num_res_blocks": [2, 2, 2, 2], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1, "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "context_dim": 768,
    "num_heads": 8,
}  # fmt: skip
UNETS = {
    "sd15": (comfy.supported_models.SD15, _SD15),
    "sdxl": (
        comfy.supported_models.SDXL,
        _COMMON
        | {
            "channel_mult": [1, 2, 4], "num_res_blocks": [2, 2, 2], "transformer_depth": [0, 0, 2, 2, 10, 10],
            "transformer_depth_middle": 10, "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "context_dim": 2048,
            "num_head_channels": 64, "use_linear_in_transformer": True, "num_classes": "sequential", "adm_in_channels": 2816,
        },
    ),
    "svd": (
        comfy.supported_models.SVD_img2vid,
        _SD15
        | {
            "num_heads": -1, "num_head_channels": 64, "context_dim": 1024, "in_channels": 8,
            "use_linear_in_transformer": True, "num_classes": "sequential", "adm_in_channels": 768,
            "use_temporal_attention": True, "use_temporal_resblock": True, "extra_ff_mix_layer": True,
            "use_spatial_context": True, "merge_strategy": "learned_with_images", "video_kernel_size": [3, 1, 1],
        },
    ),
}  # fmt: skip


@cache
def full_model(family: str) -> ModelPatcher:
    """The host's model of a family in its published size."""
    kind, arguments = UNETS[family]
    config = kind({key: value[:] if isinstance(value, list) else value for key, value in arguments.items()})
    config.unet_config["num_heads"] = arguments.get("num_heads", -1)
    device = torch.device("cpu")
    with filled_layers():
        return ModelPatcher(config.get_model({}, device="meta"), load_device=device, offload_device=device)


def count(tensors) -> int:
    return sum(tensor.numel() for tensor in tensors)


def base_config() -> CtrLoRAConfig:
    """Of a CtrLoRA base for SD1.5: the encoder's."""
    return read_config({key: tuple(t.shape) for key, t in full_model("sd15").model.diffusion_model.named_parameters()})


def lora_count(is_lora: bool) -> int:
    shapes = trainable_shapes(base_config(), RANK)
    return sum(torch.Size(shape).numel() for key, shape in shapes.items() if (LORA in key) == is_lora)


def test_the_unets_have_their_published_sizes():
    sizes = {family: count(full_model(family).model.diffusion_model.parameters()) for family in FAMILIES}
    assert sizes == {"sd15": 859_520_964, "sdxl": 2_567_463_684, "svd": 1_524_623_082}


def test_ctrlora_trains_a_lora_for_every_linear_layer_with_zero_convolutions_and_norms():
    assert lora_count(True) + lora_count(False) == COUNTS["ctrlora"]["sd15"]


def test_the_base_is_trained_whole_with_a_lora_for_each_condition():
    body = count(CtrLoRA(base_config(), device="meta").parameters())
    assert body + CONDITIONS * lora_count(True) == COUNTS["ctrlora_base"]["sd15"]


def test_a_controlnet_is_trained_whole():
    assert count(ControlNet(base_config(), device="meta").parameters()) == COUNTS["controlnet"]["sd15"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_controlnext_is_trained_with_its_familys_part_of_the_unet(family):
    module = count(ControlNeXt(GENERATIONS[2], device="meta").parameters())
    model = full_model(family)
    names = trained_names(model, ControlNeXtOptions(), family)
    part = count(model.model.diffusion_model.get_parameter(name) for name in names)
    assert module == MODULE
    assert module + part == COUNTS["controlnext"][family]


@pytest.mark.parametrize("method", COUNTS)
def test_the_numbers_of_the_readmes_table_are_these(method):
    lines = README.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith(f"| `{method}` |") and line.count("|") == COLUMNS + 1]
    expected = [f"{COUNTS[method][family]:,}" if family in COUNTS[method] else "" for family in FAMILIES]
    assert [re.sub(r"[^\d,]", "", cell) for row in rows for cell in row.split("|")[2:5]] == expected * len(rows)
