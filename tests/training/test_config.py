"""Settings: contradictions, JSON, learning rates; objectives; draws; what is trained."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from host_models import GOLDENS
from nextcontrol.models.ctrlora import read_config
from nextcontrol.training.config import TrainConfig
from nextcontrol.training.draws import Order, generator_for
from nextcontrol.training.objective import add_noise, mean_loss, min_snr_weights, sd_alphas, target_of
from nextcontrol.training.optimizer import build_optimizer
from nextcontrol.training.trainable import start_condition, trainable_shapes
from tiny_training import tiny_base
from torch.testing import assert_close

BASE = {key: tuple(shape) for key, shape in json.loads((GOLDENS / "ctrlora_sd15_base_shapes.json").read_text()).items()}


def test_the_defaults_are_the_published_recipe():
    config = TrainConfig()
    assert (config.rank, config.learning_rate, config.weight_decay, config.batch_size) == (128, 1e-5, 0.01, 1)
    assert (config.precision, config.schedule, config.ema_decay, config.min_snr_gamma) == ("fp32", "constant", 0, 0)


def test_all_contradictions_are_raised_at_once():
    with pytest.raises(ValueError, match="steps") as caught:
        TrainConfig(steps=0, rank=0, learning_rate=2.0, precision="fp8", ema_decay=1.0, validation_pairs=-1, save_every=0)
    for name in (
        "steps (0)",
        "rank (0)",
        "learning_rate (2.0)",
        "precision ('fp8')",
        "ema_decay (1.0)",
        "validation_pairs (-1)",
    ):
        assert name in str(caught.value)
    with pytest.raises(ValueError, match=r"warmup_steps \(10\) must be below steps \(10\)"):
        TrainConfig(steps=10, warmup_steps=10)
    with pytest.raises(ValueError, match="learning_rate"):
        TrainConfig(learning_rate=float("nan"))


def test_json_goes_round():
    config = TrainConfig(steps=7, schedule="cosine", ema_decay=0.5, gradient_checkpointing=True)
    assert TrainConfig.from_json(config.to_json()) == config


def test_every_setting_has_its_unit_first():
    from pathlib import Path

    import nextcontrol.training.config as module

    source = Path(module.__file__).read_text(encoding="utf-8")
    for name in TrainConfig.__dataclass_fields__:
        _, _, rest = source.partition(f"    {name}: ")
        assert rest.splitlines()[1].strip().startswith('"""'), name


def test_learning_rates():
    config = TrainConfig(steps=110, warmup_steps=10, schedule="cosine", learning_rate=1e-3)
    rates = [config.learning_rate_at(step) for step in range(110)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[9] == rates[10] == pytest.approx(1e-3)
    assert rates[60] == pytest.approx(0.5e-3)
    assert rates[109] < 1e-6
    assert TrainConfig(learning_rate=1e-3).learning_rate_at(999) == 1e-3


def test_more_steps_are_the_same_run_unless_the_rate_depends_on_them():
    assert TrainConfig(steps=20).differences(TrainConfig(steps=10)) == []
    assert TrainConfig(steps=20, schedule="cosine").differences(TrainConfig(steps=10, schedule="cosine"))
    assert TrainConfig(save_every=3, preview_every=0).differences(TrainConfig()) == []


# What is trained


def test_the_real_base_has_36945536_trained_numbers_at_rank_128():
    shapes = trainable_shapes(read_config(BASE), 128)
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 36_945_536
    assert len(shapes) == 246
    assert sum("lora_layer" in key for key in shapes) == 164


def test_a_rank_above_the_smallest_linear_is_refused():
    assert trainable_shapes(read_config(BASE), 320)
    with pytest.raises(ValueError, match=r"rank \(321\) must be at most 320, the smaller side of the base's 'input_blocks"):
        trainable_shapes(read_config(BASE), 321)


def test_a_new_condition_is_the_base_and_its_lora_has_the_published_spread():
    base = tiny_base()
    condition = start_condition(base, 8, seed=3)
    downs = torch.cat([t.flatten() for key, t in condition.tensors().items() if key.endswith("down.weight")])
    assert downs.std().item() == pytest.approx(1 / 8, rel=0.05)
    for key, tensor in condition.tensors().items():
        assert tensor.requires_grad
        if key.endswith("up.weight"):
            assert not tensor.any()
        elif "lora_layer" not in key:
            assert torch.equal(tensor, base.get_parameter(key))
    again, other = start_condition(base, 8, seed=3), start_condition(base, 8, seed=4)
    key = "time_embed.0.lora_layer.down.weight"
    assert torch.equal(condition.tensor(key), again.tensor(key))
    assert not torch.equal(condition.tensor(key), other.tensor(key))


def test_eight_bits_need_a_package():
    pytest.importorskip("torch")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match="pip install bitsandbytes"):
            build_optimizer({"x": torch.zeros(2, requires_grad=True)}, lambda _: 1.0, TrainConfig(optimizer="adamw8bit"))


