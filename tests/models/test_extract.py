"""A part of a file is taken under its published names, bit for bit."""

from __future__ import annotations

import json

import pytest
import torch
from ctrlora_files import base_weights, condition_weights, published
from host_models import GOLDENS, narrow_module
from nextcontrol.models.ctrlora import read_config
from nextcontrol.models.ctrlora_file import linear_names
from nextcontrol.models.detect import UnsupportedCheckpointError
from nextcontrol.models.extract import PARTS, PARTS_OF, extract_part, to_dtype
from training_files import LAYERS, RANKS, UNET_KEY, bundle, finetune, pretraining, task

FULL: dict[str, list[int]] = json.loads((GOLDENS / "ctrlora_sd15_base_shapes.json").read_text())

STACK = "control_model.loras_dict.hed"


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def test_linear_layers_have_the_published_numbers():
    """Source: the order of named_modules() in xyfJASON/ctrlora@b4422b4, which has ff before attn2."""
    names = linear_names(read_config(FULL))
    assert len(names) == 82
    numbers = {
        0: "time_embed.0", 1: "time_embed.2", 2: "input_blocks.1.0.emb_layers.1", 13: "input_blocks.2.0.emb_layers.1",
        24: "input_blocks.4.0.emb_layers.1", 35: "input_blocks.5.0.emb_layers.1", 46: "input_blocks.7.0.emb_layers.1",
        57: "input_blocks.8.0.emb_layers.1", 68: "input_blocks.10.0.emb_layers.1", 69: "input_blocks.11.0.emb_layers.1",
        70: "middle_block.0.emb_layers.1", 81: "middle_block.2.emb_layers.1",
    }  # fmt: skip
    ten = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2",
           "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")  # fmt: skip
    for first, block in ((3, "input_blocks.1"), (14, "input_blocks.2"), (25, "input_blocks.4"), (36, "input_blocks.5"),
                         (47, "input_blocks.7"), (58, "input_blocks.8"), (71, "middle_block")):  # fmt: skip
        numbers |= {first + i: f"{block}.1.transformer_blocks.0.{layer}" for i, layer in enumerate(ten)}
    assert dict(enumerate(names)) == numbers


@pytest.mark.parametrize("condition", RANKS)
def test_a_named_condition_of_a_pretraining_becomes_a_condition_file(condition):
    """The three sources: its own LoRAs by number, and the checkpoint's zero convolutions and norms."""
    extract = extract_part(pretraining(), "x", "lora", condition)
    expected = {
        f"{layer}.lora_layer.{half}.weight": tensor
        for layer, pair in zip(LAYERS, task(condition), strict=True)
        for half, tensor in zip(("down", "up"), pair, strict=True)
    }
    expected |= {
        key: tensor
        for key, tensor in base_weights().items()
        if "zero_convs" in key or "middle_block_out" in key or "norm" in key
    }
    assert same(extract.tensors, published(expected))
    assert (extract.kind, extract.part, extract.condition) == ("ctrlora_lora", "lora", condition)
    assert (extract.is_ctrlora, extract.is_whole) == (True, False)


def test_the_order_of_keys_in_a_pretraining_does_not_matter():
    """A safetensors file is in alphabetical order: 10 before 2."""
    tensors = pretraining()
    shuffled = {key: tensors[key] for key in sorted(tensors)}
    assert same(extract_part(shuffled, "x", "lora", "hed").tensors, extract_part(tensors, "x", "lora", "hed").tensors)


@pytest.mark.parametrize(
    ("make", "part", "condition", "expected"),
    [
        (pretraining, "auto", "canny", "lora"), (pretraining, "auto", "", "base"), (finetune, "auto", "", "lora"),
        (lambda: finetune(has_lora=False), "auto", "", "base"), (bundle, "auto", "", "control"),
        (narrow_module, "auto", "", "all"), (lambda: published(base_weights()), "auto", "", "all"),
        (lambda: published(condition_weights()), "auto", "", "all"),
    ],
)  # fmt: skip
def test_auto_takes_what_one_most_likely_wants(make, part, condition, expected):
    assert extract_part(make(), "x", part, condition).part == expected


def test_parts_of_a_finetuning_checkpoint_are_those_of_the_released_files():
    own = base_weights() | condition_weights()
    assert same(extract_part(finetune(), "x", "lora").tensors, published(condition_weights()))
    assert extract_part(finetune(), "x", "base").kind == "ctrlora_base"
    assert same(
        extract_part(finetune(), "x", "base").tensors, published({k: t for k, t in own.items() if "lora_layer" not in k})
    )
    for part in ("control", "all"):
        assert same(extract_part(finetune(), "x", part).tensors, published(own))
    assert same(extract_part(finetune(has_lora=False), "x").tensors, published(base_weights()))


def test_parts_of_a_pretraining_checkpoint():
    assert same(extract_part(pretraining(), "x", "base").tensors, published(base_weights()))
    whole = extract_part(pretraining(), "x", "all")
    assert whole.kind == "ctrlora_pretraining"
    assert whole.tensors.keys() == {key for key in pretraining() if key.startswith("control_model.")}
    control = extract_part(pretraining(), "x", "control")
    assert control.kind == "ctrlora_base"
    assert control.tensors.keys() == {key for key in whole.tensors if "loras_dict" not in key}


def test_parts_of_a_bundle():
    assert same(extract_part(bundle(), "x", "control").tensors, narrow_module())
    unet = extract_part(bundle(), "x", "unet")
    assert (unet.kind, list(unet.tensors), unet.is_ctrlora) == ("unet", [UNET_KEY], False)
    whole = extract_part(bundle(), "x", "all")
    assert whole.kind == "bundle"
    assert whole.is_whole
    assert same(whole.tensors, bundle())


