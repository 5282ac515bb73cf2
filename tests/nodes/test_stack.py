"""Several controls as one: what a stack adds is what its controls add, weighted, masked and limited as it says."""

from __future__ import annotations

import copy
import logging
from itertools import pairwise
from types import SimpleNamespace

import comfy.hooks
import pytest
import torch
from ctrlora_files import control_of, load_small_base, numbered
from host_models import build_model, evaluate
from narrow import control_for, hints, latents, narrow_model, text
from nextcontrol.models.combine import cap_factor, guess_weight, norm, resolution_weight, weights_of
from nextcontrol.nodes.host.attach import attach_controlnext
from nextcontrol.nodes.host.layout import Area, Layout, Size
from nextcontrol.nodes.host.schedule import Schedule
from nextcontrol.nodes.host.stack import apply_stack
from nextcontrol.nodes.host.stack_entry import Entry, Options, check_entry
from stacking import LEFT, SIZE, Adapter, control, entry, found, native, of, prompts, residuals, sample, stacked, vae
from torch.testing import assert_close

import nodes as host_nodes

KINDS = ("native", "ctrlora")


# One control


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("strength", "percents"), [(1.0, (0.0, 1.0)), (0.4, (0.2, 0.8))])
def test_a_stack_of_one_is_the_hosts_apply_node_bit_for_bit(kind, strength, percents, base_folder):
    model, one, (positive, negative) = build_model("ctrlora"), control(kind, base_folder), prompts()
    image = numbered(0).movedim(1, -1)
    expected = host_nodes.ControlNetApplyAdvanced().apply_controlnet(positive, negative, one, image, strength, *percents, vae())
    same, *conditioning, _ = stacked([entry(one, strength, percents)])
    assert same is model
    result = sample(model, *conditioning, batch=2)
    assert torch.equal(result, sample(model, *expected, batch=2))
    assert not torch.equal(result, sample(model, positive, negative, batch=2))


@pytest.mark.parametrize("balance", ["sum", "mean", "cap"])
def test_a_controlnext_alone_is_its_apply_node_bit_for_bit(balance, base_folder):
    model, one, mask = narrow_model(), control_for(base_folder), LEFT
    strength = 1.0 if balance == "mean" else 0.7
    expected = attach_controlnext(model, one, hints(), strength, (0.1, 0.9), mask)
    patched, *conditioning, _ = stacked([entry(one, strength, (0.1, 0.9), mask, image=hints())], model=model, balance=balance)
    assert torch.equal(sample(patched, *conditioning), sample(expected, *prompts(768)))
    assert not torch.equal(sample(patched, *conditioning), sample(model, *prompts(768)))


@pytest.mark.parametrize("off", [{"strength": 0.0}, {"percents": (0.5, 0.5)}])
def test_a_control_that_is_off_needs_no_loader_and_changes_nothing(off, base_folder):
    given = prompts()
    blank = Entry(None, None, off.get("strength", 1.0), off.get("percents", (0.0, 1.0)))
    check_entry(blank, 1)
    model, *conditioning, _ = stacked([blank], conditioning=given)
    assert model is build_model("ctrlora")
    assert conditioning[0] is given[0]
    one = control("ctrlora", base_folder)
    for first, second in zip(found([blank, entry(one)]), found([entry(one)]), strict=True):
        assert torch.equal(first, second)


def test_strength_zero_of_the_whole_stack_changes_nothing(base_folder):
    given = prompts()
    model, *conditioning, _ = stacked([entry(control("native", base_folder))], conditioning=given, strength=0.0)
    assert model is build_model("ctrlora")
    assert conditioning == given


# Several


def test_what_a_stack_adds_is_the_weighted_sum_in_any_order(base_folder):
    one, two = control("native", base_folder), control("ctrlora", base_folder, 1)
    single = [found([entry(one, 0.7)]), found([entry(two, 1.2)])]
    for order in ([entry(one, 0.7), entry(two, 1.2)], [entry(two, 1.2), entry(one, 0.7)]):
        for total, a, b in zip(found(order), *single, strict=True):
            assert_close(total, a + b, rtol=1e-5, atol=1e-5)
    for half, total in zip(found(order, strength=0.5), found(order), strict=True):
        assert_close(half, total / 2, rtol=1e-5, atol=1e-5)


