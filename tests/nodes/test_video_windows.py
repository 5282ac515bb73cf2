"""Long clips in windows: the reference's whole sampling loop, another seed by its formulas, and what must not change."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import comfy.conds
import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import timestep_embedding
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_video_model import VideoLinearCFGGuidance
from host_models import GOLDENS, SHAPES, build_model
from narrow import control_for, narrow_model, save
from nextcontrol.models.controlnext import load_controlnext
from nextcontrol.nodes.host.attach import attach_controlnext
from nextcontrol.nodes.host.controlnext_file import load_controlnext_file
from nextcontrol.nodes.host.hints import rows_of
from nextcontrol.nodes.host.windows import attach_windows, cut_prompts
from safetensors.torch import load_file
from seeded import seeded_state_dict, seeded_tensor
from torch.testing import assert_close

GOLDEN = json.loads((GOLDENS / "svd_windows.json").read_text())
SCALE = 0.18215
"""Of SVD's latents: the host divides by it after sampling, the reference before decoding."""
STEPS = WINDOWS = 2
"""Of the runs on the narrow model: six frames in windows of four with an overlap of two."""


def prompts(seed=0, rows=1):
    """Positive and negative, as Pose Video Conditioning makes them."""
    embedding, image = (
        seeded_tensor("image_embedding", [1, 1, 1024], seed),
        seeded_tensor("image_latent", [rows, 4, 8, 12], seed),
    )
    numbers = {"motion_bucket_id": 128, "fps": 7, "augmentation_level": 0.02}
    return [
        [[one, {**numbers, "concat_latent_image": latent}]]
        for one, latent in ((embedding, image), (torch.zeros_like(embedding), torch.zeros_like(image)))
    ]


