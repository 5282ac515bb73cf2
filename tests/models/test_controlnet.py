"""The ControlNet alone: the host's own numbers, its gradients with less memory, and how it starts."""

from __future__ import annotations

import pytest
import torch
from nextcontrol.models.controlnet import HINT_BLOCK, ControlNet
from nextcontrol.models.ctrlora import CtrLoRA, read_config
from nextcontrol.models.state_dict import shapes_of
from nextcontrol.training.method_controlnet import ControlNetMethod, start_network
from seeded import seeded_state_dict, seeded_tensor
from stacking import native

HEADS = 4
NOISY, TEXT = seeded_tensor("x", [2, 4, 8, 12]), seeded_tensor("t", [2, 9, 96])
HINT = seeded_tensor("h", [2, 3, 64, 96]).sigmoid()
TIMES = torch.tensor([17.0, 801.0])


pytestmark = pytest.mark.usefixtures("one_thread")


def hosts():
    """ComfyUI's own network, with seeded weights in every tensor."""
    return native().control_model


def network():
    weights = {key: tensor.detach() for key, tensor in hosts().state_dict().items()}
    built = ControlNet(read_config(shapes_of(weights)), device="meta")
    built.load_state_dict(weights, assign=True)
    return built


def encoder():
    """Of the same sizes, with zero convolutions that are zero."""
    shapes = {key: tensor.shape for key, tensor in CtrLoRA(network().config, device="meta").state_dict().items()}
    weights = seeded_state_dict(shapes)
    return {key: torch.zeros(t.shape) if "zero_convs" in key or "middle_block_out" in key else t for key, t in weights.items()}


def test_the_controls_are_the_hosts_own():
    own = network()(NOISY, HINT, TIMES, TEXT, HEADS)
    expected = hosts()(x=NOISY, hint=HINT, timesteps=TIMES, context=TEXT)
    for one, other in zip(own, [*expected["output"], *expected["middle"]], strict=True):
        assert one.shape == other.shape
        assert ((one - other).norm() / other.norm()).item() < 1e-5


def test_hint_latent_text_and_time_all_count():
    built = network()
    plain = built(NOISY, HINT, TIMES, TEXT, HEADS)
    for changed in ((NOISY * 0.9, HINT, TIMES, TEXT), (NOISY, HINT * 0.9, TIMES, TEXT), (NOISY, HINT, TIMES + 50, TEXT),
                    (NOISY, HINT, TIMES, TEXT * 0.9)):  # fmt: skip
        assert all(((a - b).norm() / a.norm()) > 1e-4 for a, b in zip(plain[1:], built(*changed, HEADS)[1:], strict=True))


def test_checkpointing_changes_neither_controls_nor_gradients():
    found, config = [], network().config
    with torch.inference_mode(mode=False), torch.enable_grad():
        for checkpointing in (False, True):
            built = ControlNet(config, device="meta")
            built.load_state_dict({key: tensor.detach().clone() for key, tensor in hosts().state_dict().items()}, assign=True)
            method = ControlNetMethod(built, HEADS, checkpointing)
            given = (tensor.clone() for tensor in (NOISY, HINT, TIMES, TEXT))
            controls = method.control(*given, "").residuals
            torch.stack([control.square().mean() for control in controls]).sum().backward()
            found.append({key: tensor.grad for key, tensor in method.parameters().items()})
    assert found[0].keys() == found[1].keys()
    for key, gradient in found[0].items():
        assert gradient.abs().max() > 0, key
        torch.testing.assert_close(found[1][key], gradient)


def test_at_its_start_the_encoder_is_a_copy_and_every_control_is_zero():
    weights = encoder()
    built = start_network(weights, network().config, "convolutions", 3)
    assert isinstance(built, ControlNet)
    own = built.state_dict()
    assert all(torch.equal(own[key], tensor) for key, tensor in weights.items())
    for one in built(NOISY, HINT, TIMES, TEXT, HEADS):
        assert one.abs().max() == 0


def test_the_hint_encoder_starts_as_torch_does_with_a_zero_convolution_at_its_end():
    weights, config = encoder(), network().config
    first, again, other = (start_network(weights, config, "convolutions", seed).state_dict() for seed in (3, 3, 4))
    drawn = [key for key in first if key.startswith(HINT_BLOCK) and not key.startswith(f"{HINT_BLOCK}14.")]
    assert len(drawn) == 14
    for key in drawn:
        bound = first[f"{key.rpartition('.')[0]}.weight"][0].numel() ** -0.5
        assert 0.8 * bound < first[key].abs().max() <= bound
        assert torch.equal(first[key], again[key])
        assert not torch.equal(first[key], other[key])
    assert first[f"{HINT_BLOCK}14.weight"].abs().max() == first[f"{HINT_BLOCK}14.bias"].abs().max() == 0


def test_with_the_vae_it_is_a_base_of_ctrlora_that_does_not_see_the_noisy_latent():
    weights = encoder()
    method = ControlNetMethod(start_network(weights, network().config, "vae", 3), HEADS)
    assert method.hint_form == "latent"
    assert method.parameters().keys() == weights.keys()
    with torch.no_grad():
        for key, tensor in method.parameters().items():
            tensor.copy_(hosts().state_dict()[key])
    base = CtrLoRA(method.network.config, device="meta")
    base.load_state_dict({key: tensor.detach() for key, tensor in method.parameters().items()}, assign=True)
    expected = base(NOISY, TIMES, TEXT, HEADS)
    for noisy in (NOISY, NOISY * 2):
        own = method.control(noisy, NOISY, TIMES, TEXT, "").residuals
        assert all(torch.equal(one, other) for one, other in zip(own, expected, strict=True))