def test_controlnexts_act_one_after_the_other(base_folder):
    model, one, two = narrow_model(), control_for(base_folder), control_for(base_folder, seed=1)
    for first, second in ((one, two), (two, one)):
        chain = attach_controlnext(model, first, hints(), 0.5, (0.0, 1.0))
        chain = attach_controlnext(chain, second, hints(seed=1), 0.8, (0.0, 1.0))
        patched, *_ = stacked([entry(first, 0.5, image=hints()), entry(second, 0.8, image=hints(seed=1))], model=model)
        assert torch.equal(sample(patched, *prompts(768)), sample(chain, *prompts(768)))


@pytest.mark.parametrize("kinds", [("native", "ctrlora"), ("ctrlora", "ctrlora")])
def test_mean_divides_by_the_sum_of_the_strengths(kinds, base_folder):
    one, two = (control(kind, base_folder, seed) for seed, kind in enumerate(kinds))
    mean = found([entry(one, 2.0), entry(two, 1.0)], balance="mean")
    for a, b in zip(mean, found([entry(one, 2 / 3), entry(two, 1 / 3)]), strict=True):
        assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_mean_weighs_controlnexts_with_the_others(base_folder):
    model, one, other = narrow_model(), control_for(base_folder), native("sd15_narrow")
    mean, *conditioning, _ = stacked([entry(one, 2.0, image=hints()), entry(other, 1.0)], model=model, balance="mean")
    plain, *expected, _ = stacked([entry(one, 2 / 3, image=hints()), entry(other, 1 / 3)], model=model)
    assert_close(sample(mean, *conditioning), sample(plain, *expected), rtol=1e-5, atol=1e-5)
    assert weights_of([2.0, 1.0], "mean") == [2 / 3, 1 / 3]


def test_ctrloras_of_one_base_are_one_pass(base_folder):
    base = load_small_base(base_folder)
    one, two = (control_of(base_folder, base, f"condition{j}.") for j in (0, 1))
    calls = []
    hook = base.network.model.register_forward_hook(lambda _m, inputs, _o: calls.append(len(inputs[0])))
    found([entry(one), entry(native()), entry(two)], sigma=2.5)
    hook.remove()
    assert calls == [4]


def test_ctrloras_of_two_bases_are_each_on_their_own(base_folder):
    one, two = (control_of(base_folder, load_small_base(base_folder, seed), "condition0.") for seed in (0, 1))
    for total, a, b in zip(found([entry(one), entry(two)]), found([entry(one)]), found([entry(two)]), strict=True):
        assert_close(total, a + b, rtol=1e-5, atol=1e-5)
        assert not torch.equal(a, b)


def test_controls_that_were_on_the_prompts_stay(base_folder):
    model, before, after = build_model("ctrlora"), native(seed=3), control("ctrlora", base_folder)
    given = host_nodes.ControlNetApplyAdvanced().apply_controlnet(*prompts(), before, hints(), 0.6, 0.0, 1.0)
    chained = host_nodes.ControlNetApplyAdvanced().apply_controlnet(
        *given, after, numbered(0).movedim(1, -1), 1.0, 0.0, 1.0, vae()
    )
    _, *conditioning, _ = stacked([entry(after)], conditioning=given)
    assert of(conditioning[0]) is of(conditioning[1])
    assert before.control_model_wrapped in of(conditioning[0]).get_models()
    assert_close(sample(model, *conditioning), sample(model, *chained), rtol=1e-5, atol=1e-5)


def test_a_control_that_the_host_lends_to_the_negative_prompt_stays_there():
    before, after = native(seed=3), native()
    positive, negative = prompts()
    (lent,) = host_nodes.ControlNetApply().apply_controlnet(positive, before, hints(), 0.6)
    for options in ({}, {"is_guessed": True}):
        _, *conditioning, _ = stacked([entry(after)], conditioning=[lent, negative], **options)
        for given in (conditioning[0][0][1], conditioning[1][0][1]):
            chain = [given["control"], given["control"].previous_controlnet]
            assert lent[0][1]["control"] in chain
        assert not conditioning[0][0][1]["control_apply_to_uncond"]
    assert "control" not in negative[0][1]


