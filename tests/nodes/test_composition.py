"""Controls beside everything else that ComfyUI puts on a model, in real sampling runs."""

from __future__ import annotations

import comfy.ops
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy_extras.nodes_freelunch import FreeU_V2
from comfy_extras.nodes_model_downscale import PatchModelAddDownscale
from host_models import UNET_CONFIGS
from narrow import WIDTHS, apply, control_for, hints, narrow_model
from nextcontrol.nodes.host.unet_structure import find_place
from seeded import seeded_tensor
from stacking import native
from torch.testing import assert_close

import nodes as host_nodes

STEPS = 3


def sample(model, sampler="euler", batch=1, seed=0, cfg=4.0, positive=None, negative=None):
    """A run of the host's KSampler on the narrow SD1.5 model."""
    conditioning = [[[seeded_tensor(name, [1, 7, WIDTHS["sd15"]]), {}]] for name in ("positive", "negative")]
    latent = {"samples": torch.zeros(batch, 4, 8, 12)}
    arguments = (positive or conditioning[0], negative or conditioning[1], latent)
    return host_nodes.common_ksampler(model, seed, STEPS, cfg, sampler, "normal", *arguments)[0]["samples"]


def count_calls(network):
    """How often, and on how many rows, the stem and the middle of a control network run."""
    calls = {"stem": [], "middle": []}
    network.embedding[0].register_forward_hook(lambda _m, inputs, _o: calls["stem"].append(len(inputs[0])))
    network.mid_convs[1].register_forward_hook(lambda _m, inputs, _o: calls["middle"].append(len(inputs[0])))
    return calls


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "dpmpp_sde", "heun", "uni_pc", "ddim", "lcm"])
def test_any_sampler_follows_the_control(sampler, base_folder):
    model = narrow_model()
    patched = apply(model, control_for(base_folder), hints())
    controlled = sample(patched, sampler)
    assert torch.isfinite(controlled).all()
    assert (controlled - sample(model, sampler)).abs().max() > 1e-3
    assert torch.equal(sample(patched, sampler), controlled)


@pytest.mark.parametrize(("count", "batch", "rows"), [(1, 1, 1), (1, 4, 1), (3, 4, 3), (5, 2, 2)])
def test_the_network_runs_once_a_step_for_each_hint_and_reads_it_once_a_run(count, batch, rows, base_folder):
    control = control_for(base_folder)
    patched = apply(narrow_model(), control, hints(count))
    (network,) = patched.get_nested_additional_models()
    calls = count_calls(network.model)
    sample(patched, batch=batch)
    assert calls == {"stem": [rows], "middle": [rows] * STEPS}
    sample(patched, batch=batch, seed=1)  # what is kept is kept for one run
    assert calls == {"stem": [rows] * 2, "middle": [rows] * STEPS * 2}


def test_prompts_that_the_host_evaluates_one_by_one_share_the_network(base_folder):
    control = control_for(base_folder)
    patched = apply(narrow_model(), control, hints())
    (network,) = patched.get_nested_additional_models()
    calls = count_calls(network.model)
    # An area gives the two prompts different shapes, so that they cannot go together.
    positive = [[seeded_tensor("positive", [1, 7, 768]), {"area": (8, 6, 0, 0), "strength": 1.0, "set_area_to_bounds": False}]]
    sample(patched, positive=positive)
    assert calls == {"stem": [1], "middle": [1] * STEPS}


def test_two_hints_through_one_control_share_its_weights(base_folder):
    control = control_for(base_folder)
    patched = apply(apply(narrow_model(), control, hints()), control, hints(seed=1))
    assert len(patched.get_nested_additional_models()) == 1
    assert (sample(patched) - sample(apply(narrow_model(), control, hints()))).abs().max() > 1e-3


