"""The encoder of the host's UNet as a control network: the same numbers, with what is patched on it."""

from __future__ import annotations

import comfy.model_management
import comfy.weight_adapter
import pytest
import torch
from host_models import UNET_CONFIGS, build_model
from nextcontrol.models.adapted import LORA
from nextcontrol.models.ctrlora import CtrLoRA
from nextcontrol.nodes.host.encoder_copy import copy_encoder
from seeded import seeded_tensor

KEY = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"


pytestmark = pytest.mark.usefixtures("one_thread")


def with_lora(model):
    """A clone with a LoRA of rank 2 on one weight, at half its strength."""
    shape = model.model.state_dict()[KEY].shape
    up, down = seeded_tensor("up", [shape[0], 2]), seeded_tensor("down", [2, shape[1]])
    clone = model.clone()
    clone.add_patches({KEY: comfy.weight_adapter.LoRAAdapter(set(), (up, down, None, None, None, None))}, 0.5)
    return clone, 0.5 * up @ down


def test_a_copy_computes_what_the_encoder_computes():
    """Where the UNet's features leave each block, they are the network's: an identity in the place of each zero convolution."""
    model = build_model("ctrlora")
    tensors, config = copy_encoder(model)
    network = CtrLoRA(config)
    network.load_state_dict(tensors)
    for convolution in (*(stem[0] for stem in network.zero_convs), network.middle_block_out[0]):
        assert convolution.weight.abs().max() == convolution.bias.abs().max() == 0
        convolution.weight.copy_(torch.eye(len(convolution.weight))[:, :, None, None])
    comfy.model_management.load_models_gpu([model])
    unet, seen = model.model.diffusion_model, []
    blocks = [*unet.input_blocks, unet.middle_block]
    hooks = [block[-1].register_forward_hook(lambda _layer, _given, x: seen.append(x.clone())) for block in blocks]
    noisy, times, text = seeded_tensor("x", [2, 4, 8, 8]), torch.tensor([10.0, 900.0]), seeded_tensor("t", [2, 9, 96])
    unet(noisy, times, text)
    for hook in hooks:
        hook.remove()
    for expected, own in zip(seen, network(noisy, times, text, 4), strict=True):
        torch.testing.assert_close(own, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_a_lora_on_the_model_is_in_the_copy_whatever_is_loaded():
    model = build_model("ctrlora")
    plain, _ = copy_encoder(model)
    patched, difference = with_lora(model)
    name = KEY.removeprefix("diffusion_model.")
    for loaded in (model, patched):
        comfy.model_management.load_models_gpu([loaded])
        own, _ = copy_encoder(patched)
        torch.testing.assert_close(own[name], plain[name] + difference, atol=1e-6, rtol=0)
        assert torch.equal(copy_encoder(model)[0][name], plain[name])
    assert all(torch.equal(own[key], tensor) for key, tensor in plain.items() if key != name)
    comfy.model_management.load_models_gpu([model])


def test_a_copy_is_fp32_shares_no_memory_and_can_be_trained():
    model = build_model("ctrlora")
    tensors, _ = copy_encoder(model)
    own = {t.data_ptr() for t in model.model.state_dict().values()}
    for key, tensor in tensors.items():
        assert tensor.dtype == torch.float32
        assert tensor.data_ptr() not in own
        assert not tensor.is_inference(), key
        assert LORA not in key


@pytest.mark.parametrize("variant", ["sdxl_narrow", "svd_narrow"])
def test_another_family_is_refused(variant):
    with pytest.raises(ValueError, match=r"The model is of the family (SDXL|SVD_img2vid), whose .*: load an SD1.5 checkpoint"):
        copy_encoder(build_model(variant))


def test_an_encoder_that_lacks_a_block_is_refused(monkeypatch):
    """As the stand-in of a checkpoint may have it: no attention in the middle."""
    monkeypatch.setitem(UNET_CONFIGS, "ctrlora_bare", UNET_CONFIGS["ctrlora"] | {"transformer_depth_middle": -1})
    with pytest.raises(
        ValueError, match=r"The encoder of the model is built otherwise than SD1\.5's .*: load an SD1\.5 checkpoint"
    ):
        copy_encoder(build_model("ctrlora_bare"))