def test_a_stack_on_a_stack_adds_to_it_and_says_so(base_folder, caplog):
    one, two = control("native", base_folder), control("ctrlora", base_folder)
    _, *given, _ = stacked([entry(one)])
    with caplog.at_level(logging.INFO, "nextcontrol"):
        _, *both, _ = stacked([entry(two)], conditioning=given)
    assert "already" in caplog.text
    _, *together, _ = stacked([entry(one), entry(two)])
    model = build_model("ctrlora")
    for a, b in zip(*(residuals(of(positive), model)["output"] for positive, _ in (both, together)), strict=True):
        assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_a_stack_on_a_model_with_a_stack_says_so(base_folder, caplog):
    entries = [entry(control_for(base_folder), image=hints())]
    once, *_ = stacked(entries, model=narrow_model())
    with caplog.at_level(logging.INFO, "nextcontrol"):
        stacked(entries, model=narrow_model())
        assert "already" not in caplog.text
        stacked(entries, model=once)
    assert "already" in caplog.text


# The cap


def test_cap_limits_each_sum_to_its_largest_term_sample_by_sample(base_folder):
    parts = [entry(control("native", base_folder), 1.5), entry(control("ctrlora", base_folder), 1.0, mask=LEFT)]
    single = [found([part]) for part in parts]
    is_limited = False
    for capped, plain, a, b in zip(found(parts, balance="cap"), found(parts), *single, strict=True):
        largest = torch.maximum(norm(a), norm(b))
        assert (norm(capped) <= largest * (1 + 1e-5)).all()
        assert_close(capped, plain * (largest / norm(plain)).clamp(max=1), rtol=1e-5, atol=1e-6)
        is_limited |= bool((norm(plain) > largest * 1.01).any())
    assert is_limited


def test_a_control_twice_under_cap_is_the_control_once(base_folder):
    one = control("native", base_folder)
    for twice, once in zip(found([entry(one), entry(one)], balance="cap"), found([entry(one)]), strict=True):
        assert_close(twice, once, rtol=1e-5, atol=1e-6)


def test_cap_limits_controlnexts_of_one_place(base_folder):
    """By the definition: all additions as without a limit, and their sum shrunk to the largest one."""
    model = narrow_model()
    parts = [entry(control_for(base_folder, seed=seed), image=hints(seed=seed)) for seed in (0, 1, 2)]

    def at_the_place(patched):
        watched, seen = patched.clone(), []

        def watch(h, options):
            if options["block"] == ("input", 2):
                seen.append(h)
            return h

        watched.set_model_patch(watch, "input_block_patch_after_skip")
        evaluate(watched, [[text()]], latents(), 3.0)
        return seen[0]

    before, *steps = (at_the_place(stacked(parts[:count], model=model)[0]) for count in range(4))
    plain = steps[-1]
    capped = at_the_place(stacked(parts, model=model, balance="cap")[0])
    added = [norm(after - earlier) for earlier, after in pairwise([before, *steps])]
    largest = torch.stack(added).amax(0)
    assert (norm(plain - before) > largest * 1.01).all()
    assert_close(capped, before + (plain - before) * cap_factor(plain - before, largest), rtol=1e-5, atol=1e-5)


# Weights of the levels


def test_resolution_weighting_multiplies_each_level_and_leaves_the_negative_alone(base_folder):
    one, given = control("ctrlora", base_folder), prompts()
    _, positive, negative, _ = stacked([entry(one)], conditioning=given, is_resolution_weighted=True)
    assert negative is given[1]
    model = build_model("ctrlora")
    weighted, plain = residuals(of(positive), model), residuals(of(stacked([entry(one)])[1]), model)
    for depth in ("output", "middle"):
        for a, b in zip(weighted[depth], plain[depth], strict=True):
            assert_close(a, b * (SIZE[0] / b.shape[-2]), rtol=1e-6, atol=0)
    assert {SIZE[0] / b.shape[-2] for b in plain["output"]} == {1, 2}
    corner = Layout(Size(16, 24), {"prompt": [Area(8, 12, *SIZE)]})
    area = residuals(of(positive), model, options={"nextcontrol.layout": corner, "uuids": ["prompt"] * 2})
    for a, b in zip(area["output"], weighted["output"], strict=True):
        assert torch.equal(a, b)


