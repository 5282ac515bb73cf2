"""Fine-tuned UNet weights on the host's models: exact, complete, and at peace with LoRAs and merges."""

from __future__ import annotations

import logging

import comfy.model_management
import comfy.ops
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from dynamic_vram import filled_layers
from host_models import SHAPES, UNET_CONFIGS, weight_in_use
from narrow import apply, control_for, hints, narrow_model, predict, save
from nextcontrol.nodes.host.unet_keys import to_host_keys
from nextcontrol.nodes.host.unet_structure import unet_config_of
from seeded import seeded_tensor
from torch.testing import assert_close

DIFFUSERS = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.weight"
HOST = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_out.0.weight"
BIAS = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_out.0.bias"
ZEROS = torch.zeros(1, 64, 96)


def weight_in(model, key=HOST):
    """A weight as the model holds it while it runs."""
    comfy.model_management.load_models_gpu([model])
    found = weight_in_use(model, key).clone()
    comfy.model_management.unload_all_models()
    return found


def unpatched(model, key=HOST):
    return weight_in(model.clone(), key)


def with_lora(model, seed=0, strength=0.5):
    clone = model.clone()
    clone.add_patches({HOST: (seeded_tensor("lora", [64, 64], seed),)}, strength)
    return clone


def weights_file(base_folder, name, tensor):
    return save(base_folder, name, {DIFFUSERS: tensor})


def controlled(base_folder, model, mode, tensor=None, name="unet.safetensors", **options):
    tensor = seeded_tensor("fine-tuned", [64, 64]) / 8 if tensor is None else tensor
    control = control_for(base_folder, unet=weights_file(base_folder, name, tensor), mode=mode)
    return apply(model, control, hints(), **options)


def test_replace_sets_and_delta_adds_exactly(base_folder):
    model, tensor = narrow_model(), seeded_tensor("fine-tuned", [64, 64]) / 8
    assert torch.equal(weight_in(controlled(base_folder, model, "replace")), tensor)
    assert torch.equal(weight_in(controlled(base_folder, model, "delta")), unpatched(model) + tensor)
    assert torch.equal(weight_in(controlled(base_folder, model, "delta"), BIAS), unpatched(model, BIAS))


def test_strength_does_not_scale_the_weights(base_folder):
    tensor = seeded_tensor("fine-tuned", [64, 64]) / 8
    assert torch.equal(weight_in(controlled(base_folder, narrow_model(), "replace", strength=0.3)), tensor)


def test_a_lora_before_or_after_a_replacement_stays(base_folder):
    model, tensor = narrow_model(), seeded_tensor("fine-tuned", [64, 64]) / 8
    expected = tensor + 0.5 * seeded_tensor("lora", [64, 64])
    for patched in (controlled(base_folder, with_lora(model), "replace"), with_lora(controlled(base_folder, model, "replace"))):
        assert_close(weight_in(patched), expected, rtol=0, atol=1e-6)
    expected = unpatched(model) + tensor + 0.5 * seeded_tensor("lora", [64, 64])
    for patched in (controlled(base_folder, with_lora(model), "delta"), with_lora(controlled(base_folder, model, "delta"))):
        assert_close(weight_in(patched), expected, rtol=0, atol=1e-6)


def test_a_replacement_overrides_a_merged_base_and_keeps_a_lora_on_it(base_folder):
    model, tensor = narrow_model(), seeded_tensor("fine-tuned", [64, 64]) / 8
    merged = model.clone()
    merged.add_patches(narrow_model().get_key_patches("diffusion_model.input_blocks.1.1."), 0.3, 0.7)
    assert_close(weight_in(controlled(base_folder, merged, "replace")), tensor, rtol=0, atol=0)
    found = weight_in(controlled(base_folder, with_lora(merged), "replace"))
    assert_close(found, tensor + 0.5 * seeded_tensor("lora", [64, 64]), rtol=0, atol=1e-6)


def test_of_two_replacements_the_one_applied_last_counts(base_folder):
    first, second = (seeded_tensor(name, [64, 64]) for name in "ab")
    model = controlled(base_folder, narrow_model(), "replace", first, "first.safetensors")
    model = controlled(base_folder, model, "replace", second, "second.safetensors")
    assert torch.equal(weight_in(model), second)


def test_one_file_used_by_two_controls_is_added_once(base_folder):
    model = narrow_model()
    once = controlled(base_folder, model, "delta")
    assert torch.equal(weight_in(controlled(base_folder, once, "delta")), weight_in(once))
    other = controlled(base_folder, once, "delta", seeded_tensor("other", [64, 64]), "other.safetensors")
    assert not torch.equal(weight_in(other), weight_in(once))