# The objective


def test_v_and_noise_tell_the_same():
    alphas, times = sd_alphas(), torch.tensor([10, 900])
    latents, noise = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    noisy = add_noise(latents, noise, times, alphas)
    v = target_of("v", latents, noise, times, alphas)
    chosen = alphas[times][:, None, None, None]
    assert_close(chosen.sqrt() * v + (1 - chosen).sqrt() * noisy, noise)
    assert_close(chosen.sqrt() * noisy - (1 - chosen).sqrt() * v, latents)
    assert torch.equal(target_of("eps", latents, noise, times, alphas), noise)


def test_min_snr_takes_back_the_easy_timesteps_alone():
    alphas, times = sd_alphas(), torch.tensor([5, 900])
    ratio = alphas[times] / (1 - alphas[times])
    weights = min_snr_weights("eps", times, alphas, 5.0)
    assert_close(weights, torch.tensor([5 / ratio[0].item(), 1.0]))
    assert_close(min_snr_weights("v", times, alphas, 5.0), torch.minimum(ratio, torch.tensor(5.0)) / (ratio + 1))
    rows = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    parts = [mean_loss(rows[0][i : i + 1], rows[1][i : i + 1]) for i in range(2)]
    assert_close(mean_loss(*rows, weights), (parts[0] * weights[0] + parts[1] * weights[1]) / 2)


# The order


def test_an_epoch_sees_every_pair_as_often_as_it_should():
    buckets = ["a"] * 7 + ["b"] * 4
    order = Order(buckets, group_size=2, seed=1, repeats=2)
    assert order.groups_per_epoch == 7 + 4
    groups = [order.group(step) for step in range(order.groups_per_epoch)]
    assert all(len({buckets[i] for i in group}) == 1 for group in groups)
    assert Counter(i for group in groups for i in group) == dict.fromkeys(range(11), 2)


def test_an_incomplete_update_is_filled_from_its_bucket():
    order = Order(["a"] * 3, group_size=5, seed=1)
    assert order.groups_per_epoch == 1
    assert set(order.group(0)) == {0, 1, 2}
    assert len(order.group(0)) == 5


def test_the_order_depends_on_seed_and_epoch_alone():
    order = Order(range(1), 1, 0)
    assert order.group(5) == [0]
    many = Order(["a"] * 20, 2, seed=3)
    forward = [many.group(step) for step in range(30)]
    jumping = Order(["a"] * 20, 2, seed=3)
    assert [jumping.group(step) for step in reversed(range(30))] == forward[::-1]
    assert forward[:10] != forward[10:20]
    assert [Order(["a"] * 20, 2, seed=4).group(step) for step in range(10)] != forward[:10]


def test_draws_are_a_function_of_their_purpose():
    one, same, other = (torch.rand(3, generator=generator_for("x", number)) for number in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
