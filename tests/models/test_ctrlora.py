"""The CtrLoRA network alone: the reference's numbers and gradients, and conditions that share one body."""

from __future__ import annotations

import pytest
import torch
from ctrlora_files import REPORT, SHAPES, base_weights, condition_weights
from host_models import GOLDENS
from nextcontrol.models.adapted import Condition, Group, adapted_linear
from nextcontrol.models.ctrlora import CtrLoRA, read_config
from nextcontrol.models.ctrlora_file import (
    LORA,
    base_tensors,
    check_base,
    condition_names,
    control_tensors,
    linear_names,
    read_condition,
    stack_conditions,
    with_alpha,
)
from nextcontrol.models.detect import UnsupportedCheckpointError
from nextcontrol.models.state_dict import shapes_of
from safetensors.torch import load_file
from seeded import seeded_tensor
from torch import nn
from torch.testing import assert_close

EXPECTED = load_file(GOLDENS / "ctrlora.safetensors")
TEXT = seeded_tensor("context", [2, 77, 96])
TIMES = torch.tensor([float(t) for t in REPORT["timesteps"]])
HEADS = 4


def network():
    weights = base_weights()
    built = CtrLoRA(check_base(weights, "x"), device="meta")
    built.load_state_dict(weights, assign=True)
    return built.requires_grad_(requires_grad=False)


def condition(prefix=""):
    return read_condition(condition_weights(prefix), shapes_of(base_weights()), "x")


def test_residuals_and_gradients_are_the_references():
    with torch.inference_mode(mode=False), torch.enable_grad():
        own = condition().requires_grad_()
        hint = seeded_tensor("hint_latent", [2, 4, 8, 12]).clone()
        residuals = network()(hint, TIMES.clone(), TEXT.clone(), HEADS, [Group(own, 1.0, 2)])
        scalar = torch.stack(
            [(r * seeded_tensor(f"cotangent_{i:02d}", r.shape)).mean() for i, r in enumerate(residuals)]
        ).sum()  # fmt: skip
        scalar.backward()
        norms = torch.stack([own.tensor(key).grad.norm() for key in REPORT["trainable"]])
    for i, residual in enumerate(residuals):
        assert_close(residual.detach(), EXPECTED[f"single.residual_{i:02d}"], rtol=1e-4, atol=1e-4)
    assert_close(scalar.detach()[None], EXPECTED["single.scalar"], rtol=1e-4, atol=1e-5)
    assert_close(norms, EXPECTED["single.grad_norms"], rtol=1e-4, atol=1e-6)


def test_a_batch_of_conditions_is_each_condition_alone():
    body, groups = (
        network(),
        [Group(condition("condition0."), 0.7, 2), Group(None, 0.0, 1), Group(condition("condition1."), 1.0, 3)],
    )
    hint, times, text = seeded_tensor("h", [6, 4, 8, 12]), torch.rand(6) * 999, seeded_tensor("t", [6, 77, 96])
    together = body(hint, times, text, HEADS, groups)
    start = 0
    for group in groups:
        rows = slice(start, start + group.rows)
        start += group.rows
        alone = body(hint[rows], times[rows], text[rows], HEADS, [group])
        for one, other in zip(together, alone, strict=True):
            assert ((one[rows] - other).norm() / other.norm()).item() < 1e-5


@pytest.mark.parametrize("tokens", [1, 4000])
def test_merged_and_low_rank_products_are_equal(tokens):
    layer = nn.Linear(48, 96)
    layer.name = "x"
    loras = [(torch.randn(r, 48), torch.randn(96, r) / r) for r in (4, 16)]
    groups = [Group(Condition({"x": lora}, {}), strength, 1) for lora, strength in zip(loras, (0.5, 2.0), strict=True)]
    x = torch.randn(2, tokens, 48)
    expected = [layer(x[i]) + groups[i].strength * (x[i] @ loras[i][0].T @ loras[i][1].T) for i in range(2)]
    assert_close(adapted_linear(layer, x, groups), torch.stack(expected), rtol=1e-4, atol=1e-4)
    products = []
    layer.register_forward_hook(lambda *_: products.append("base"))
    adapted_linear(layer, x, groups)
    assert products == (["base"] if tokens == 1 else [])  # many tokens: merged, the layer itself is not called