def test_the_weights_stay_under_a_zero_mask_and_outside_the_range(base_folder):
    model = narrow_model()
    masked = controlled(base_folder, model, "delta", mask=ZEROS)
    late = controlled(base_folder, model, "delta", percents=(0.9, 1.0))
    assert torch.equal(predict(masked, sigma=14.0), predict(late, sigma=14.0))
    assert not torch.equal(predict(masked, sigma=14.0), predict(model, sigma=14.0))


def test_zero_strength_leaves_the_weights_out(base_folder):
    model = narrow_model()
    assert controlled(base_folder, model, "replace", strength=0.0) is model


@pytest.mark.parametrize("is_loaded", [False, True])
def test_auto_tells_absolute_weights_from_differences(is_loaded, base_folder, caplog):
    model = with_lora(narrow_model(), strength=5.0)
    base = unpatched(narrow_model())
    trained, delta = base + 0.02 * seeded_tensor("step", [64, 64]), 0.02 * seeded_tensor("step", [64, 64])
    with caplog.at_level(logging.INFO, "nextcontrol"):
        if is_loaded:  # the LoRA is in the weights while it decides
            comfy.model_management.load_models_gpu([model])
        absolute = controlled(base_folder, model, "auto", trained, f"absolute{is_loaded}.safetensors")
        difference = controlled(base_folder, model, "auto", delta, f"difference{is_loaded}.safetensors")
    lora = 5.0 * seeded_tensor("lora", [64, 64])
    assert_close(weight_in(absolute), trained + lora, rtol=0, atol=1e-5)
    assert_close(weight_in(difference), base + delta + lora, rtol=0, atol=1e-5)
    assert "looks like replace" in caplog.text
    assert "looks like delta" in caplog.text


def test_auto_refuses_to_guess(base_folder):
    with pytest.raises(ValueError, match=r"'odd\.safetensors' may hold .*: set unet_weights to replace or delta"):
        controlled(base_folder, narrow_model(), "auto", seeded_tensor("odd", [64, 64]) / 8, "odd.safetensors")


def test_partial_loading_keeps_replacement_and_lora(base_folder):
    model = controlled(base_folder, with_lora(narrow_model()), "replace")
    assert_close(predict(model, memory=1), predict(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["sd15", "sdxl", "svd"])
def test_every_weight_of_a_unet_is_found_under_its_ldm_name(family):
    model = narrow_model(family)
    names = [key.removeprefix("diffusion_model.") for key in model.model_state_dict("diffusion_model.")]
    assert to_host_keys(names, unet_config_of(model)) == {name: f"diffusion_model.{name}" for name in names}


def test_weights_without_a_counterpart_are_named(base_folder):
    name = save(
        base_folder,
        "strange.safetensors",
        {DIFFUSERS: torch.zeros(64, 64), "mid_block.attentions.7.norm.weight": torch.zeros(64)},
    )
    with pytest.raises(
        ValueError, match=r"1 of 2 weights without a counterpart .*\('mid_block\.attentions\.7\.norm\.weight'\)"
    ):
        apply(narrow_model(), control_for(base_folder, unet=name, mode="delta"), hints())
    name = weights_file(base_folder, "wide.safetensors", torch.zeros(128, 64))
    with pytest.raises(ValueError, match=r"another shape .*\(128, 64\) where the model has \(64, 64\)"):
        apply(narrow_model(), control_for(base_folder, unet=name, mode="delta"), hints())


def test_weights_of_another_family_are_refused(base_folder):
    name = save(
        base_folder, "xl.safetensors", {"mid_block.attentions.0.transformer_blocks.9.attn2.to_out.0.weight": torch.zeros(8, 8)}
    )
    with pytest.raises(ValueError, match=r"'xl\.safetensors' holds SDXL weights and the model is SD1\.5"):
        apply(narrow_model(), control_for(base_folder, unet=name, mode="delta"), hints())


@pytest.mark.parametrize("variant", SHAPES)
def test_every_diffusers_name_has_one_counterpart_of_its_shape(variant):
    arguments = {key: value[:] if isinstance(value, list) else value for key, value in UNET_CONFIGS[variant].items()}
    with filled_layers():
        unet = UNetModel(**arguments, device="meta", operations=comfy.ops.disable_weight_init)
    expected = {f"diffusion_model.{key}": list(tensor.shape) for key, tensor in unet.state_dict().items()}
    names = to_host_keys(SHAPES[variant]["unet"], UNET_CONFIGS[variant])
    assert {name: SHAPES[variant]["unet"][key] for key, name in names.items()} == expected