def test_guess_mode_is_the_ladder_of_its_authors(base_folder):
    one, given = control("native", base_folder), prompts()
    _, positive, negative, _ = stacked([entry(one)], conditioning=given, is_guessed=True)
    assert negative is given[1]
    model = build_model("ctrlora")
    weighted, plain = (residuals(of(p), model) for p in (positive, stacked([entry(one)])[1]))
    count = len(plain["output"]) + 1
    for i, (a, b) in enumerate(zip(weighted["output"], plain["output"], strict=True)):
        assert_close(a, b * 0.825 ** (count - 1 - i), rtol=1e-6, atol=0)
    assert torch.equal(weighted["middle"][0], plain["middle"][0])
    assert guess_weight(0, 13) == pytest.approx(0.0994, abs=1e-4)


def test_an_adapter_of_the_encoder_is_summed_weighted_and_limited_as_the_others():
    one, other = Adapter(), native()
    model = build_model("ctrlora")
    chain = host_nodes.ControlNetApplyAdvanced().apply_controlnet(*prompts(), one, hints(), 0.5, 0.0, 1.0)
    chain = host_nodes.ControlNetApplyAdvanced().apply_controlnet(*chain, other, hints(), 0.7, 0.0, 1.0)
    _, *conditioning, _ = stacked([entry(one, 0.5, image=hints()), entry(other, 0.7, image=hints())])
    assert_close(sample(model, *conditioning), sample(model, *chain), rtol=1e-5, atol=1e-5)

    def added(*entries, rows=4, **options):
        return residuals(of(stacked(list(entries), **options)[1]), model, rows)["input"]

    plain, guessed = added(entry(one)), added(entry(one), is_guessed=True)
    assert plain[1] is None
    assert_close(guessed[0], plain[0] * 0.825, rtol=1e-6, atol=0)
    assert_close(guessed[2], plain[2] * 0.825**3, rtol=1e-6, atol=0)
    masks = torch.cat([LEFT, 1 - LEFT])
    for total, own in zip(added(entry(one), entry(one, mask=masks), balance="cap"), plain, strict=True):
        assert total is own is None or (norm(total) <= norm(own) * (1 + 1e-5)).all()
    masked = added(entry(one, mask=masks))[2]
    assert masked.shape[0] == 4
    assert masked[0, ..., :6].any()
    assert not masked[0, ..., 6:].any()
    assert not masked[3, ..., :6].any()


def test_levels_of_odd_sides_weigh_as_those_of_even_ones():
    heights = {64: (64, 32, 16, 8), 90: (90, 45, 23, 12), 44: (44, 22, 11, 6), 76: (76, 38, 19, 10)}
    for latent, sides in heights.items():
        assert [resolution_weight(latent, side) for side in sides] == [1, 2, 4, 8]


def test_the_negative_prompt_has_no_controlnext_under_resolution_weighting(base_folder):
    model = narrow_model()
    patched, *_ = stacked([entry(control_for(base_folder), image=hints())], model=model, is_resolution_weighted=True)
    rows = [[text()], [text(name="negative")]]
    both, bare = evaluate(patched, rows, latents(), 3.0), evaluate(model, rows, latents(), 3.0)
    assert torch.equal(both[1], bare[1])
    assert not torch.equal(both[0], bare[0])


# Masks


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_of_ones_is_no_mask_and_a_mask_of_zeros_no_control(kind, base_folder):
    one, given = control(kind, base_folder), prompts()
    plain = found([entry(one)])
    for a, b in zip(found([entry(one, mask=torch.ones(1, 64, 96))]), plain, strict=True):
        assert torch.equal(a, b)
    _, *conditioning, _ = stacked([entry(one, mask=torch.zeros(1, 64, 96))], conditioning=given)
    assert conditioning == given


def test_a_mask_of_zeros_takes_no_part_in_the_mean(base_folder):
    model, blank = narrow_model(), torch.zeros(1, 64, 96)
    one, other = control_for(base_folder), native("sd15_narrow")
    alone, *_ = stacked([entry(one, 2.0, image=hints())], model=model, balance="mean")
    both = [entry(other, 3.0, mask=blank), entry(one, 2.0, image=hints()), entry(one, 1.0, mask=blank, image=hints())]
    patched, *_ = stacked(both, model=model, balance="mean")
    rows = [[text()]], latents(), 3.0
    assert torch.equal(evaluate(patched, *rows)[0], evaluate(alone, *rows)[0])
    assert not torch.equal(evaluate(alone, *rows)[0], evaluate(model, *rows)[0])