def test_the_left_over_lora_of_a_base_is_kept_or_left_as_asked():
    tensors = published(base_weights() | condition_weights())
    assert extract_part(tensors, "x").is_whole
    assert same(extract_part(tensors, "x").tensors, tensors)
    assert same(extract_part(tensors, "x", "lora").tensors, published(condition_weights()))
    assert not any("lora" in key for key in extract_part(tensors, "x", "base").tensors)


def test_the_prefix_of_the_released_files_is_added_and_never_doubled():
    for tensors in (condition_weights(), base_weights()):
        assert same(extract_part(tensors, "x").tensors, published(tensors))
        assert same(extract_part(published(tensors), "x").tensors, published(tensors))
        assert extract_part(tensors, "x").is_whole


def test_every_part_is_offered_somewhere():
    assert {part for parts in PARTS_OF.values() for part in parts} == set(PARTS)
    assert all(parts[:2] == ("auto", "all") for parts in PARTS_OF.values())


@pytest.mark.parametrize(
    ("make", "part", "condition", "sentence"),
    [
        (narrow_module, "lora", "", r"^part is 'lora' and 'x' is a ControlNeXt module .*: choose auto, all or control\.$"),
        (finetune, "unet", "", r"^part is 'unet' and 'x' is a CtrLoRA training .*: choose auto, all, base, lora or control\.$"),
        (narrow_module, "auto", "hed", r"^condition is 'hed' and 'x' is no pretraining checkpoint: leave condition empty\.$"),
        (finetune, "lora", "hed", r"^condition is 'hed' and 'x' is no pretraining checkpoint"),
        (lambda: published(condition_weights()), "auto", "hed", r"^condition is 'hed' and 'x' is no pretraining checkpoint"),
        (lambda: published(base_weights()), "lora", "", r"^part is 'lora' and 'x' has no LoRA in it: choose base\.$"),
        (pretraining, "lora", "", r"^'x' holds 3 conditions and condition is '': set it to one of hed, canny, normal\.$"),
        (pretraining, "auto", "Canny", r"^'x' holds 3 conditions and condition is 'Canny': set it to one of hed, canny"),
        (pretraining, "base", "hed", r"^condition is 'hed' and part is 'base': set part to lora, or leave condition empty\.$"),
    ],
)
def test_what_a_file_does_not_have_is_refused_in_one_sentence(make, part, condition, sentence):
    with pytest.raises(ValueError, match=sentence):
        extract_part(make(), "x", part, condition)


def test_the_only_condition_needs_no_name():
    tensors = {key: t for key, t in pretraining().items() if "loras_dict.hed" not in key and "loras_dict.canny" not in key}
    assert same(extract_part(tensors, "x", "lora").tensors, extract_part(pretraining(), "x", "lora", "normal").tensors)
    assert extract_part(tensors, "x", "lora").condition == "normal"


def test_a_unet_half_that_nobody_knows_is_refused():
    tensors = {f"controlnext.{key}": tensor for key, tensor in narrow_module().items()} | {"unet.foo": torch.zeros(1)}
    with pytest.raises(UnsupportedCheckpointError, match=r"'x' is not a set of fine-tuned UNet weights: it holds 'foo'"):
        extract_part(tensors, "x", "unet")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {f"{STACK}.99.down.weight": torch.zeros(2, 64), f"{STACK}.99.up.weight": torch.zeros(64, 2)},
            "'x' does not fit the base at 'loras_dict.hed.99'",
        ),
        ({f"{STACK}.3.down.weight": torch.zeros(2, 65)}, "'x' does not fit the base at"),
        ({"control_model.time_embed.2.bias": torch.zeros(7)}, "'x' is a CtrLoRA Base .* with a misshapen 'time_embed.2.bias'"),
    ],
)
def test_a_damaged_checkpoint_is_refused_whichever_part_is_wanted(change, sentence):
    with pytest.raises(UnsupportedCheckpointError, match=sentence):
        extract_part(pretraining() | change, "x", "lora", "hed")


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("lora_unet_down_blocks_0.lora_up.weight", "'x' is a LoRA, not a ControlNeXt or CtrLoRA file. Load it with ComfyUI's"),
        ("lora_controlnet", "'x' is a Control-LoRA, not a ControlNeXt or CtrLoRA file"),
        ("input_hint_block.0.weight", "'x' is a stock ControlNet, not a ControlNeXt or CtrLoRA file"),
        ("foo", "'x' is not a ControlNeXt or CtrLoRA file: it holds 'foo'. Choose another file"),
    ],
)
def test_a_file_of_another_kind_is_named(key, sentence):
    with pytest.raises(UnsupportedCheckpointError, match=sentence):
        extract_part({key: torch.zeros(4)}, "x")


def test_types_change_only_where_asked_and_possible():
    half, whole = torch.tensor([1.0, 65504.0]).half(), torch.arange(3)
    assert to_dtype(half, None, "k", "x") is half
    assert to_dtype(half, torch.float16, "k", "x") is half
    assert to_dtype(whole, torch.float16, "k", "x") is whole
    assert torch.equal(to_dtype(half, torch.float32, "k", "x"), torch.tensor([1.0, 65504.0]))
    assert to_dtype(torch.tensor([-70000.0]), torch.bfloat16, "k", "x").isfinite().all()
    # The largest number that still rounds down to 65504.
    assert to_dtype(torch.tensor([65519.0]), torch.float16, "k", "x") == 65504
    sentence = r"^'x' has values up to 70000 in 'k' and fp16 ends at 65504: choose bf16, fp32 or keep\.$"
    with pytest.raises(ValueError, match=sentence):
        to_dtype(torch.tensor([1.0, -70000.0]), torch.float16, "k", "x")
