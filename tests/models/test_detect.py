"""Files are recognised by what is in them."""

from __future__ import annotations

import pytest
import torch
from host_models import SHAPES, narrow_module
from nextcontrol.models.detect import KINDS, check_module, detect_kind, detect_unet_family, possible_variants
from nextcontrol.models.state_dict import control_part, shapes_of, unet_part, unwrap
from nextcontrol.models.unet_weights import compare


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
        (["something.else"], None),
    ],
)
def test_other_files_are_known_by_their_keys(keys, kind):
    found = detect_kind(dict.fromkeys(keys))
    assert (found and found.id) == kind


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