def test_complementary_masks_give_each_control_its_region(base_folder):
    one, two = control("native", base_folder), control("ctrlora", base_folder, 1)
    blend = found([entry(one, mask=LEFT), entry(two, mask=1 - LEFT)])
    for total, a, b in zip(blend, found([entry(one)]), found([entry(two)]), strict=True):
        half = total.shape[-1] // 2
        assert torch.equal(total[..., :half], a[..., :half])
        assert torch.equal(total[..., half:], b[..., half:])


def test_soft_edges_stay_soft(base_folder):
    one = control("native", base_folder)
    ramp = torch.linspace(0, 1, 96).expand(1, 64, 96)
    for masked, plain in zip(found([entry(one, mask=ramp)]), found([entry(one)]), strict=True):
        cells = ramp[0, 0].view(masked.shape[-1], -1).mean(1)
        assert_close(masked, plain * cells, rtol=1e-5, atol=1e-6)


def test_a_mask_per_frame_goes_with_its_frame(base_folder):
    one, masks = control("native", base_folder), torch.cat([LEFT, 1 - LEFT])
    both = found([entry(one, mask=masks, image=hints(2))], rows=4)
    for residual in both:
        half = residual.shape[-1] // 2
        for prompt in (0, 2):
            assert not residual[prompt, ..., half:].any()
            assert not residual[prompt + 1, ..., :half].any()
            assert residual[prompt, ..., :half].any()


def test_a_mask_per_frame_follows_the_window_of_a_long_clip():
    stack = of(stacked([entry(native(), mask=torch.cat([LEFT, 1 - LEFT]), image=hints(2))])[1])
    for frame, own in ((0, slice(6)), (1, slice(6, 12))):
        window = SimpleNamespace(index_list=[frame])
        shallow = residuals(stack, build_model("ctrlora"), options={"context_window": window})["output"][0]
        acted = torch.zeros(12, dtype=torch.bool)
        acted[own] = True
        assert torch.equal(shallow[0].abs().amax(dim=(0, 1)) > 0, acted)


def test_under_area_conditioning_a_mask_covers_the_whole_picture(base_folder):
    """A prompt for the right half sees the right half of the mask, which is empty."""
    given = prompts()
    for _, options in (*given[0], *given[1]):
        options |= {"area": (8, 6, 0, 6), "strength": 1.0, "set_area_to_bounds": False}
    whole = prompts()
    one = control("native", base_folder)
    results = {}
    for name, mask in (("left", LEFT), ("right", 1 - LEFT), ("none", torch.zeros(1, 64, 96)), ("all", None)):
        model, *area, _ = stacked([entry(one, mask=mask)], conditioning=given)
        results[name] = sample(model, [*whole[0], *area[0]], [*whole[1], *area[1]])
    assert torch.equal(results["left"], results["none"])
    assert_close(results["right"], results["all"], rtol=1e-5, atol=1e-5)
    assert not torch.equal(results["right"], results["none"])


# Curves


@pytest.mark.parametrize(
    ("curve", "expected"),
    [("constant", (1, 1, 1)), ("ease in", (0, 0.5, 1)), ("ease out", (1, 0.5, 0)), ("ease in-out", (0, 1, 0))],
)
@pytest.mark.parametrize("percents", [(0.0, 1.0), (0.2, 0.6)])
def test_a_curve_goes_through_the_active_range(curve, expected, percents):
    to_sigma = build_model("ctrlora").get_model_object("model_sampling").percent_to_sigma
    schedule = Schedule(*percents, curve)
    schedule.begin(to_sigma)
    start, end = percents
    for part, value in zip((0.001, 0.5, 0.999), expected, strict=True):
        assert schedule.factor(to_sigma(start + (end - start) * part)) == pytest.approx(value, abs=0.01)
    quarter = schedule.factor(to_sigma(start + (end - start) / 4))
    assert quarter == pytest.approx(
        {"constant": 1, "ease in": 0.15625, "ease out": 0.84375, "ease in-out": 0.5}[curve], abs=0.01
    )
    if percents != (0.0, 1.0):
        assert schedule.factor(to_sigma(0.1)) == schedule.factor(to_sigma(0.7)) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_curve_scales_what_is_added(kind, base_folder):
    one = control(kind, base_folder)
    sigma = build_model("ctrlora").get_model_object("model_sampling").percent_to_sigma(0.25)
    for a, b in zip(found([entry(one, curve="ease in")], sigma), found([entry(one)], sigma), strict=True):
        assert_close(a, b * 0.15625, rtol=1e-2, atol=1e-4)


