"""What ControlNeXt trains: gradients in fp64, the start, the options, learning rates and what is published."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from nextcontrol.models.controlnext import GENERATIONS, ControlNeXt, load_controlnext
from nextcontrol.models.injection import INJECTIONS, cross_normalize
from nextcontrol.training.backbone import Batch, Control
from nextcontrol.training.config import TrainConfig
from nextcontrol.training.method_controlnext import MODULE, UNET, ControlNeXtMethod, ControlNeXtOptions, start_module
from nextcontrol.training.objective import DiscreteObjective, sd_alphas
from nextcontrol.training.trainer import Trainer
from seeded import seeded_tensor
from torch.nn import functional as F
from torch.testing import assert_close

CHANNELS = 8
SMALL = replace(
    GENERATIONS[2], stem=(4, 4, 16), blocks=((16, 16), (16, 16)), mid=16, out=CHANNELS, time_features=8, time_width=8
)
NAMES = {"first.weight": "down.to_out.0.weight", "second.weight": "up.to_out.0.weight"}


pytestmark = pytest.mark.usefixtures("one_thread", "gradients")


def own_weights():
    """Of the backbone below."""
    return {
        "first.weight": seeded_tensor("first", [CHANNELS, 4, 3, 3]) / 6,
        "second.weight": seeded_tensor("second", [4, CHANNELS, 3, 3]) / 8,
    }


class SmallBackbone:
    """Two convolutions; the control enters between them."""

    device = torch.device("cpu")

    def __init__(self):
        self.objective = DiscreteObjective(sd_alphas())
        self.seen: list[Control] = []

    def predict(self, noisy, times, context, control, extras):  # noqa: ARG002
        """(B, 4, h, w)."""
        self.seen.append(control)
        weights = own_weights() | dict(control.weights)
        feature = F.conv2d(noisy, weights["first.weight"], padding=1)
        return F.conv2d(feature if control.inject is None else control.inject(feature), weights["second.weight"], padding=1)


def method_of(variant="sd15", checkpointing=False, **options):
    chosen = ControlNeXtOptions(**options)
    return ControlNeXtMethod(start_module(SMALL, chosen, 0), INJECTIONS[variant], chosen, own_weights(), NAMES, checkpointing)


def batch(rows=2):
    latents, noise = seeded_tensor("latents", [rows, 4, 8, 8]), seeded_tensor("noise", [rows, 4, 8, 8])
    hints = seeded_tensor("hints", [rows, 3, 32, 32]).sigmoid()
    return Batch(latents, hints, torch.zeros(rows, 1, 1), noise, torch.tensor([300, 700])[:rows], ("a", "b")[:rows])


def double(name, *shape):
    return seeded_tensor(name, shape).double().requires_grad_()


@pytest.mark.parametrize("is_normalized", [True, False])
@pytest.mark.parametrize("variant", list(INJECTIONS))
def test_gradients_are_those_of_finite_differences_through_feature_and_control(variant, is_normalized):
    injection = replace(INJECTIONS[variant], is_normalized=is_normalized)

    def added(feature, control):
        return feature + cross_normalize(control, feature, injection) * injection.multiplier(0.7, is_uncond=False)

    feature, control = double("feature", 2, 2, 2, 3), double("control", 2, 2, 5, 5)
    assert added(feature, control).dtype == torch.float64
    assert torch.autograd.gradcheck(added, (feature, control), atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_the_method_are_those_of_finite_differences(checkpointing):
    method = method_of("sdxl", checkpointing, scale=0.35)
    method.network.double()
    bias = method.network.time_embedding.linear_1.bias
    hints = seeded_tensor("hints", [2, 3, 8, 8]).sigmoid().double()

    def added(feature, _bias):
        control = method.control(feature, hints, torch.tensor([10, 700]), feature, "")
        return control.inject(feature)

    feature = double("feature", 2, CHANNELS, 1, 1)
    assert torch.autograd.gradcheck(added, (feature, bias), atol=1e-8, rtol=1e-6, fast_mode=True)


def test_the_control_is_the_formula_of_the_paper_times_the_scale():
    method = method_of(scale=0.35)
    given, feature = batch(), seeded_tensor("feature", [2, CHANNELS, 2, 2]) * 3 + 1
    found = method.control(given.latents, given.hints, given.timesteps, given.context, "").inject(feature)
    for row in range(2):
        control = F.adaptive_avg_pool2d(method.network(given.hints[row][None], given.timesteps[row][None]), 2)[0]
        h = feature[row]
        expected = h + 0.35 * ((control - control.mean()) / control.std() * h.std() + h.mean())
        assert_close(found[row], expected, rtol=1e-4, atol=1e-4)


def test_the_gain_of_a_variant_counts():
    assert method_of("svd_v2", scale=0.5).multiplier == pytest.approx(0.1)


def test_a_new_module_is_drawn_as_torch_draws_it():
    config = replace(SMALL, stem=(64, 64, 64), blocks=((64, 64), (64, 64)), mid=64, out=64, time_features=64, time_width=64)
    found, usual = start_module(config, ControlNeXtOptions(), 3), ControlNeXt(config)
    for (name, tensor), (_, other) in zip(found.named_parameters(), usual.named_parameters(), strict=True):
        limit = usual.get_submodule(name.rpartition(".")[0]).weight[0].numel() ** -0.5
        if other.unique().numel() == 1:
            assert torch.equal(tensor, other), name
        else:
            assert tensor.abs().max() <= limit
            assert tensor.std().item() == pytest.approx(limit / 3**0.5, rel=0.3 if tensor.ndim == 1 else 0.05), name
    again, other = start_module(config, ControlNeXtOptions(), 3), start_module(config, ControlNeXtOptions(), 4)
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), again.parameters(), strict=True))
    assert not torch.equal(found.mid_convs[1].weight, other.mid_convs[1].weight)


def test_a_zero_convolution_starts_from_exactly_no_control_and_learns():
    trainer, backbone = trainer_of(method_of(normalization="zero_convolution"))
    given = batch()
    arguments = (given.timesteps, given.context)
    plain, first = (trainer.predict(given.latents, hints, *arguments) for hints in (None, given.hints))
    assert torch.equal(plain, first)
    trainer.update([given])
    later = backbone.seen[-1]
    feature = torch.ones(2, CHANNELS, 8, 8)
    moved = trainer.method.control(given.latents, given.hints, *arguments, "").inject(feature)
    assert later.site == "after_down0"
    assert (moved - feature).abs().max() > 1e-5


def trainer_of(method, **settings):
    backbone = SmallBackbone()
    config = TrainConfig(**{"steps": 20, "learning_rate": 1e-3, "weight_decay": 0.0, **settings})
    return Trainer(method, backbone, config), backbone


@pytest.mark.parametrize("factor", [10.0, 3.0])
def test_the_module_learns_at_its_own_rate(factor):
    """The first update of AdamW moves every number by the learning rate, whatever its gradient."""
    method = method_of(control_rate_factor=factor)
    before = {name: tensor.detach().clone() for name, tensor in method.parameters().items()}
    trainer_of(method)[0].update([batch()])
    moved = {name: (tensor.detach() - before[name]).abs().max().item() for name, tensor in method.parameters().items()}
    assert all(step == pytest.approx(1e-3, rel=0.02) for name, step in moved.items() if name.startswith(UNET))
    module = [step for name, step in moved.items() if name.startswith(MODULE)]
    assert max(module) == pytest.approx(factor * 1e-3, rel=0.02)
    assert sum(step == pytest.approx(factor * 1e-3, rel=0.02) for step in module) > len(module) / 2


def test_the_loss_falls():
    trainer, _ = trainer_of(method_of())
    losses = [trainer.update([batch()]).loss for _ in range(20)]
    assert losses[-1] < 0.9 * losses[0]


def test_what_is_published_makes_the_trained_weights_again():
    method = method_of()
    trainer, _ = trainer_of(method)
    for _ in range(3):
        trainer.update([batch()])
    files = method.published(trainer.result())
    assert list(files) == ["", "_unet"]
    for name, original in own_weights().items():
        assert_close(original + files["_unet"][NAMES[name]], method.weights[name], rtol=1e-6, atol=1e-7)
        assert files["_unet"][NAMES[name]].abs().max() > 1e-3
    network = load_controlnext(files[""])
    assert_close(network(batch().hints, batch().timesteps), method.network(batch().hints, batch().timesteps))
    assert all(tensor.device.type == "cpu" and not tensor.requires_grad for own in files.values() for tensor in own.values())


def test_the_average_is_what_is_published_where_there_is_one():
    method = method_of()
    trainer, _ = trainer_of(method, ema_decay=0.5)
    for _ in range(3):
        trainer.update([batch()])
    average = trainer.result()
    files = method.published(average)
    key = "mid_convs.1.weight"
    assert torch.equal(files[""][key], average[MODULE + key])
    assert not torch.equal(files[""][key], method.network.get_parameter(key))
    assert_close(files["_unet"][NAMES["first.weight"]], average[f"{UNET}first.weight"] - own_weights()["first.weight"])


def test_the_originals_are_copies():
    given = own_weights()
    chosen = ControlNeXtOptions()
    method = ControlNeXtMethod(start_module(SMALL, chosen, 0), INJECTIONS["sd15"], chosen, given, NAMES)
    for tensor in given.values():
        tensor.zero_()
    files = method.published(method.parameters())
    assert all(tensor.abs().max() == 0 for tensor in files["_unet"].values())


@pytest.mark.parametrize(
    ("family", "part", "expected"),
    [
        ("sd15", "auto", "ab"), ("sdxl", "auto", "b"), ("svd", "auto", "abc"), ("sdxl", "to_out", "ab"),
        ("sd15", "attn2_to_out", "b"), ("sdxl", "all", "abc"), ("sd15", "none", ""),
    ],
)  # fmt: skip
def test_the_part_of_the_unet_is_that_of_the_reference_unless_told_otherwise(family, part, expected):
    block = "down_blocks.1.attentions.0.transformer_blocks.0"
    names = {"a": f"{block}.attn1.to_out.0.weight", "b": f"{block}.attn2.to_out.0.bias", "c": f"{block}.attn2.to_q.weight"}
    options = ControlNeXtOptions(unet_part=part)
    assert "".join(key for key, name in names.items() if options.is_trained(name, family)) == expected


def test_wrong_options_are_one_sentence():
    with pytest.raises(ValueError, match=r"^scale \(0\.0\) must be above 0; control_rate_factor \(nan\) must be above 0\.$"):
        ControlNeXtOptions(scale=0.0, control_rate_factor=float("nan"))
    with pytest.raises(ValueError, match=r"unet_part \('to_q'\) must be auto or none or .*; normalization \('batch'\) must be"):
        ControlNeXtOptions(unet_part="to_q", normalization="batch")
    with pytest.raises(ValueError, match=r"width \(0\.3\) must be 0\.25 or 0\.5 or 1\.0"):
        ControlNeXtOptions(width=0.3)
    with pytest.raises(ValueError, match=r"speed is no option of controlnext; scale \('1'\) must be of the type float"):
        ControlNeXtOptions.from_values({"speed": 1, "scale": "1"})
    assert ControlNeXtOptions.from_values({"scale": 1, "unet_part": "none"}) == ControlNeXtOptions(unet_part="none")