def test_a_native_controlnet_beside_it_adds_its_own(base_folder):
    model, control = narrow_model(), control_for(base_folder)
    own = native("sd15_narrow")
    texts = [[[seeded_tensor(name, [1, 7, 768]), {}]] for name in ("positive", "negative")]
    positive, negative = host_nodes.ControlNetApplyAdvanced().apply_controlnet(*texts, own, hints(seed=2), 0.5, 0.0, 1.0)
    patched = apply(model, control, hints())
    results = [
        sample(model), sample(patched), sample(model, positive=positive, negative=negative),
        sample(patched, positive=positive, negative=negative),
    ]  # fmt: skip
    for i, one in enumerate(results):
        assert torch.isfinite(one).all()
        assert all((one - other).abs().max() > 1e-4 for other in results[:i])
    assert torch.equal(sample(patched, positive=positive, negative=negative), results[3])


def run(node, *arguments):
    """The first output of a node of the host, whichever API its version is written for."""
    if hasattr(node, "execute"):
        return node.execute(*arguments).result[0]
    return getattr(node(), node.FUNCTION)(*arguments)[0]


def free_u(model):
    return run(FreeU_V2, model, 1.3, 1.4, 0.9, 0.2)


def shrink(model):
    return run(PatchModelAddDownscale, model, 1, 2.0, 0.0, 1.0, True, "bicubic", "bicubic")


def lora(model):
    clone = model.clone()
    key = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_out.0.weight"
    clone.add_patches({key: (seeded_tensor("lora", [64, 64]),)}, 0.5)
    return clone


@pytest.mark.parametrize("other", [free_u, shrink, lora])
@pytest.mark.parametrize("variant", ["sd15", "sd15_v0"])
def test_other_patches_on_the_same_hooks_work_before_and_after(other, variant, base_folder):
    model, control = narrow_model(), control_for(base_folder, variant)
    before, after = apply(other(model), control, hints()), other(apply(model, control, hints()))
    for patched in (before, after):
        found = sample(patched)
        assert torch.isfinite(found).all()
        assert (found - sample(other(model))).abs().max() > 1e-4
        assert (found - sample(apply(model, control, hints()))).abs().max() > 1e-4
    if other is lora:
        assert_close(sample(before), sample(after), rtol=1e-5, atol=1e-5)


def test_a_cancelled_run_keeps_nothing(base_folder):
    patched = apply(narrow_model(), control_for(base_folder), hints())
    (patch,) = {f.__self__ for fs in patched.wrappers["diffusion_model"].values() for f in fs}
    clone = patched.clone()
    clone.set_model_sampler_post_cfg_function(lambda _arguments: (_ for _ in ()).throw(InterruptedError))
    with pytest.raises(InterruptedError):
        sample(clone)
    assert not patch._features
    assert not patch._controls


FULL_SIZE = {
    "sd15": UNET_CONFIGS["sd15"] | {
        "channel_mult": [1, 2, 4, 4], "num_res_blocks": [2, 2, 2, 2], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    },
    "sdxl": UNET_CONFIGS["sdxl"] | {
        "channel_mult": [1, 2, 4], "num_res_blocks": [2, 2, 2], "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10,
    },
    "svd": UNET_CONFIGS["svd_v2"] | {
        "channel_mult": [1, 2, 4, 4], "num_res_blocks": [2, 2, 2, 2], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "site", "hook", "block", "channels"),
    [
        ("sd15", "after_down0", "input_block_patch_after_skip", ("input", 3), 320),
        ("sd15", "after_mid", "output_block_patch", ("output", 0), 1280),
        ("sdxl", "after_conv_in", "input_block_patch_after_skip", ("input", 0), 320),
        ("sdxl", "after_conv_in_and_skip", "input_block_patch", ("input", 0), 320),
        ("svd", "before_mid", "input_block_patch_after_skip", ("input", 11), 1280),
        ("svd", "after_down0", "input_block_patch_after_skip", ("input", 3), 320),
    ],
)
def test_the_sites_of_full_size_models_are_where_the_reference_adds(family, site, hook, block, channels):
    arguments = {key: value[:] if isinstance(value, list) else value for key, value in FULL_SIZE[family].items()}
    place = find_place(UNetModel(**arguments, device="meta", operations=comfy.ops.disable_weight_init), site)
    assert (place.hook, place.block, place.channels) == (hook, block, channels)
