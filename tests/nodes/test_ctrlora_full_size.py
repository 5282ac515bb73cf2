"""The published sizes: a base of 360 million parameters and a LoRA of rank 128, through the nodes."""

from __future__ import annotations

import json

import pytest
import torch
from ctrlora_files import SCALE, run_control
from host_models import GOLDENS, build_model
from nextcontrol.models.ctrlora import CtrLoRA, read_config
from nextcontrol.models.ctrlora_file import is_replaced, linear_names
from safetensors.torch import save_file
from torch.testing import assert_close

SHAPES = {key: tuple(shape) for key, shape in json.loads((GOLDENS / "ctrlora_sd15_base_shapes.json").read_text()).items()}
RANK = 128
SIZE = (16, 16)


def random_weight(key, shape, generator):
    if len(shape) > 1:
        fan_in = torch.Size(shape[1:]).numel()
        return (torch.randn(shape, generator=generator) * fan_in**-0.5).half()
    return (torch.randn(shape, generator=generator) * 0.1 + (1.0 if key.endswith("weight") else 0.0)).half()


@pytest.fixture(scope="module")
def weights():
    """The base and a condition in half precision, keys without prefix."""
    generator = torch.Generator().manual_seed(0)
    base = {key: random_weight(key, shape, generator) for key, shape in SHAPES.items()}
    condition = {key: random_weight(key, shape, generator) for key, shape in SHAPES.items() if is_replaced(key)}
    for name in linear_names(read_config(SHAPES)):
        out, width = SHAPES[f"{name}.weight"]
        condition[f"{name}.lora_layer.down.weight"] = random_weight("x.weight", (RANK, width), generator)
        condition[f"{name}.lora_layer.up.weight"] = random_weight("x.weight", (out, RANK), generator)
    return base, condition


class OneLatent:
    """In the place of a VAE: the one latent of this test."""

    latent_channels, latent_dim = 4, 2
    latent = torch.randn(1, 4, *SIZE, generator=torch.Generator().manual_seed(3)) / SCALE

    def encode(self, pixels):
        """For any picture."""
        return self.latent.expand(len(pixels), -1, -1, -1)


def merged(base, condition):
    """The network as one would merge it by hand."""
    own = {key: condition.get(key, tensor).float() for key, tensor in base.items()}
    for key in condition:
        if key.endswith(".lora_layer.down.weight"):
            name = key.removesuffix(".lora_layer.down.weight")
            own[f"{name}.weight"] = (
                own[f"{name}.weight"] + condition[f"{name}.lora_layer.up.weight"].float() @ condition[key].float()
            )
    return own


@pytest.mark.parametrize("layout", ["safetensors", "pickle"])
def test_base_and_lora_are_the_hand_merged_network_and_not_the_base(layout, weights, base_folder, pack_nodes, tmp_path):
    base, condition = weights
    folder = base_folder / "models" / "ctrlora"
    folder.mkdir(parents=True, exist_ok=True)
    leftover = {key: tensor for key, tensor in condition.items() if "lora_layer" in key}
    files = {"base": base | {key: tensor * 3 for key, tensor in leftover.items()}, "lora": condition}
    names = {}
    for part, tensors in files.items():
        content = {f"control_model.{key}": tensor for key, tensor in tensors.items()}
        names[part] = f"full_{part}.{'safetensors' if layout == 'safetensors' else 'ckpt'}"
        (save_file if layout == "safetensors" else torch.save)(content, folder / names[part])
    assert len(files["base"]) == 488
    assert len(condition) == 246
    (loaded,) = pack_nodes["NextControlLoadCtrLoRABase"].execute(names["base"], False, 0).result
    (control,) = pack_nodes["NextControlLoadCtrLoRA"].execute(loaded, names["lora"], 1.0).result
    (plain,) = pack_nodes["NextControlLoadCtrLoRA"].execute(loaded, names["lora"], 0.0).result

    model, text = build_model("sd15"), torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(4))
    sigma = model.get_model_object("model_sampling").sigmas[500][None]
    hint = torch.zeros(1, 3, 8 * SIZE[0], 8 * SIZE[1])

    def run(one):
        one = one.copy().set_cond_hint(hint, 1.0, (0.0, 1.0), vae=OneLatent())
        found = run_control(one, model, text, sigma, size=SIZE)
        return [*found["output"], *found["middle"]]

    network = CtrLoRA(read_config(SHAPES), device="meta")
    network.load_state_dict(merged(base, condition), assign=True)
    expected = network(OneLatent.latent * SCALE, torch.tensor([500.0]), text)
    found, without = run(control), run(plain)
    assert len(found) == 13
    for one, other, bare in zip(found, expected, without, strict=True):
        assert ((one - other).norm() / other.norm()).item() < 1e-4
        if other is not expected[0]:
            assert ((one - bare).norm() / other.norm()).item() > 0.1
    assert_close(sum(t.numel() for t in base.values()), 360_192_640)
    for path in folder.glob("full_*"):
        path.unlink()
