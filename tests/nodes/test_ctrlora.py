"""CtrLoRA on the host: the reference's numbers, and what a control of the host has to do."""

from __future__ import annotations

import pytest
import torch
from ctrlora_files import (
    REPORT,
    GivenLatents,
    base_weights,
    condition_weights,
    control_of,
    load_small_base,
    numbered,
    run_control,
)
from host_models import GOLDENS, build_model
from nextcontrol.models.ctrlora import CtrLoRA, read_config
from nextcontrol.models.state_dict import shapes_of
from safetensors.torch import load_file
from seeded import seeded_tensor
from stacking import native
from torch.testing import assert_close

import nodes as host_nodes

EXPECTED = load_file(GOLDENS / "ctrlora.safetensors")
COUNT = 5


def model():
    return build_model("ctrlora")


def sigmas_at(*steps):
    return torch.tensor([float(model().get_model_object("model_sampling").sigmas[step]) for step in steps])


def text(rows=2, name="context", length=77):
    return seeded_tensor(name, [rows, length, 96])


def applied(control, hints, strength=1.0, percents=(0.0, 1.0), vae=None, previous=None):
    copy = control.copy().set_cond_hint(hints, strength, percents, vae=vae or GivenLatents("hint_latent"))
    return copy.set_previous_controlnet(previous)


def flat(control):
    return [*control["output"], *control["middle"]]


