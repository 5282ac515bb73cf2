"""What a control must do, and must not do, on the host's own models and sampler code."""

from __future__ import annotations

import comfy.samplers
import pytest
import torch
from host_models import evaluate, running
from narrow import GENERATION_OF, SIGMA, apply, control_for, hints, latents, narrow_model, predict, text
from nextcontrol.models.controlnext import load_controlnext
from nextcontrol.models.injection import INJECTIONS, cross_normalize
from nextcontrol.nodes.host.layout import Area, Size, areas_of, note_areas
from nextcontrol.nodes.host.unet_structure import find_place
from torch.testing import assert_close

ONES, ZEROS = torch.ones(1, 64, 96), torch.zeros(1, 64, 96)


def by_formula(variant, model, control, image, strength=1.0, crop=None):
    """The control written down plainly: the whole network for every row and call, the paper's formula, no caches."""
    injection = INJECTIONS[variant]
    network = load_controlnext(control.tensors, injection.stem_padding)
    place = find_place(model.model.diffusion_model, injection.site)
    clone = model.clone()
    timestep = {}

    def note(executor, x, timesteps, *rest, **named):
        timestep["value"] = timesteps
        return executor(x, timesteps, *rest, **named)

    def add(h, options):
        if options["block"] != place.block:
            return h
        residual = network(image.movedim(-1, 1).expand(len(h), -1, -1, -1), timestep["value"])
        residual = residual if crop is None else residual[..., crop[0], crop[1]]
        return h + cross_normalize(residual, h, injection) * strength * injection.multiplier(control.scale, is_uncond=False)

    clone.add_wrapper_with_key("diffusion_model", "test", note)
    patch = add if place.hook != "output_block_patch" else lambda h, skip, options: (add(h, options), skip)
    clone.set_model_patch(patch, place.hook)
    return clone


@pytest.mark.parametrize("variant", ["sd15", "sd15_v0", "sdxl", "sdxl_skip", "svd_v1", "svd_v2"])
def test_every_variant_is_its_formula(variant, base_folder):
    family = variant.split("_")[0]
    model, control, image = narrow_model(family), control_for(base_folder, variant), hints()
    if variant == "svd_v2":
        assert control.network(INJECTIONS[variant]).model.stem_padding == 0
    prompts = [[text(family)]]
    if family == "svd":
        prompts = [[text(family, c_concat=latents(seed=5), num_video_frames=1)]]
    found, bare = (evaluate(m, prompts, latents(), SIGMA)[0] for m in (apply(model, control, image, 0.7), model))
    expected = evaluate(by_formula(variant, model, control, image, 0.7), prompts, latents(), SIGMA)[0]
    assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found - bare).abs().max() > 1e-3


def test_a_padded_stem_can_be_chosen_for_svd_v2(base_folder):
    control = control_for(base_folder, "svd_v2")
    control.stem_padding = 1
    model, prompts = narrow_model("svd"), [[text("svd", c_concat=latents(seed=5), num_video_frames=1)]]
    found = evaluate(apply(model, control, hints()), prompts, latents(), SIGMA)[0]
    network = load_controlnext(control.tensors, 1)
    assert control.network(INJECTIONS["svd_v2"]).model(hints().movedim(-1, 1), torch.ones(1)).shape[-2:] == (8, 12)
    assert_close(
        control.network(INJECTIONS["svd_v2"]).model(hints().movedim(-1, 1), torch.ones(1)),
        network(hints().movedim(-1, 1), torch.ones(1)),
    )
    unpadded = evaluate(apply(model, control_for(base_folder, "svd_v2"), hints()), prompts, latents(), SIGMA)[0]
    assert (found - unpadded).abs().max() > 1e-5


@pytest.mark.parametrize(("strength", "percents"), [(0.0, (0.0, 1.0)), (1.0, (0.5, 0.5)), (1.0, (0.7, 0.2)), (1.0, (0.0, 0.0))])
def test_zero_strength_and_an_empty_range_give_back_the_model(strength, percents, base_folder):
    model = narrow_model()
    assert apply(model, control_for(base_folder), hints(), strength, percents=percents) is model