def test_ranks_may_differ_and_are_read_from_the_tensors():
    tensors = condition_weights()
    name = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    tensors[f"{name}{LORA}down.weight"] = torch.randn(3, 64)
    tensors[f"{name}{LORA}up.weight"] = torch.randn(64, 3)
    own = read_condition(tensors, shapes_of(base_weights()), "x")
    assert {len(down) for down, _ in map(own.lora, own.layers)} == {3, 8}
    network()(seeded_tensor("h", [1, 4, 8, 12]), torch.ones(1), TEXT[:1], HEADS, [Group(own, 1.0, 1)])


ALPHA_LAYER = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize("key", [f"{LORA}alpha", ".alpha", f"{LORA}network_alpha", ".lora_alpha"])
@pytest.mark.parametrize(
    "alpha",
    [
        torch.tensor(2.0),
        torch.tensor([12.0]),
        torch.tensor(3.0).half(),
        torch.tensor(4),
        torch.tensor(0.1, dtype=torch.float64),
    ],
)
def test_a_lora_with_alpha_is_scaled_by_alpha_over_rank(key, alpha):
    key = ALPHA_LAYER + key
    plain, base = condition_weights(), shapes_of(base_weights())
    rank = len(plain[f"{ALPHA_LAYER}{LORA}down.weight"])
    before = read_condition(plain, base, "x")
    found = read_condition(plain | {key: alpha}, base, "x")
    assert torch.equal(found.lora(ALPHA_LAYER)[1], before.lora(ALPHA_LAYER)[1] * (float(alpha) / rank))
    assert found.tensors().keys() == before.tensors().keys()
    assert all(torch.equal(found.lora(layer)[1], before.lora(layer)[1]) for layer in found.layers - {ALPHA_LAYER})
    assert found.layers == before.layers


def test_an_alpha_that_is_the_rank_changes_no_bit_and_copies_nothing():
    plain = {key: tensor.half() for key, tensor in condition_weights().items()}
    rank = len(plain[f"{ALPHA_LAYER}{LORA}down.weight"])
    found = read_condition(plain | {f"{ALPHA_LAYER}.alpha": torch.tensor(float(rank)).half()}, shapes_of(base_weights()), "x")
    assert found.lora(ALPHA_LAYER)[1].data_ptr() == plain[f"{ALPHA_LAYER}{LORA}up.weight"].data_ptr()
    half = read_condition(plain | {f"{ALPHA_LAYER}.alpha": torch.tensor(rank / 3)}, shapes_of(base_weights()), "x")
    exact = plain[f"{ALPHA_LAYER}{LORA}up.weight"].float() * (float(torch.tensor(rank / 3)) / rank)
    assert torch.equal(half.lora(ALPHA_LAYER)[1], exact)  # rounded once, where it is used


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({f"{ALPHA_LAYER}.alpha": torch.tensor([1.0, 2.0])}, "has an alpha for .* that is no number"),
        ({f"{ALPHA_LAYER}.alpha": torch.tensor(float("nan"))}, "has an alpha for .* that is no number"),
        ({f"{ALPHA_LAYER}.alpha": torch.tensor(1j)}, "has an alpha for .* that is no number"),
        ({"middle_block.9.to_q.alpha": torch.tensor(1.0)}, "has half a LoRA for 'middle_block.9.to_q'"),
    ],
)
def test_an_alpha_that_is_none_is_refused(change, sentence):
    with pytest.raises(UnsupportedCheckpointError, match=sentence):
        read_condition(condition_weights() | change, shapes_of(base_weights()), "x")


