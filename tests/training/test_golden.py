"""Six updates of the reference's finetuning, through our trainer."""

from __future__ import annotations

import json

import pytest
import torch
from ctrlora_files import base_weights
from host_models import GOLDENS, build_model
from nextcontrol.models.ctrlora import CtrLoRA
from nextcontrol.models.ctrlora_file import LORA, check_base
from nextcontrol.nodes.host.backbone import HostBackbone, training_mode
from nextcontrol.training.backbone import Batch
from nextcontrol.training.config import TrainConfig
from nextcontrol.training.method_ctrlora import CtrLoRAMethod
from nextcontrol.training.objective import add_noise, sd_alphas
from nextcontrol.training.trainable import condition_of, start_condition
from nextcontrol.training.trainer import Trainer
from safetensors.torch import load_file
from seeded import seeded_tensor, seeded_weight
from torch.testing import assert_close

REPORT = json.loads((GOLDENS / "ctrlora_train.json").read_text())
EXPECTED = load_file(GOLDENS / "ctrlora_train.safetensors")
HEADS = 4
CONFIG = TrainConfig(steps=6, rank=8, learning_rate=1e-3, weight_decay=0.01, preview_every=0, validation_pairs=0)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    """The reference's small UNet in the host's class; made in inference mode, as a loader node makes it."""
    with torch.inference_mode():
        built = build_model("ctrlora", seed=77)
        for key, parameter in built.model.diffusion_model.named_parameters():
            parameter.data.copy_(seeded_weight(f"unet.{key}", REPORT["unet_shapes"][key], 0))
    return built


def base_network():
    weights = base_weights()
    network = CtrLoRA(check_base(weights, "x"), device="meta")
    network.load_state_dict({key: tensor.clone() for key, tensor in weights.items()}, assign=True)
    return network


def build_trainer(backbone, **changes):
    base = base_network()
    condition = start_condition(base, 8, seed=0)
    tensors = {
        key: seeded_tensor(key, tensor.shape) / 8 if key.endswith(f"{LORA}down.weight") else tensor.detach()
        for key, tensor in condition.tensors().items()
    }
    config = TrainConfig(**{**CONFIG.__dict__, **changes})
    ready = condition_of({k: t.clone() for k, t in tensors.items()})
    return Trainer(CtrLoRAMethod(base, ready, HEADS, config.gradient_checkpointing), backbone, config)


def batch(step, seed=0, rows=slice(0, 2)):
    names = [f"x0_{step}", f"hint_latent_{step}", f"noise_{step}"]
    latents, hints, noise = (seeded_tensor(name, [2, 4, 8, 12], seed)[rows].clone() for name in names)
    context = seeded_tensor(f"context_{step}", [2, 77, 96], seed)[rows].clone()
    return Batch(latents, hints, context, noise, torch.tensor(REPORT["timesteps"][step])[rows], ("pair",))


@pytest.fixture
def training(model):
    with training_mode([model], is_cast=False):
        yield HostBackbone(model)


def test_losses_first_prediction_and_norms_are_the_references(training):
    trainer = build_trainer(training)
    first = batch(0)
    noisy = add_noise(first.latents, first.noise, first.timesteps, training.objective.alphas)
    prediction = trainer.predict(noisy, first.hints, first.timesteps, first.context)
    assert_close(prediction.detach(), EXPECTED["train.first_prediction"], rtol=1e-4, atol=1e-4)
    losses = [trainer.update([batch(step)]).loss for step in range(6)]
    assert_close(torch.tensor(losses), EXPECTED["train.losses"], rtol=1e-4, atol=0)
    norms = torch.stack([trainer.method.condition.tensor(key).detach().norm() for key in REPORT["trainable"]])
    assert_close(norms, EXPECTED["train.final_norms"], rtol=1e-4, atol=1e-6)