@pytest.mark.parametrize(("percents", "sigma"), [((0.0, 0.5), 0.05), ((0.5, 1.0), 14.0)])
def test_outside_its_percent_range_nothing_is_added(percents, sigma, base_folder):
    model = narrow_model()
    patched = apply(model, control_for(base_folder), hints(), percents=percents)
    assert torch.equal(predict(patched, sigma=sigma), predict(model, sigma=sigma))
    inside = 14.0 if sigma < 1 else 0.05
    assert not torch.equal(predict(patched, sigma=inside), predict(model, sigma=inside))


def test_the_percent_range_follows_the_schedule_of_the_model_that_runs(base_folder):
    from comfy.model_sampling import EPS, ModelSamplingDiscrete

    class Shifted(ModelSamplingDiscrete, EPS):
        pass

    patched = apply(narrow_model(), control_for(base_folder), hints(), percents=(0.0, 0.5))
    (patch,) = {f.__self__ for fs in patched.wrappers["diffusion_model"].values() for f in fs}
    later = patched.clone()
    shifted = Shifted(patched.model.model_config)
    shifted.set_sigmas(shifted.sigmas * 3)
    later.add_object_patch("model_sampling", shifted)
    with running(later):
        assert patch.schedule.factor(shifted.percent_to_sigma(0.5)) == 1
        assert patch.schedule.factor(shifted.percent_to_sigma(0.5) * 0.999) == 0
    with running(patched):
        assert patch.schedule.factor(patched.get_model_object("model_sampling").percent_to_sigma(0.5)) == 1


def test_an_all_zero_mask_adds_nothing(base_folder):
    model = narrow_model()
    assert torch.equal(predict(apply(model, control_for(base_folder), hints(), mask=ZEROS)), predict(model))


def test_an_all_one_mask_changes_nothing(base_folder):
    model, control = narrow_model(), control_for(base_folder)
    for mask in (ONES, ONES[0], torch.ones(1, 5, 7)):
        masked = apply(model, control, hints(), mask=mask)
        assert torch.equal(predict(masked), predict(apply(model, control, hints())))


def test_a_mask_keeps_its_soft_edges_and_its_place(base_folder):
    model, control = narrow_model(), control_for(base_folder)
    seen = {}

    def watch(h, options):
        if options["block"] == ("input", 2):
            seen.setdefault("features", []).append(h)
        return h

    def feature(patched):
        patched = patched.clone()
        patched.set_model_input_block_patch_after_skip(watch)
        predict(patched)
        return seen["features"].pop()

    ramp = torch.linspace(0, 1, 96).expand(1, 64, 96)
    bare, whole, masked = (
        feature(m) for m in (model, apply(model, control, hints()), apply(model, control, hints(), mask=ramp))
    )
    weights = torch.nn.functional.adaptive_avg_pool2d(ramp[None], bare.shape[-2:])
    assert_close(masked, bare + (whole - bare) * weights, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("count", "batch"), [(1, 3), (2, 5), (3, 3), (4, 2)])
def test_hints_are_repeated_or_cut_to_the_batch(count, batch, base_folder):
    model, control, image = narrow_model(), control_for(base_folder), hints(count)
    together = predict(apply(model, control, image), latents(batch))
    alone = [predict(apply(model, control, image[i % count][None]), latents(batch)[i : i + 1]) for i in range(batch)]
    assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
    if count > 1:
        assert (alone[0] - predict(apply(model, control, image[1:2]), latents(batch)[:1])).abs().max() > 1e-4