def test_a_curve_scales_a_controlnext(base_folder):
    model, one = narrow_model(), control_for(base_folder)
    sigma = model.get_model_object("model_sampling").percent_to_sigma(0.5)
    eased, *_ = stacked([entry(one, curve="ease in", image=hints())], model=model)
    half, *_ = stacked([entry(one, 0.5, image=hints())], model=model)
    results = [evaluate(patched, [[text()]], latents(), sigma)[0] for patched in (eased, half)]
    assert_close(*results, rtol=1e-4, atol=1e-4)


# As a part of the host


def test_batches_split_prompts_and_samplers_agree(base_folder):
    model = build_model("ctrlora")
    entries = [entry(control("native", base_folder), 0.6), entry(control("ctrlora", base_folder), 0.5)]
    _, *conditioning, _ = stacked(entries)
    batch = sample(model, *conditioning, batch=2)
    for sampler in ("dpmpp_2m", "heun", "uni_pc"):
        assert torch.isfinite(sample(model, *conditioning, sampler=sampler)).all()
    longer = [[torch.cat([conditioning[1][0][0]] * 2, dim=1), conditioning[1][0][1]]]
    # Prompts of different length are repeated to a common one by the host; attention does not see repeats.
    assert_close(sample(model, conditioning[0], longer, batch=2), batch, rtol=1e-4, atol=1e-4)


def test_hooks_of_the_members_are_the_stacks():
    one, group = native().copy(), comfy.hooks.HookGroup()
    group.add(comfy.hooks.AdditionalModelsHook())
    one.extra_hooks = group
    _, positive, *_ = stacked([entry(native()), entry(one)])
    (found_group,) = of(positive).get_extra_hooks()
    assert found_group.hooks == group.hooks


def test_copies_share_weights_and_no_state(base_folder):
    _, positive, *_ = stacked([entry(control("native", base_folder)), entry(control("ctrlora", base_folder))])
    stack = of(positive)
    twin = stack.copy()
    assert {id(model) for model in twin.get_models()} == {id(model) for model in stack.get_models()}
    for part in ("control", "schedule"):  # both learn at the start of a run which model it is of
        assert not {id(getattr(member, part)) for member in twin.members} & {id(getattr(m, part)) for m in stack.members}
    model = build_model("ctrlora")
    for a, b in zip(residuals(stack, model)["output"], residuals(twin, model)["output"], strict=True):
        assert torch.equal(a, b)
    assert copy.deepcopy(stack) is stack


def test_the_memory_that_controls_ask_for_is_reserved_for_all_of_them():
    class Hungry(Adapter):
        def inference_memory_requirements(self, dtype):
            return 100 + super().inference_memory_requirements(dtype)

        def copy(self):
            copy = Hungry()
            self.copy_to(copy)
            return copy

    given = host_nodes.ControlNetApplyAdvanced().apply_controlnet(*prompts(), Hungry(), hints(), 1.0, 0.0, 1.0)
    _, positive, *_ = stacked([entry(Hungry()), entry(Hungry())], conditioning=given)
    assert of(positive).inference_memory_requirements(torch.float16) == 300


def test_the_model_is_left_as_it_was(base_folder):
    model = narrow_model()
    before = sample(model, *prompts(768))
    patched, *conditioning, _ = stacked(
        [entry(control_for(base_folder), image=hints()), entry(native("sd15_narrow"), mask=LEFT)], model=model, node=""
    )
    assert not torch.equal(sample(patched, *conditioning), before)
    assert torch.equal(sample(model, *prompts(768)), before)


def test_a_longer_clip_than_the_latent_is_said(base_folder, caplog):
    with caplog.at_level(logging.WARNING, "nextcontrol"):
        found([entry(control("native", base_folder), image=hints(3))], rows=4)
    assert "3 frames and the latent batch 2: the last 1" in caplog.text


