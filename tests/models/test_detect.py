"""Files are recognised by what is in them."""

from __future__ import annotations

import pytest
import torch
from host_models import SHAPES, narrow_module
from nextcontrol.models.detect import KINDS, check_module, describe, detect_kind, detect_unet_family, possible_variants
from nextcontrol.models.state_dict import control_part, shapes_of, unet_part, unwrap
from nextcontrol.models.unet_weights import compare

ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
XL_INPUTS = ("conv_in.weight", "conv_in_condition.weight")
LORA = "time_embed.0.lora_layer.down.weight"
CONTROL = ["control_model.input_blocks.0.0.weight", "control_model.middle_block_out.0.weight"]
STABLE_DIFFUSION = ["model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.transformer.x", "betas"]


def shapes(variant, part):
    return {key: tuple(shape) for key, shape in SHAPES[variant][part].items()}


@pytest.mark.parametrize(
    ("variant", "possible"),
    [
        ("sd15", ("sd15", "sdxl", "sdxl_skip", "svd_v2")), ("sdxl", ("sd15", "sdxl", "sdxl_skip", "svd_v2")),
        ("svd_v2", ("sd15", "sdxl", "sdxl_skip", "svd_v2")), ("sd15_v0", ("sd15_v0",)), ("svd_v1", ("svd_v1",)),
    ],
)  # fmt: skip
def test_a_published_module_leaves_the_variants_that_its_tensors_allow(variant, possible):
    kind = detect_kind(shapes(variant, "control"))
    assert kind is not None
    assert possible_variants(kind) == possible
    check_module(shapes(variant, "control"), "x")


@pytest.mark.parametrize("variant", SHAPES)
def test_a_fine_tuned_unet_is_recognised_with_its_family(variant):
    whole = shapes(variant, "unet")
    subset = {key: shape for key, shape in whole.items() if "to_out" in key}
    for part in (whole, subset, {f"unet.{key}": shape for key, shape in subset.items()}):
        kind = detect_kind(part)
        assert kind is not None
        assert kind.id == "unet"
    family = variant.split("_", maxsplit=1)[0]
    assert detect_unet_family(whole) == family
    # A subset of a small SDXL UNet has nothing that SD1.5 lacks; the true one has ten blocks in the middle.
    assert detect_unet_family(subset) in ((family, None) if family == "sdxl" else (family,))


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (
            [
                "time_embedding.linear_1.weight",
                "down_res.0.conv1.weight",
                "mid_convs.0.3.weight",
                "mid_convs.1.weight",
                "scale",
            ],
            "interim_june",
        ),
        (
            [
                "time_embedding.linear_1.weight",
                "embedding.0.weight",
                "down_res.0.conv1.weight",
                "down_res.2.conv1.weight",
                "mid_convs.1.weight",
            ],
            "interim_july",
        ),
        (["input_blocks.1.1.transformer_blocks.0.attn2.to_out.0.weight"], "unet"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "unet"),
        (["model.diffusion_model.input_blocks.0.0.weight", "conditioner.embedders.0.transformer.x"], "checkpoint"),
        (["unet.down_blocks.0.attentions.0.to_k.lora_A.weight"], "lora"),
        (["unet.conv_in.weight", "controlnext.embedding.0.weight"], "bundle"),
        (["input_blocks.0.0.weight", "middle_block_out.0.weight", "time_embed.0.lora_layer.down.weight"], "ctrlora_base"),
        (["control_model.time_embed.0.lora_layer.down.weight", "control_model.middle_block_out.0.weight"], "ctrlora_lora"),
        (["first_stage_model.decoder.conv_in.weight"], "vae"),
        (["conv_in_condition.weight", "conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"], "ctrlora_xl_base"),
        (
            [
                "base_model.model.conv_in.weight",
                "base_model.model.conv_in_condition.weight",
                f"{ATTENTION}.to_q.lora_A.canny.weight",
            ],
            "ctrlora_xl_base",
        ),
        ([f"base_model.model.{ATTENTION}.to_q.lora_{half}.weight" for half in "AB"], "ctrlora_xl_lora"),
        ([f"{ATTENTION}.to_q.lora_{half}.canny.weight" for half in "AB"], "ctrlora_xl_lora"),
        ([f"{ATTENTION}.to_q.lora_A.weight", "up_blocks.0.attentions.0.to_q.lora_A.weight"], "lora"),
        ([f"base_model.model.{block}.0.to_q.lora_A.weight" for block in ("down_blocks", "up_blocks")], "lora"),
        ([f"{ATTENTION}.to_q.lora_A.weight", "conv_in.weight"], "lora"),
        (["lora_controlnet", "input_hint_block.0.weight", "input_blocks.0.0.weight"], "control_lora"),
        (["control_model.input_hint_block.0.weight", *CONTROL, "model.diffusion_model.out.0.weight"], "controlnet"),
        (["input_hint_block.0.weight", "input_blocks.0.0.weight", "middle_block_out.0.weight", LORA], "controlnet"),
        ([*CONTROL, f"control_model.{LORA}", "control_model.loras_dict.hed.0.down.weight"], "ctrlora_pretraining"),
        ([*CONTROL, "control_model.loras_dict.hed.0.down.weight", *STABLE_DIFFUSION], "ctrlora_pretraining"),
        (["loras_dict.hed.0.down.weight", "loras_dict.hed.0.up.weight"], "ctrlora_pretraining"),
        ([*CONTROL, f"control_model.{LORA}", *STABLE_DIFFUSION], "ctrlora_checkpoint"),
        ([*CONTROL, *STABLE_DIFFUSION], "ctrlora_checkpoint"),
        (CONTROL, "ctrlora_base"),
        ([*CONTROL, f"control_model.{LORA}"], "ctrlora_base"),
        ([LORA, "zero_convs.0.0.weight"], "ctrlora_lora"),
        (STABLE_DIFFUSION, "checkpoint"),
        (["something.else"], None),
    ],
)
def test_other_files_are_known_by_their_keys(keys, kind):
    found = detect_kind(dict.fromkeys(keys))
    assert (found and found.id) == kind