def test_cond_and_uncond_in_one_call_or_two_give_the_same(base_folder):
    patched = apply(narrow_model(), control_for(base_folder), hints(2))
    cond, uncond = text(name="a"), text(name="b")
    together = evaluate(patched, [[cond], [uncond]], latents(2), SIGMA)
    assert_close(together[0], evaluate(patched, [[cond], None], latents(2), SIGMA)[0], rtol=1e-4, atol=1e-5)
    assert_close(together[1], evaluate(patched, [None, [uncond]], latents(2), SIGMA)[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("variant", "rule", "share"),
    [
        ("sd15", "auto", 1.0), ("sd15", "off", 0.0), ("sdxl", "auto", 1.0), ("sd15_v0", "auto", 1.0),
        ("svd_v2", "auto", 0.0), ("svd_v2", "on", 1.0), ("svd_v1", "on", 1.0), ("svd_v1", "off", 0.0), ("svd_v1", "auto", None),
    ],
)  # fmt: skip
def test_unconditional_rows_follow_the_variants_rule(variant, rule, share, base_folder):
    family = variant.split("_")[0]
    model, control = narrow_model(family), control_for(base_folder, variant)
    extra = {"c_concat": latents(seed=5), "num_video_frames": 1} if family == "svd" else {}
    pair = [[text(family, **extra)], [text(family, **extra)]]
    cond, uncond = evaluate(apply(model, control, hints(), uncond=rule), pair, latents(), SIGMA)
    bare = evaluate(model, pair, latents(), SIGMA)[1]
    if share == 0:
        assert torch.equal(uncond, bare)
    elif share == 1:
        assert torch.equal(uncond, cond)
    else:
        # 0.65 of svd_v1: what the conditional row gets at the strength that makes its multiplier 0.65
        strength = 0.65 / INJECTIONS[variant].multiplier(control.scale, is_uncond=False)
        assert_close(
            uncond, evaluate(apply(model, control, hints(), strength), pair, latents(), SIGMA)[0], rtol=1e-4, atol=1e-5
        )
    assert (cond - bare).abs().max() > 1e-4


def test_area_conditioning_crops_the_control_to_the_area(base_folder):
    model, control = narrow_model(), control_for(base_folder)
    patched = apply(model, control, hints())
    area = (4, 8, 2, 4)  # height, width, top, left
    whole, part = text(name="a"), text(name="b", area=area)
    # The host feathers an area's edges into what lies below; alone, it fills its rectangle.
    found = evaluate(patched, [[part]], latents(), SIGMA)[0][..., 2:6, 4:12]
    expected = evaluate(
        by_formula("sd15", model, control, hints(), crop=(slice(2, 6), slice(4, 12))),
        [[text(name="b")]],
        latents()[..., 2:6, 4:12],
        SIGMA,
    )[0]
    assert_close(found, expected, rtol=1e-4, atol=1e-4)
    both = evaluate(patched, [[whole, part], [text(name="c")]], latents(), SIGMA)
    assert torch.isfinite(both[0]).all()
    assert_close(both[0][..., :2, :], predict_named(patched, "a")[..., :2, :], rtol=1e-4, atol=1e-4)


def predict_named(model, name):
    return evaluate(model, [[text(name=name)]], latents(), SIGMA)[0]


def test_two_areas_of_one_size_in_one_call_get_their_own_part_of_the_control(base_folder):
    patched = apply(narrow_model(), control_for(base_folder), hints())
    left, right = (text(name="a", area=(8, 6, 0, x)) for x in (0, 6))
    together = evaluate(patched, [[left, right]], latents(), SIGMA)[0]
    for area, columns in ((left, slice(0, 6)), (right, slice(6, 12))):
        alone = evaluate(patched, [[area]], latents(), SIGMA)[0]
        assert_close(together[..., columns], alone[..., columns], rtol=1e-4, atol=1e-4)


def test_two_controls_act_in_the_order_they_are_applied(base_folder):
    model = narrow_model()
    first, second = control_for(base_folder), control_for(base_folder, seed=1)
    stacked = predict(apply(apply(model, first, hints()), second, hints(seed=1), 0.5))
    formula = by_formula("sd15", by_formula("sd15", model, first, hints()), second, hints(seed=1), 0.5)
    assert_close(stacked, predict(formula), rtol=1e-5, atol=1e-5)
    swapped = predict(apply(apply(model, second, hints(seed=1), 0.5), first, hints()))
    assert (stacked - swapped).abs().max() > 1e-4


def test_attaching_leaves_no_trace(base_folder):
    model = narrow_model()
    before = predict(model)
    patched = apply(model, control_for(base_folder), hints())
    changed = predict(patched)
    assert not torch.equal(before, changed)
    assert torch.equal(predict(model), before)
    assert not model.wrappers
    assert not model.additional_models
    assert "patches" not in model.model_options["transformer_options"]
    assert torch.equal(predict(patched.clone().clone()), changed)


def test_no_stale_result_after_a_changed_hint_size_timestep_or_model(base_folder):
    model, control = narrow_model(), control_for(base_folder)
    patched = apply(model, control, hints())
    runs = [(latents(), SIGMA), (latents(height=12, width=8), SIGMA), (latents(), 0.5), (latents(), SIGMA)]
    found = [predict(patched, latent, sigma) for latent, sigma in runs]
    for (latent, sigma), prediction in zip(runs, found, strict=True):
        assert torch.equal(prediction, predict(apply(model, control, hints()), latent, sigma))
    with running(patched) as options:  # within one run as well
        for (latent, sigma), prediction in zip(runs, found, strict=True):
            x, level = latent * (sigma**2 + 1) ** 0.5, torch.full((1,), sigma)
            denoised = comfy.samplers.calc_cond_batch(patched.model, [[text()]], x, level, options)[0]
            assert torch.equal((x - denoised) / sigma, prediction)
    assert not torch.equal(predict(apply(model, control, hints(seed=1))), found[0])


def test_partial_loading_gives_the_same_picture(base_folder):
    patched = apply(narrow_model(), control_for(base_folder), hints())
    whole = predict(patched)
    with running(patched, memory=1):
        (network,) = patched.get_nested_additional_models()
        assert patched.model.model_lowvram
        assert network.model.model_lowvram
    assert_close(predict(patched, memory=1), whole, rtol=1e-5, atol=1e-5)
    assert torch.equal(predict(patched), whole)


def test_a_hint_of_another_size_is_cut_in_the_centre_and_resized(base_folder):
    model, control = narrow_model(), control_for(base_folder)
    wide = hints(1, 64, 128)
    assert_close(predict(apply(model, control, wide)), predict(apply(model, control, wide[:, :, 16:112])), rtol=0, atol=0)
    large = torch.nn.functional.interpolate(hints().movedim(-1, 1), scale_factor=2, mode="nearest").movedim(1, -1)
    assert (predict(apply(model, control, large)) - predict(model)).abs().max() > 1e-4


@pytest.mark.parametrize("variant", sorted(GENERATION_OF))
def test_half_precision_inputs_give_finite_controls(variant, base_folder):
    control = control_for(base_folder, variant)
    network = control.network(INJECTIONS[variant]).model
    found = network(hints().movedim(-1, 1).bfloat16(), torch.tensor([500.0]))
    assert found.dtype == torch.bfloat16
    exact = network(hints().movedim(-1, 1), torch.tensor([500.0]))
    assert ((found.float() - exact).norm() / exact.norm()).item() < 0.05


def test_a_prompt_that_the_host_gives_a_second_area_is_cropped_by_its_size():
    seen = {}

    def executor(_model, _conds, _x, _timestep, model_options):
        seen.update(model_options["transformer_options"])

    # The host repeats a negative prompt without an area for each area of the positive one, under the same uuid.
    prompts = [[{"uuid": 1, "area": (4, 8, 2, 4)}], [{"uuid": 2}, {"uuid": 2, "area": (4, 8, 2, 4)}]]
    note_areas(executor, None, prompts, latents(), None, {"transformer_options": {"kept": True}})
    assert seen["kept"]
    assert areas_of(seen | {"uuids": [1, 2]}, Size(4, 8), 2) == (Size(8, 12), [Area(2, 4, 4, 8)] * 2)
    assert areas_of(seen | {"uuids": [2]}, Size(8, 12), 1) == (Size(8, 12), [Area(0, 0, 8, 12)])
    # A node that cuts the latent in its own way: the input counts as the whole.
    assert areas_of(seen | {"uuids": [1, 2]}, Size(5, 5), 2) == (Size(5, 5), [Area(0, 0, 5, 5)] * 2)
    assert areas_of({}, Size(5, 5), 1) == (Size(5, 5), [Area(0, 0, 5, 5)])