def test_one_condition_gives_what_the_reference_gives(base_folder):
    control = applied(control_of(base_folder, load_small_base(base_folder)), numbered(0, 1))
    found = flat(run_control(control, model(), text(), sigmas_at(*REPORT["timesteps"])))
    for i, residual in enumerate(found):
        assert_close(residual, EXPECTED[f"single.residual_{i:02d}"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_conditions_on_one_base_give_what_the_reference_gives_in_any_order(order, base_folder):
    base, chain = load_small_base(base_folder), None
    for j in order:
        vae = GivenLatents(f"hint_latent_{j}")
        chain = applied(
            control_of(base_folder, base, f"condition{j}."), numbered(0, 1), REPORT["weights"][j], vae=vae, previous=chain
        )
    found = flat(run_control(chain, model(), text(), sigmas_at(*REPORT["timesteps"])))
    for i, residual in enumerate(found):
        assert_close(residual, EXPECTED[f"multi.residual_{i:02d}"], rtol=1e-4, atol=1e-4)


def test_the_lora_changes_the_result(base_folder):
    base = load_small_base(base_folder)
    found = {}
    for name, control in {
        "whole": control_of(base_folder, base), "plain": control_of(base_folder, base, None),
        "off": control_of(base_folder, base, "", 0.0), "half": control_of(base_folder, base, "", 0.5),
    }.items():  # fmt: skip
        found[name] = flat(run_control(applied(control, numbered(0, 1)), model(), text(), sigmas_at(500, 500)))
    for i in range(COUNT):
        assert torch.equal(found["off"][i], found["plain"][i])
        if i:
            assert ((found["whole"][i] - found["plain"][i]).norm() / found["whole"][i].norm()).item() > 0.05
            assert ((found["half"][i] - found["plain"][i]).norm() / found["half"][i].norm()).item() > 0.01


@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
def test_lora_strength_is_the_hand_merged_network(strength, base_folder):
    base, trained, own = base_weights(), condition_weights("condition0."), {}
    for key, tensor in base.items():
        own[key] = torch.lerp(tensor, trained[key], strength) if key in trained else tensor
        if (down := trained.get(key.replace(".weight", ".lora_layer.down.weight"))) is not None and key.endswith(".weight"):
            own[key] = tensor + strength * trained[key.replace(".weight", ".lora_layer.up.weight")] @ down
    network = CtrLoRA(read_config(shapes_of(own)), device="meta")
    network.load_state_dict(own, assign=True)
    expected = network(seeded_tensor("hint_latent", [2, 4, 8, 12]), torch.tensor([500.0, 500.0]), text(), heads=4)
    control = control_of(base_folder, load_small_base(base_folder), "condition0.", strength)
    found = flat(run_control(applied(control, numbered(0, 1)), model(), text(), sigmas_at(500, 500)))
    for one, other in zip(found, expected, strict=True):
        assert ((one - other).norm() / other.norm()).item() < 1e-4


def test_conditions_together_are_the_sum_of_each_alone(base_folder):
    base = load_small_base(base_folder)
    one, two = (control_of(base_folder, base, f"condition{j}.", strength) for j, strength in ((0, 0.7), (1, 1.3)))
    single = [
        flat(run_control(applied(one, numbered(0), 0.5), model(), text(3), sigmas_at(300, 300, 300))),
        flat(run_control(applied(two, numbered(1), 0.8), model(), text(3), sigmas_at(300, 300, 300))),
        flat(run_control(applied(two, numbered(0), 0.2), model(), text(3), sigmas_at(300, 300, 300))),
    ]
    chain = applied(two, numbered(0), 0.2, previous=applied(two, numbered(1), 0.8, previous=applied(one, numbered(0), 0.5)))
    together = flat(run_control(chain, model(), text(3), sigmas_at(300, 300, 300)))
    for i in range(COUNT):
        assert_close(together[i], sum(part[i] for part in single), rtol=1e-5, atol=1e-5)


def count_rows(base):
    rows = []
    base.network.model.register_forward_hook(lambda _m, inputs, _o: rows.append(len(inputs[0])))
    return rows


def test_each_distinct_hint_and_text_is_computed_once(base_folder):
    base = load_small_base(base_folder, cache=0)
    rows = count_rows(base)
    prompts = torch.cat([text(1, "a").expand(4, -1, -1), text(1, "b").expand(4, -1, -1)])
    chain = applied(control_of(base_folder, base), numbered(0))
    run_control(chain, model(), prompts, sigmas_at(*[300] * 8), 2)
    assert rows == [2]
    chain = applied(control_of(base_folder, base), numbered(0, 1), previous=chain)
    found = run_control(chain, model(), prompts, sigmas_at(*[300] * 8), 2)
    assert rows == [2, 4]  # two texts with one hint, then with two; what both controls need is computed once
    assert all(len(residual) == 8 for residual in flat(found))
    assert torch.equal(found["middle"][0][0], found["middle"][0][2])
    assert not torch.equal(found["middle"][0][0], found["middle"][0][1])
    per_image = torch.cat([text(1, name) for name in "abca"])
    run_control(applied(control_of(base_folder, base), numbered(0)), model(), per_image, sigmas_at(*[300] * 4))
    assert rows[2:] == [3]


def test_kept_results_serve_the_next_run_and_no_other_input(base_folder):
    base = load_small_base(base_folder, cache=64)
    rows = count_rows(base)

    def run(control, hints=(0,), name="a", step=300, latents="hint_latent"):
        chain = applied(control, numbered(*hints), vae=GivenLatents(latents))
        return flat(run_control(chain, model(), text(1, name), sigmas_at(step)))

    control = control_of(base_folder, base)
    first = run(control)
    for one, other in zip(first, run(control_of(base_folder, base)), strict=True):
        assert torch.equal(one, other)
    assert rows == [1]
    run(control, hints=(1,))
    run(control, name="b")
    run(control, step=301)
    run(control, latents="other_latent")
    run(control_of(base_folder, base, "", 0.5))
    run(control_of(base_folder, base, "condition0."))
    assert rows == [1] * 7
    run(control)
    assert rows == [1] * 7


def test_the_cache_keeps_its_bound_and_does_not_thrash(base_folder):
    base = load_small_base(base_folder, cache=0)
    weight = sum(
        r.nbytes for r in flat(run_control(applied(control_of(base_folder, base), numbered(0)), model(), text(1), sigmas_at(1)))
    )
    base.cache.limit = 3 * weight
    rows = count_rows(base)

    def run(steps, seed_text="a"):
        control = applied(control_of(base_folder, base), numbered(0))
        control.pre_run(model().model, model().get_model_object("model_sampling").percent_to_sigma)
        for step in steps:
            control.get_control(torch.zeros(1, 4, 8, 12), sigmas_at(step), {"c_crossattn": text(1, seed_text)}, 1, {})
        control.cleanup()

    run(range(10, 15))
    assert base.cache.size <= base.cache.limit
    assert rows == [1] * 5
    run(range(10, 15))
    assert rows == [1] * 7  # three of five were kept
    run(range(20, 22), "b")
    run(range(20, 22), "b")
    assert rows == [1] * 9  # what an older run left makes room
    assert base.cache.size <= base.cache.limit


def test_strength_zero_and_the_outside_of_the_range_add_nothing(base_folder):
    control = control_of(base_folder, load_small_base(base_folder))
    for chain in (applied(control, numbered(0), 0.0), applied(control, numbered(0), percents=(0.5, 1.0))):
        assert run_control(chain, model(), text(1), sigmas_at(900)) is None
    assert run_control(applied(control, numbered(0), percents=(0.0, 0.5)), model(), text(1), sigmas_at(900)) is not None


def test_four_conditions_hold_one_base_in_memory(base_folder):
    base, chain = load_small_base(base_folder), None
    for prefix in ("", "condition0.", "condition1.", "condition2."):
        chain = applied(control_of(base_folder, base, prefix), numbered(0), previous=chain)
    models = chain.get_models()
    assert len(models) == 5
    storages = {p.untyped_storage().data_ptr(): p.nbytes for m in models for p in m.model.parameters()}
    expected = sum(t.nbytes for t in base_weights().values()) + 4 * sum(t.nbytes for t in condition_weights().values())
    assert sum(storages.values()) == expected


def conditioning():
    return [[[text(1, name, length), {}]] for name, length in (("positive", 7), ("negative", 14))]


def sample(positive, negative, batch=1, seed=0, target=None):
    latent = {"samples": torch.zeros(batch, 4, 8, 12)}
    return host_nodes.common_ksampler(target or model(), seed, 3, 4.0, "euler", "normal", positive, negative, latent)[0][
        "samples"
    ]


def apply_node(control, image, positive, negative, strength=1.0, vae=None):
    node = host_nodes.ControlNetApplyAdvanced()
    return node.apply_controlnet(positive, negative, control, image, strength, 0.0, 1.0, vae=vae or GivenLatents("hint_latent"))


def test_it_samples_through_the_hosts_own_apply_node(base_folder):
    base = load_small_base(base_folder)
    bare = sample(*conditioning())
    controlled = sample(*apply_node(control_of(base_folder, base), numbered(0).movedim(1, -1), *conditioning()))
    assert torch.isfinite(controlled).all()
    assert (controlled - bare).abs().max() > 1e-3
    again = sample(*apply_node(control_of(base_folder, base), numbered(0).movedim(1, -1), *conditioning()))
    assert torch.equal(again, controlled)
    zero = sample(*apply_node(control_of(base_folder, base), numbered(0).movedim(1, -1), *conditioning(), strength=0.0))
    assert torch.equal(zero, bare)


def test_a_batch_is_its_pictures_one_by_one(base_folder):
    pair = apply_node(control_of(base_folder, load_small_base(base_folder)), numbered(0).movedim(1, -1), *conditioning())
    four = sample(*pair, batch=4)
    assert_close(four[:1], sample(*pair)[:1], rtol=1e-4, atol=1e-4)


def test_a_native_controlnet_goes_before_or_after_it(base_folder):
    base = load_small_base(base_folder)
    image = numbered(0).movedim(1, -1)

    def native_last():
        pair = apply_node(control_of(base_folder, base), image, *conditioning())
        return sample(*apply_node(native(), image, *pair, strength=0.3))

    def native_first():
        pair = apply_node(native(), image, *conditioning(), strength=0.3)
        return sample(*apply_node(control_of(base_folder, base), image, *pair))

    def native_between():
        pair = apply_node(control_of(base_folder, base), image, *conditioning(), strength=0.5)
        return sample(
            *apply_node(control_of(base_folder, base), image, *apply_node(native(), image, *pair, strength=0.3), strength=0.5)
        )

    assert_close(native_first(), native_last(), rtol=1e-4, atol=1e-4)
    assert_close(native_between(), native_last(), rtol=1e-3, atol=1e-3)
    alone = sample(*apply_node(control_of(base_folder, base), image, *conditioning()))
    assert (native_last() - alone).abs().max() > 1e-3


def test_regional_prompts_and_two_models_in_turn_work_with_one_control(base_folder):
    control = control_of(base_folder, load_small_base(base_folder))
    positive, negative = apply_node(control, numbered(0).movedim(1, -1), *conditioning(), vae=AnySize())
    regional = [
        [positive[0][0], positive[0][1] | {"area": (8, 8, 0, 4), "strength": 1.0, "set_area_to_bounds": False}],
        *positive,
    ]
    assert torch.isfinite(sample(regional, negative)).all()
    other = build_model("ctrlora", seed=1)
    first = sample(positive, negative)
    sample(positive, negative, target=other)
    assert torch.equal(sample(positive, negative), first)


class AnySize(GivenLatents):
    """Latents of whatever size the picture has."""

    def __init__(self):
        super().__init__("hint_latent")

    def encode(self, pixels):
        """At an eighth of the picture's size."""
        return torch.nn.functional.interpolate(super().encode(pixels), (pixels.shape[1] // 8, pixels.shape[2] // 8))


def test_partly_loaded_and_reloaded_networks_give_the_same(base_folder):
    import comfy.model_management

    base = load_small_base(base_folder, cache=0)
    control = control_of(base_folder, base)

    def run():
        return flat(run_control(applied(control, numbered(0)), model(), text(1), sigmas_at(300)))

    comfy.model_management.load_models_gpu(control.get_models())
    expected = run()
    comfy.model_management.unload_all_models()
    for network in control.get_models():
        network.partially_load(network.load_device, 1)
    assert base.network.model.model_lowvram
    for one, other in zip(run(), expected, strict=True):
        assert_close(one, other, rtol=1e-5, atol=1e-5)
    for network in control.get_models():
        network.detach()
    comfy.model_management.load_models_gpu(control.get_models())
    for one, other in zip(run(), expected, strict=True):
        assert torch.equal(one, other)


def test_long_batches_pass_in_pieces(base_folder, monkeypatch):
    from nextcontrol.nodes.host import ctrlora_control

    base = load_small_base(base_folder, cache=0)
    hints, prompts = numbered(0, 1), torch.cat([text(1, name) for name in "abcde"])
    chain = applied(control_of(base_folder, base, "condition0."), hints, previous=applied(control_of(base_folder, base), hints))
    whole = flat(run_control(chain, model(), prompts, sigmas_at(*[300] * 5)))
    rows = count_rows(base)
    monkeypatch.setattr(ctrlora_control, "PIXELS_PER_PASS", 3 * 64 * 96)
    for one, other in zip(flat(run_control(chain, model(), prompts, sigmas_at(*[300] * 5))), whole, strict=True):
        assert ((one - other).norm() / other.norm()).item() < 1e-5
    assert rows == [3, 3, 3, 1]


def test_prompts_evaluated_one_by_one_are_not_computed_again_at_the_same_level(base_folder):
    base = load_small_base(base_folder, cache=0)
    rows = count_rows(base)
    control = applied(control_of(base_folder, base), numbered(0))
    control.pre_run(model().model, model().get_model_object("model_sampling").percent_to_sigma)
    for name, step in (("a", 300), ("b", 300), ("a", 300), ("b", 300), ("a", 200), ("a", 300)):
        control.get_control(torch.zeros(1, 4, 8, 12), sigmas_at(step), {"c_crossattn": text(1, name)}, 1, {})
    control.cleanup()
    assert rows == [1] * 4  # a and b at one level, a at the next, and a again after the first level was dropped