def sample(model, frames=6, sigmas=(20.0, 1.0, 0.0), seed=0, cfg=3.0, sampler="euler", conditioning=None):
    """The host's sampler on given noise levels; the latents as the UNet knows them."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(*(conditioning or prompts(seed)))
    guider.set_cfg(cfg)
    noise = seeded_tensor("initial_latents", [frames, 4, 8, 12], seed)
    levels = torch.tensor(sigmas)
    result = guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object(sampler), levels, seed=1)
    return result * SCALE


def clip_hints(frames=6, seed=0):
    return (0.25 * seeded_tensor("hints", [frames, 3, 64, 96], seed) + 0.5).clamp(0, 1).movedim(1, -1)


def controlled(base_folder, frames=6, seed=0, strength=1.0, variant="svd_v2", **options):
    """The narrow SVD model with a narrow control."""
    control = control_for(base_folder, variant)
    return attach_controlnext(narrow_model("svd"), control, clip_hints(frames, seed), strength, (0.0, 1.0), **options)


def count_rows(model, call):
    """How many rows the UNet gets at each evaluation while `call` runs, and what it returns."""
    rows = []
    handle = model.model.diffusion_model.register_forward_pre_hook(lambda _m, inputs: rows.append(len(inputs[0])))
    try:
        return rows, call()
    finally:
        handle.remove()


def test_the_whole_sampling_loop_is_the_references(pack_nodes, base_folder):
    """The reference takes an Euler step in each window and then the mean; we take the mean of the denoised, then the step.

    The last step, from 0.002 to 0, leaves the denoised itself up to rounding in both. The host then divides the latents by
    their scale, the reference does so before decoding; `sample` undoes it. So nothing differs but the order of sums.
    """
    files = [
        save(base_folder, f"windows_{part}.safetensors", seeded_state_dict(SHAPES["svd_v2"][part]))
        for part in ("control", "unet")
    ]
    (control,) = pack_nodes["NextControlLoadControlNeXt"].execute(*files, "auto", "replace").result
    model = build_model("svd_v2", seed=1)
    (model,) = pack_nodes["NextControlApplyControlNeXt"].execute(model, control, clip_hints(10), 1.0, 0.0, 1.0).result
    (model,) = pack_nodes["NextControlVideoWindows"].execute(model, GOLDEN["frames_per_window"], GOLDEN["overlap"]).result
    found = sample(model, GOLDEN["frames"], GOLDEN["sigmas"], cfg=GOLDEN["guidance"])
    expected = load_file(GOLDENS / "svd_windows.safetensors")["svd_v2.window_latents"]
    assert_close(found, expected, rtol=1e-3, atol=1e-3)


def cross_normalized(control, feature):
    """`control` with the statistics of `feature`, then pooled to its size."""
    (mean, std), (h_mean, h_std) = (
        [f(x, dim=(1, 2, 3), keepdim=True) for f in (torch.mean, torch.std)] for x in (control, feature)
    )
    return torch.nn.functional.adaptive_avg_pool2d((control - mean) * (h_std / (std + 1e-5)) + h_mean, feature.shape[-2:])


def reference_loop(unet, network, pictures, seed, sigmas, window, overlap, guidance):
    """The published loop from its formulas: own windows, guidance, steps and injection, on the bare networks."""
    frames, length = len(pictures), min(window, len(pictures))
    embedding, image = seeded_tensor("image_embedding", [1, 1, 1024], seed), seeded_tensor("image_latent", [1, 4, 8, 12], seed)
    y = timestep_embedding(torch.tensor([6, 128, 0.02]), 256).flatten()[None].expand(length, -1)

    def predict(x, time, control, factor):
        def add(h, options):
            return h + factor * cross_normalized(control, h) if options["block"] == ("input", 2) else h

        prompt = float(control is not None)
        patches = {"input_block_patch_after_skip": [add]} if prompt else {}
        joined = torch.cat([x, (prompt * image).expand(length, -1, -1, -1)], 1)
        context, times = (prompt * embedding).expand(length, -1, -1), torch.full((length,), time)
        return unet(joined, times, context, y, num_video_frames=length, transformer_options={"patches": patches})

    x = seeded_tensor("initial_latents", [frames, 4, 8, 12], seed) * math.sqrt(sigmas[0] ** 2 + 1)
    for sigma, following in pairwise(sigmas):
        time, total, count = 0.25 * math.log(sigma), torch.zeros_like(x), torch.zeros(frames)
        for nominal in range(0, max(frames - overlap, 1), length - overlap) if frames > length else [0]:
            start = min(nominal, frames - length)
            shown, old = pictures[start : start + length].clone(), x[start : start + length]
            shown[0] = pictures[0]
            control = network(shown, torch.full((length,), time))
            uncond, cond = (predict(old / math.sqrt(sigma**2 + 1), time, c, 0.2) for c in (None, control))
            v = uncond + guidance * (cond - uncond)
            denoised = old / (sigma**2 + 1) - v * sigma / math.sqrt(sigma**2 + 1)
            first = 1 if start > 0 else 0
            total[start + first : start + length] += (old + (old - denoised) / sigma * (following - sigma))[first:]
            count[start + first : start + length] += 1
        x = total / count[:, None, None, None]
    return x


@pytest.mark.parametrize(("frames", "window", "overlap"), [(7, 4, 1), (5, 4, 3), (3, 14, 4)])
def test_another_seed_and_other_lengths_follow_the_formulas(frames, window, overlap, base_folder):
    sigmas, seed, control = (700.0, 2.0, 0.0), 5, control_for(base_folder, "svd_v2", seed=3)
    patched = attach_controlnext(narrow_model("svd"), control, clip_hints(frames, seed), 1.0, (0.0, 1.0))
    found = sample(attach_windows(patched, window, overlap, "average"), frames, sigmas, seed, cfg=2.5)
    network = load_controlnext(control.tensors, 0, torch.nn)
    unet, pictures = narrow_model("svd").model.diffusion_model, clip_hints(frames, seed).movedim(-1, 1)
    assert_close(found, reference_loop(unet, network, pictures, seed, sigmas, window, overlap, 2.5), rtol=1e-3, atol=1e-3)


def test_the_first_hint_of_every_window_is_the_clips_first(base_folder, monkeypatch):
    # A random network hardly shows it in the pictures, so what the control is asked for is looked at.
    asked = []

    def record(batch, hints, places):
        rows = rows_of(batch, hints, places)
        if hints == 6:
            asked.append(rows)
        return rows

    monkeypatch.setattr("nextcontrol.nodes.host.control_patch.rows_of", record)
    sample(attach_windows(controlled(base_folder), 4, 2, "average"), sigmas=(3.0, 0.0))
    assert asked == [[0, 1, 2, 3], [0, 3, 4, 5]]


# What must not change


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
def test_a_clip_of_one_window_is_the_plain_model_bit_for_bit(sampler, base_folder):
    model = controlled(base_folder, 4)
    for window in (4, 14):
        assert torch.equal(
            sample(attach_windows(model, window, 2, "linear"), 4, sampler=sampler), sample(model, 4, sampler=sampler)
        )


def test_off_means_off(base_folder):
    plain, black = sample(attach_windows(narrow_model("svd"), 4, 2, "average")), torch.zeros(1, 64, 96)
    for model in (controlled(base_folder, strength=0.0), controlled(base_folder, mask=black)):
        assert torch.equal(sample(attach_windows(model, 4, 2, "average")), plain)
    with_control = sample(attach_windows(controlled(base_folder), 4, 2, "average"))
    assert (with_control - plain).abs().max() > 1e-3
    white = controlled(base_folder, mask=torch.ones(6, 64, 96))
    assert_close(sample(attach_windows(white, 4, 2, "average")), with_control, rtol=0, atol=1e-5)


def test_a_mask_of_each_frame_goes_with_its_frame(base_folder):
    def at(model):
        return sample(attach_windows(model, 3, 1, "average"), 5, (3.0, 0.0))  # frames 0 to 2, and 2 to 4

    masks = torch.zeros(5, 64, 96)
    masks[3:] = 1
    found, plain = at(controlled(base_folder, 5, mask=masks)), at(narrow_model("svd"))
    assert_close(found[:3], plain[:3], rtol=0, atol=1e-5)
    assert (found[3:] - plain[3:]).abs().max() > 1e-3


@pytest.mark.parametrize("variant", ["svd_v1", "svd_v2"])
def test_prompts_together_or_one_by_one_give_the_same(variant, base_folder, monkeypatch):
    model = attach_windows(controlled(base_folder, variant=variant), 4, 2, "average")
    rows, together = count_rows(model, lambda: sample(model))
    assert rows == [8] * WINDOWS * STEPS
    monkeypatch.setattr(model.model, "memory_required", lambda *_a, **_k: float("inf"))
    rows, apart = count_rows(model, lambda: sample(model))
    assert rows == [4] * 2 * WINDOWS * STEPS
    assert_close(apart, together, rtol=1e-4, atol=1e-4)


def test_the_negative_prompt_is_not_controlled_by_v2_and_by_065_in_v1(base_folder):
    def at(model, cfg, conditioning=None):
        return sample(attach_windows(model, 4, 2, "average"), sigmas=(3.0, 0.0), cfg=cfg, conditioning=conditioning)

    negative = prompts()[1]
    plain = at(narrow_model("svd"), 1.0, [negative, negative])
    # A guidance of 0 leaves the negative prompt alone.
    assert_close(at(controlled(base_folder), 0.0), plain, rtol=0, atol=1e-5)
    quiet = control_for(base_folder, "svd_v1")
    zero = replace(quiet, tensors={**quiet.tensors, "scale": torch.tensor(0.0)})  # sigmoid(0) * 1.3
    expected = at(attach_controlnext(narrow_model("svd"), zero, clip_hints(), 1.0, (0.0, 1.0)), 1.0, [negative, negative])
    assert (expected - plain).abs().max() > 1e-3
    assert_close(at(controlled(base_folder, variant="svd_v1"), 0.0), expected, rtol=0, atol=1e-4)


# What it costs


def test_the_network_runs_once_a_step_for_each_hint_however_many_windows_show_it(base_folder):
    model = controlled(base_folder)
    (network,) = model.get_nested_additional_models()
    calls = []
    network.model.mid_convs[1].register_forward_hook(lambda _m, inputs, _o: calls.append(len(inputs[0])))
    sample(attach_windows(model, 4, 2, "average"))
    assert calls == [4, 2] * STEPS


def test_memory_is_asked_for_one_window(base_folder, monkeypatch):
    asked = []

    def estimate(_model, shape, _conds):
        asked.append(shape[0])
        return 0, 0

    monkeypatch.setattr(comfy.sampler_helpers, "estimate_memory", estimate)
    sample(attach_windows(controlled(base_folder), 4, 2, "average"))
    sample(attach_windows(controlled(base_folder, 3), 4, 2, "average"), 3)
    assert asked == [4, 3]


def test_a_cancel_stops_between_two_windows(base_folder):
    model = attach_windows(controlled(base_folder), 4, 2, "average")

    def sample_cancelled():
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            sample(model)

    cancel = model.model.diffusion_model.register_forward_hook(lambda *_: comfy.model_management.interrupt_current_processing())
    try:
        rows, _ = count_rows(model, sample_cancelled)
    finally:
        cancel.remove()
        comfy.model_management.interrupt_current_processing(value=False)
    assert rows == [8]


# Beside other nodes


@pytest.mark.parametrize("sampler", ["heun", "dpm_2", "euler_ancestral", "dpmpp_sde", "uni_pc", "lcm"])
def test_any_sampler_works_and_a_run_can_be_repeated(sampler, base_folder):
    model = attach_windows(controlled(base_folder, 5), 4, 2, "linear")
    found = sample(model, 5, sampler=sampler)
    assert torch.isfinite(found).all()
    assert torch.equal(sample(model, 5, sampler=sampler), found)


@pytest.mark.parametrize("is_first", [True, False])
def test_guidance_that_grows_over_the_frames_grows_over_each_window(is_first, base_folder):
    model, seen = controlled(base_folder), []
    patched = VideoLinearCFGGuidance().patch(attach_windows(model, 4, 2, "average") if is_first else model, 1.0)[0]
    patched = patched if is_first else attach_windows(patched, 4, 2, "average")
    expected = attach_windows(model, 4, 2, "average").clone()

    def grow(args):
        seen.append(len(args["cond"]))
        scale = torch.tensor([1.0, 5 / 3, 7 / 3, 3.0])[:, None, None, None]
        return args["uncond"] + scale * (args["cond"] - args["uncond"])

    expected.set_model_sampler_cfg_function(grow)
    assert_close(sample(patched), sample(expected), rtol=0, atol=1e-5)
    assert seen == [4] * WINDOWS * STEPS


def test_the_order_of_windows_and_control_does_not_matter_and_the_last_windows_count(base_folder):
    control = control_for(base_folder, "svd_v2")
    windows = attach_windows(attach_windows(narrow_model("svd"), 5, 1, "average"), 4, 2, "average")
    after = attach_controlnext(windows, control, clip_hints(), 1.0, (0.0, 1.0))
    assert torch.equal(sample(after), sample(attach_windows(controlled(base_folder), 4, 2, "average")))


def test_the_model_itself_keeps_its_windows_off(base_folder):
    model = controlled(base_folder)
    before = sample(model)
    sample(attach_windows(model, 4, 2, "average"))
    assert torch.equal(sample(model), before)


def test_conditions_of_each_frame_are_cut_and_others_are_not():
    conds = {
        "c_concat": comfy.conds.CONDNoiseShape(torch.arange(10.0)[:, None, None, None]),
        "c_crossattn": comfy.conds.CONDCrossAttn(torch.zeros(1, 1, 1024)),
        "num_video_frames": comfy.conds.CONDConstant(10),
        "several": comfy.conds.CONDList([torch.arange(10.0), torch.zeros(3)]),
    }
    prompt = {"model_conds": conds, "mask": torch.arange(10.0)[:, None, None], "strength": 0.5, "area": None}
    (cut,) = cut_prompts([prompt], slice(4, 8), 10)
    assert cut["model_conds"]["c_concat"].cond.flatten().tolist() == [4, 5, 6, 7]
    assert cut["model_conds"]["c_crossattn"] is not None
    assert cut["model_conds"]["c_crossattn"].cond.shape == (1, 1, 1024)
    assert cut["model_conds"]["num_video_frames"].cond == 4
    assert [len(part) for part in cut["model_conds"]["several"].cond] == [4, 3]
    assert cut["mask"].flatten().tolist() == [4, 5, 6, 7]
    assert (cut["strength"], cut["area"]) == (0.5, None)
    assert prompt["model_conds"]["num_video_frames"].cond == 10
    assert cut_prompts(None, slice(4, 8), 10) is None


def test_fewer_hints_than_frames_are_repeated_and_more_are_cut(base_folder):
    def at(pictures):
        model = attach_controlnext(narrow_model("svd"), control_for(base_folder, "svd_v2"), pictures, 1.0, (0.0, 1.0))
        return sample(attach_windows(model, 4, 2, "average"), 6, (3.0, 0.0))

    eight = clip_hints(8)
    assert torch.equal(at(eight), at(eight[:6]))
    assert_close(at(eight[:4]), at(eight[[0, 1, 2, 3, 0, 1]]), rtol=0, atol=1e-5)


# Wrong inputs


@pytest.mark.parametrize(("window", "overlap"), [(4, 0), (4, 4), (4, 9)])
def test_an_overlap_that_leaves_frames_out_is_refused(window, overlap, pack_nodes):
    with pytest.raises(ValueError, match="overlap must be from 1 to window - 1"):
        pack_nodes["NextControlVideoWindows"].execute(narrow_model("svd"), window, overlap)


def test_a_model_of_pictures_is_refused(pack_nodes):
    with pytest.raises(ValueError, match=r"The model is SD1.5 and Video Windows is for SVD"):
        pack_nodes["NextControlVideoWindows"].execute(narrow_model(), 4, 2)


def test_an_unknown_blend_is_refused(pack_nodes):
    with pytest.raises(ValueError, match="blend is 'cubic' and must be one of average, linear"):
        pack_nodes["NextControlVideoWindows"].execute(narrow_model("svd"), 4, 2, "cubic")


def test_the_hosts_windows_beside_ours_are_refused_in_either_order():
    def host_windows(model):
        # What a newer host's node has beside these stays at its default.
        wanted = {"model": model, "context_length": 4, "context_overlap": 2}
        wanted |= {"context_schedule": "standard_static", "fuse_method": "pyramid"}
        defaults = {spec.id: getattr(spec, "default", None) for spec in ContextWindowsManualNode.GET_SCHEMA().inputs}
        return ContextWindowsManualNode.execute(**{**defaults, **wanted}).result[0]

    message = "windows of 'Context Windows' as well as Video Windows"
    with pytest.raises(ValueError, match=message):
        attach_windows(host_windows(narrow_model("svd")), 4, 2, "average")
    both = host_windows(attach_windows(narrow_model("svd"), 4, 2, "average"))
    with pytest.raises(ValueError, match=message):
        sample(both)


@pytest.mark.parametrize("variant", ["sd15", "sdxl"])
def test_a_module_of_another_family_is_refused(variant, base_folder):
    with pytest.raises(ValueError, match=r"is a ControlNeXt for .* and the model is SVD"):
        attach_controlnext(narrow_model("svd"), control_for(base_folder, variant), clip_hints(1), 1.0, (0.0, 1.0))


def test_a_v1_module_with_v2_chosen_is_refused(base_folder):
    control_for(base_folder, "svd_v1")
    with pytest.raises(ValueError, match="cannot be used as variant 'svd_v2': choose svd_v1"):
        load_controlnext_file("narrow_2_0.safetensors", "none", "svd_v2", "auto")
