"""On a model whose weights the host keeps quantized, controls are applied as on its dequantized twin; training refuses it."""

from __future__ import annotations

import json

import comfy.model_management
import comfy.supported_models
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from host_models import UNET_CONFIGS, evaluate, make_model
from narrow import apply, control_for, hints, latents, save, text
from nextcontrol.nodes.host import train_job
from nextcontrol.nodes.host.quantized import is_quantized
from seeded import seeded_tensor
from torch.testing import assert_close
from train_stand_ins import small_job, write_dataset

KEY = "input_blocks.1.1.transformer_blocks.0.attn1.to_out.0.weight"
FORMAT = "float8_e4m3fn"
IS_PACKED_IN_MANY_WAYS = hasattr(comfy.supported_models.SD15, "quant_config")
if IS_PACKED_IN_MANY_WAYS:
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
else:
    QUANT_ALGOS = {FORMAT: None}
FORMS = [form for form in (FORMAT, "int8_tensorwise", "nvfp4") if form in QUANT_ALGOS]
"""Of nvfp4 two numbers share a byte, so that a packed weight has another shape."""

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(
        not IS_PACKED_IN_MANY_WAYS and not hasattr(comfy.supported_models.SD15, "layer_quant_config"),
        reason="this host has no quantized weights",
    ),
]


def quantized_model(form: str = FORMAT, variant: str = "sd15_narrow") -> ModelPatcher:
    """A narrow model whose attention outputs are quantized, as the host loads such a checkpoint."""
    weights = make_model(variant).model.diffusion_model.state_dict()
    layers = [key.removesuffix(".weight") for key in weights if key.endswith("to_out.0.weight")]
    for layer in layers:
        weights |= packed(layer, weights.pop(f"{layer}.weight"), form)
        if IS_PACKED_IN_MANY_WAYS:
            said = json.dumps({"format": form}).encode()
            weights[f"{layer}.comfy_quant"] = torch.tensor(list(said), dtype=torch.uint8)
    arguments = UNET_CONFIGS[variant]
    config = comfy.supported_models.SD15(
        {key: value[:] if isinstance(value, list) else value for key, value in arguments.items()}
    )
    config.unet_config["num_heads"] = arguments["num_heads"]
    if hasattr(config, "quant_config"):
        config.quant_config = {"mixed_ops": True}
    else:
        config.layer_quant_config = {layer: {"format": FORMAT} for layer in layers}
    config.manual_cast_dtype = torch.float32
    model = config.get_model({}, "", device=None)
    model.diffusion_model.load_state_dict(weights, strict=False)
    device = comfy.model_management.get_torch_device()
    return ModelPatcher(model.eval(), load_device=device, offload_device=device)


def packed(layer: str, weight: torch.Tensor, form: str) -> dict[str, torch.Tensor]:
    """A weight as a checkpoint holds it."""
    if form == FORMAT:
        scale = weight.abs().max() / torch.finfo(torch.float8_e4m3fn).max
        return {f"{layer}.weight": (weight / scale).to(torch.float8_e4m3fn), f"{layer}.weight_scale": scale}
    return QuantizedTensor.from_float(weight, QUANT_ALGOS[form]["comfy_tensor_layout"]).state_dict(f"{layer}.weight")


def to_plain(tensor: torch.Tensor) -> torch.Tensor:
    """The numbers that a weight stands for."""
    return tensor.dequantize().float() if is_quantized(tensor) else tensor


def twin_of(model: ModelPatcher) -> ModelPatcher:
    """The same numbers in ordinary weights."""
    twin = make_model("sd15_narrow")
    for name, parameter in twin.model.diffusion_model.named_parameters():
        path, _, leaf = name.rpartition(".")
        parameter.data.copy_(to_plain(getattr(model.model.diffusion_model.get_submodule(path), leaf)))
    return twin


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", ["replace", "delta", "auto"])
def test_a_control_with_weights_of_the_unet_is_applied(base_folder, mode, form):
    model = quantized_model(form)
    layer = model.model.diffusion_model.get_submodule(KEY.removesuffix(".weight"))
    assert is_quantized(layer.weight)
    own = to_plain(layer.weight)
    tensor = own + seeded_tensor("tuned", [64, 64]) / 40 if mode != "delta" else seeded_tensor("tuned", [64, 64]) / 40
    name = save(base_folder, f"quantized_{mode}_{form}.safetensors", {KEY: tensor})
    control = control_for(base_folder, unet=name, mode=mode)
    expected, found = (evaluate(apply(one, control, hints()), [[text()]], latents(), 3.0)[0] for one in (twin_of(model), model))
    plain = evaluate(model, [[text()]], latents(), 3.0)[0]
    # The host rounds the new weight to fp8 again.
    error = float((found - expected).norm() / (found - plain).norm())
    assert error < 0.05
    assert is_quantized(layer.weight)
    assert_close(to_plain(layer.weight), own)


def test_training_says_that_it_needs_another_checkpoint(base_folder):
    pairs = write_dataset(base_folder, "quantized_pairs")
    job = small_job(base_folder, pairs, "quantized", model=quantized_model())
    with pytest.raises(ValueError, match=r"The model has \d+ quantized weights, and training needs fp32.*not quantized"):
        train_job.train(job)