def test_another_seed_predicts_what_the_hosts_own_forward_pass_does(training, model):
    """The golden has one seed. The host adds the control in its own way here, which cannot be trained through."""
    trainer = build_trainer(training)
    for step in range(3):
        given = batch(step, seed=1)
        noisy = add_noise(given.latents, given.noise, given.timesteps, training.objective.alphas)
        with torch.no_grad():
            controls = trainer.method.control(noisy, given.hints, given.timesteps, given.context, "").residuals
            control = {"middle": controls[-1:], "output": controls[:-1]}
            unet = model.model.diffusion_model
            expected = unet(noisy, given.timesteps, given.context, control=control, transformer_options={})
            ours = trainer.predict(noisy, given.hints, given.timesteps, given.context)
        assert_close(ours, expected, rtol=1e-4, atol=1e-5)
        loss = (expected - given.noise).square().mean().item()
        assert trainer.update([given]).loss == pytest.approx(loss, rel=1e-4)


def test_the_schedule_is_stable_diffusions(training):
    assert_close(training.objective.alphas, sd_alphas(), rtol=1e-6, atol=0)


def test_exactly_the_listed_tensors_move(training, model):
    before = {key: tensor.clone() for key, tensor in model.model.diffusion_model.named_parameters()}
    trainer = build_trainer(training)
    base = {key: tensor.clone() for key, tensor in trainer.method.base.named_parameters()}
    start = {key: tensor.detach().clone() for key, tensor in trainer.method.condition.tensors().items()}
    assert set(start) == set(REPORT["trainable"])
    for step in range(2):
        trainer.update([batch(step)])
    assert all(not torch.equal(start[key], tensor) for key, tensor in trainer.method.condition.tensors().items())
    assert all(torch.equal(base[key], tensor) for key, tensor in trainer.method.base.named_parameters())
    assert all(torch.equal(before[key], tensor) for key, tensor in model.model.diffusion_model.named_parameters())
    frozen = [*trainer.method.base.parameters(), *model.model.diffusion_model.parameters()]
    assert all(tensor.grad is None for tensor in frozen)


def test_two_accumulated_batches_of_one_are_a_batch_of_two(training):
    whole, parts = build_trainer(training, batch_size=2), build_trainer(training, accumulation_steps=2)
    one = whole.update([batch(0, seed=3)])
    other = parts.update([batch(0, 3, slice(0, 1)), batch(0, 3, slice(1, 2))])
    assert other.loss == pytest.approx(one.loss, rel=1e-6)
    assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-6)
    for key, tensor in whole.method.condition.tensors().items():
        # The gradients, not the weights: one near zero decides the sign of AdamW's first step.
        grad = parts.method.condition.tensor(key).grad
        assert_close(grad, tensor.grad, rtol=1e-3, atol=1e-5 * max(tensor.grad.norm().item(), 1e-6))


def test_checkpointing_changes_no_number(training, model):
    plain = build_trainer(training)
    kept = build_trainer(HostBackbone(model, checkpointing=True), gradient_checkpointing=True)
    for step in range(2):
        assert plain.update([batch(step)]) == kept.update([batch(step)])


def test_half_precision_follows_full_precision(training):
    exact, half = build_trainer(training), build_trainer(training, precision="bf16")
    for step in range(2):
        one, other = exact.update([batch(step)]), half.update([batch(step)])
        assert other.loss == pytest.approx(one.loss, rel=0.02)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=0.1)
    assert all(tensor.dtype == torch.float32 for tensor in half.method.condition.tensors().values())


def test_training_leaves_the_models_weights_where_they_are(model):
    unet = model.model.diffusion_model
    before = {key: (tensor.data_ptr(), tensor.clone()) for key, tensor in unet.named_parameters()}
    with training_mode([model], is_cast=True):
        trainer = build_trainer(HostBackbone(model))
        trainer.update([batch(0)])
        assert any(module.comfy_cast_weights for module in unet.modules() if hasattr(module, "comfy_cast_weights"))
    for key, tensor in unet.named_parameters():
        assert tensor.data_ptr() == before[key][0]
        assert torch.equal(tensor, before[key][1])
    assert not any(getattr(module, "comfy_cast_weights", False) for module in unet.modules())