def test_order_and_prefix_of_keys_do_not_matter():
    keys = [*CONTROL, f"control_model.{LORA}"]
    for variation in (keys[::-1], [key.removeprefix("control_model.") for key in keys]):
        found = detect_kind(dict.fromkeys(variation))
        assert found is not None
        assert found.id == "ctrlora_base"


def test_a_file_of_ctrlora_xl_is_named_and_refused():
    sentence = describe(dict.fromkeys(XL_INPUTS, (320, 4, 3, 3)), "xl.safetensors", "a CtrLoRA LoRA")
    assert sentence == (
        "'xl.safetensors' is a CtrLoRA-XL Base ControlNet, not a CtrLoRA LoRA. "
        "Use a CtrLoRA made for SD1.5, CtrLoRA-XL is not supported."
    )


BRUSHNET = {"conv_in_condition.weight": (320, 9, 3, 3), "down_blocks.0.resnets.0.conv1.weight": (320, 320, 3, 3)}


@pytest.mark.parametrize(
    ("shapes", "kind"),
    [
        (dict.fromkeys(XL_INPUTS, (320, 4, 3, 3)), "ctrlora_xl_base"),
        ({f"base_model.model.{key}": torch.zeros(8, 4, 3, 3) for key in XL_INPUTS}, "ctrlora_xl_base"),
        (BRUSHNET | {"brushnet_down_blocks.0.weight": (320, 320, 1, 1)}, "brushnet"),
        (dict.fromkeys(XL_INPUTS, (320, 4, 3, 3)) | {"brushnet_mid_block.weight": (320, 320, 1, 1)}, "brushnet"),
        ({"module.brushnet_up_blocks.0.bias": (320,)}, "brushnet"),
        (BRUSHNET, None),
        (BRUSHNET | {"conv_in.weight": (320, 4, 3, 3)}, None),
        ({"conv_in_condition.weight": (320, 4, 3, 3)}, None),
        ({"conv_in.weight": (320, 4), "conv_in_condition.weight": (320, 4, 3, 3)}, None),
        ({"conv_in.weight": (320, 4, 1, 1), "conv_in_condition.weight": (320, 4, 1, 1)}, None),
        ({"conv_in.weight": torch.tensor(1.0), "conv_in_condition.weight": torch.tensor(1.0)}, None),
    ],
)
def test_brushnet_is_no_base_of_ctrlora_xl(shapes, kind):
    found = detect_kind(shapes)
    assert (found and found.id) != "ctrlora_xl_base" or kind == "ctrlora_xl_base"
    if kind is not None:
        assert found is not None
        assert found.id == kind


@pytest.mark.parametrize(
    ("key", "shape", "family"),
    [
        ("input_blocks.1.1.transformer_blocks.0.attn2.to_k.lora_layer.down.weight", (4, 768), "sd15"),
        ("input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", (64, 768), "sd15"),
        ("input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight", (640, 2048), "sdxl"),
        ("input_blocks.1.1.transformer_blocks.0.attn2.to_k.lora_layer.up.weight", (64, 768), None),
        ("input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", (320, 1024), None),
    ],
)
def test_the_width_of_the_text_tells_the_family_of_a_control_network(key, shape, family):
    assert detect_unet_family({key: shape}) == family


def test_kinds_have_names_of_their_own_and_advice_for_the_user():
    assert len({kind.id for kind in KINDS}) == len(KINDS)
    assert len({kind.title for kind in KINDS}) == len(KINDS)
    assert all(kind.advice and not kind.advice.endswith(".") for kind in KINDS)


def test_wrappers_come_off_and_bundles_come_apart():
    module = shapes_of(narrow_module())
    for wrapped in (
        {"state_dict": {f"module.{key}": value for key, value in module.items()}, "step": 3},
        {"module": module},
        {f"_orig_mod.module.{key}": value for key, value in module.items()},
    ):
        assert unwrap(wrapped) == module
    bundle = {f"controlnext.module.{key}": value for key, value in module.items()} | {"unet.conv_in.weight": (1,)}
    assert control_part(bundle) == module
    assert unet_part(bundle) == {"conv_in.weight": (1,)}
    assert control_part(module) == unet_part(module) == module


@pytest.mark.parametrize(
    ("factor", "noise", "mode"),
    [
        (1.0, 0.0, "replace"),
        (1.0, 0.3, "replace"),
        (0.0, 0.05, "delta"),
        (0.0, 1.0, None),
        (3.0, 0.0, None),
        (0.0, 0.0, "delta"),
    ],
)
def test_absolute_weights_and_differences_are_told_apart_by_numbers(factor, noise, mode):
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for _ in range(4):
        base = torch.randn(64, 64, generator=generator)
        pairs.append(((factor * base + noise * torch.randn(64, 64, generator=generator)).half(), base))
    assert compare(pairs).mode == mode