# Bad input


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"control": None}, "Control 2 of the stack is no control .*connect a loader"),
        ({"image": None}, "Control 2 of the stack .* has no hint"),
        ({"image": torch.zeros(0, 64, 64, 3)}, "Control 2 of the stack .*no frames"),
        ({"mask": torch.zeros(3, 64, 64), "image": torch.zeros(2, 64, 64, 3)}, "mask has 3 frames and the hint 2"),
        ({"mask": torch.full((1, 8, 8), torch.nan)}, "Control 2 of the stack .*mask has NaN"),
    ],
)
def test_a_bad_entry_is_named_by_its_position(bad, message):
    given = {"control": native(), "image": hints(), "strength": 1.0, "percents": (0.0, 1.0), "mask": None} | bad
    with pytest.raises(ValueError, match=message):
        check_entry(Entry(**given), 2)


@pytest.mark.parametrize("options", [{"balance": "cap"}, {"is_guessed": True}, {"is_resolution_weighted": True}, {}])
def test_what_only_a_unet_can_do_is_refused_for_other_models(options):
    other = SimpleNamespace(model=SimpleNamespace(diffusion_model=torch.nn.Identity(), model_config="a transformer's"))
    entries = [entry(native()), entry(native(), mask=None if options else LEFT)]
    with pytest.raises(ValueError, match=r"Control [12] of the stack .*need a UNet: switch them off"):
        apply_stack(other, *prompts(), entries, Options(**options))


def test_a_controlnext_for_another_family_is_named_by_its_position(base_folder):
    entries = [entry(native("sd15_narrow")), entry(control_for(base_folder, "sdxl"), image=hints())]
    with pytest.raises(ValueError, match=r"Control 2 of the stack \(ControlNeXt narrow_3_0.safetensors\): .*SD1.5"):
        stacked(entries, model=narrow_model())


def test_a_ctrlora_without_a_vae_or_on_another_model_is_named_before_sampling(base_folder):
    entries = [entry(control("ctrlora", base_folder))]
    with pytest.raises(ValueError, match=r"Control 1 of the stack .*none is connected"):
        apply_stack(build_model("ctrlora"), *prompts(), entries, Options())
    with pytest.raises(ValueError, match=r"Control 1 of the stack .*load an SD1.5 checkpoint"):
        stacked(entries, model=narrow_model("sdxl"))


def test_the_nodes_ask_for_their_branches_only_where_they_act(pack_nodes):
    stack, apply = pack_nodes["NextControlStackControl"], pack_nodes["NextControlApplyStack"]
    lazy = {"control": None, "image": None, "mask": None}
    assert stack.check_lazy_status(strength=1.0, start_percent=0.0, end_percent=1.0, **lazy) == list(lazy)
    assert stack.check_lazy_status(strength=1.0, start_percent=0.0, end_percent=1.0, control=native(), image=None) == ["image"]
    assert stack.check_lazy_status(strength=0.0, start_percent=0.0, end_percent=1.0, **lazy) == []
    assert stack.check_lazy_status(strength=1.0, start_percent=0.5, end_percent=0.5, **lazy) == []
    assert apply.check_lazy_status(strength=0.0) == []
    assert apply.check_lazy_status(strength=1.0) == ["stack"]


def test_the_nodes_build_and_apply_a_stack(pack_nodes, base_folder):
    stack, apply = pack_nodes["NextControlStackControl"], pack_nodes["NextControlApplyStack"]
    one, two = control("native", base_folder), control("ctrlora", base_folder)
    image = numbered(0).movedim(1, -1)
    (first,) = stack.execute(0.5, 0.0, 1.0, one, image).result
    (both,) = stack.execute(0.8, 0.0, 1.0, two, image, LEFT, first, "ease out").result
    model = build_model("ctrlora")
    _, *conditioning = apply.execute(model, *prompts(), 1.0, "sum", False, both, vae()).result
    _, *expected, _ = stacked([entry(one, 0.5), entry(two, 0.8, mask=LEFT, curve="ease out")])
    assert torch.equal(sample(model, *conditioning), sample(model, *expected))
    with pytest.raises(ValueError, match="exclude each other"):
        apply.execute(model, *prompts(), 1.0, "sum", True, both, vae(), True)
    with pytest.raises(ValueError, match="balance"):
        apply.execute(model, *prompts(), 1.0, "loudest", False, both, vae())