def test_alphas_of_a_pretraining_checkpoint_belong_to_their_condition():
    base, own = base_weights(), condition_weights()
    names = linear_names(read_config(shapes_of(base)))
    number = names.index(ALPHA_LAYER)
    lora = {key: tensor for key, tensor in own.items() if LORA in key} | {f"{ALPHA_LAYER}.alpha": torch.tensor(2.0)}
    stacked = stack_conditions(base, {"a": lora})
    assert f"loras_dict.a.{number}.alpha" in stacked
    found = read_condition(stacked, shapes_of(base), "x", "a", names)
    up, rank = own[f"{ALPHA_LAYER}{LORA}up.weight"], len(own[f"{ALPHA_LAYER}{LORA}down.weight"])
    assert torch.equal(found.lora(ALPHA_LAYER)[1], up * (2 / rank))
    assert base_tensors(stacked | {f"{ALPHA_LAYER}.alpha": torch.tensor(2.0)}).keys() == base.keys()
    for merged in (with_alpha(stacked, "x"), with_alpha({f"control_model.{k}": t for k, t in stacked.items()}, "x")):
        assert not any(key.endswith("alpha") for key in merged)
        prefix = "control_model." if any(key.startswith("control_model.") for key in merged) else ""
        assert torch.equal(merged[f"{prefix}loras_dict.a.{number}.up.weight"], up * (2 / rank))


def test_half_precision_follows_full_precision():
    body, own = network(), condition()
    hint = seeded_tensor("h", [1, 4, 8, 12])
    exact = body(hint, torch.tensor([500.0]), TEXT[:1], HEADS, [Group(own, 1.0, 1)])
    half = body.bfloat16()(hint.bfloat16(), torch.tensor([500.0]), TEXT[:1].bfloat16(), HEADS, [Group(own, 1.0, 1)])
    for one, other in zip(half, exact, strict=True):
        assert one.dtype == torch.bfloat16
        assert ((one.float() - other).norm() / other.norm()).item() < 0.1


def test_the_order_that_numbers_loras_is_the_references():
    names = linear_names(read_config(shapes_of(base_weights())))
    block = "input_blocks.1.1.transformer_blocks.0."
    first = ["time_embed.0", "time_embed.2", "input_blocks.1.0.emb_layers.1"]
    inside = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2"]
    assert names[:13] == [*first, *(block + n for n in [*inside, "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"])]
    assert names[13] == "input_blocks.3.0.emb_layers.1"
    assert names[-1] == "middle_block.2.emb_layers.1"
    assert len(names) == sum(key.endswith(f"{LORA}down.weight") for key in SHAPES)


def test_training_checkpoints_come_apart():
    base, own = base_weights(), condition_weights()
    names = linear_names(read_config(shapes_of(base)))
    checkpoint = {f"control_model.{key}": tensor for key, tensor in (base | own).items()}
    checkpoint |= {"model.diffusion_model.out.0.weight": torch.zeros(4), "first_stage_model.norm.weight": torch.zeros(4)}
    for index, name in enumerate(names):
        for half in ("down", "up"):
            checkpoint[f"control_model.loras_dict.canny.{index}.{half}.weight"] = own[f"{name}{LORA}{half}.weight"]
            checkpoint[f"control_model.loras_dict.hed.{index}.{half}.weight"] = own[f"{name}{LORA}{half}.weight"] * 2
    tensors = control_tensors(checkpoint)
    assert condition_names(tensors) == ["canny", "hed"]
    assert shapes_of(base_tensors(tensors)) == shapes_of(base)
    for name, factor in (("canny", 1), ("hed", 2)):
        found = read_condition(tensors, shapes_of(base), "x", name, names).tensors()
        assert found.keys() == own.keys()
        key = f"time_embed.0{LORA}up.weight"
        assert torch.equal(found[key], own[key] * factor)
