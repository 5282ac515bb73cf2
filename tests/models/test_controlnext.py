"""The control module: built from tensors alone, in the published sizes and in others, and equal to the reference."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from host_models import GOLDENS, SHAPES, narrow_module
from nextcontrol.models.controlnext import GENERATIONS, ControlNeXt, load_controlnext, read_config
from nextcontrol.models.injection import INJECTIONS
from nextcontrol.models.state_dict import shapes_of
from safetensors.torch import load_file
from seeded import seeded_state_dict, seeded_tensor
from torch.testing import assert_close

EXPECTED = load_file(GOLDENS / "controlnext.safetensors")
REPORT = json.loads((GOLDENS / "controlnext_report.json").read_text())


@pytest.mark.parametrize("variant", SHAPES)
def test_the_module_computes_what_the_reference_computes(variant):
    network = load_controlnext(seeded_state_dict(SHAPES[variant]["control"]), INJECTIONS[variant].stem_padding)
    is_video = variant.startswith("svd")
    hint = 0.25 * seeded_tensor("hint", [1, 3, 3, 64, 96] if is_video else [2, 3, 64, 96]) + 0.5
    timesteps = torch.full((3,), 0.25 * math.log(15.59)) if is_video else torch.tensor([500.0, 20.0])
    assert_close(network(hint.reshape(-1, 3, 64, 96), timesteps), EXPECTED[f"{variant}.control"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", SHAPES)
def test_published_files_have_the_published_sizes(variant):
    shapes = {key: tuple(shape) for key, shape in SHAPES[variant]["control"].items()}
    config = read_config(shapes)
    assert config == GENERATIONS[INJECTIONS[variant].generation - 1]
    module = ControlNeXt(config, device="meta").state_dict()
    assert shapes_of(module) == shapes
    assert sum(tensor.numel() for tensor in module.values()) == REPORT[variant]["control_params"]


@pytest.mark.parametrize("generation", [1, 2, 3])
@pytest.mark.parametrize(("width", "time"), [(32, 64), (64, 48), (96, 128)])
def test_an_odd_sized_module_is_read_back_from_its_tensors(generation, width, time):
    first = (3, width) if generation == 1 else (width, width)
    blocks = (first, (width, 2 * width), (2 * width, 2 * width))[: 2 if generation == 3 else 3]
    stem = () if generation == 1 else (width // 2, width // 2, width)
    config = replace(
        GENERATIONS[generation - 1], stem=stem, blocks=blocks, mid=2 * width, out=24, time_features=time, time_width=2 * time
    )
    module = ControlNeXt(config)
    assert read_config(shapes_of(module.state_dict())) == config
    network = load_controlnext(module.state_dict())
    assert network.config.generation == generation
    assert_close(network(torch.ones(1, 3, 64, 64), torch.ones(1)), module(torch.ones(1, 3, 64, 64), torch.ones(1)))


@pytest.mark.parametrize(
    ("height", "width", "padded", "unpadded", "pooled"),
    [
        (512, 512, (64, 64), (63, 63), (16, 16)), (576, 1024, (72, 128), (71, 127), (18, 32)),
        (992, 768, (124, 96), (123, 95), (31, 24)), (1032, 840, (129, 105), (128, 104), (32, 26)),
    ],
)  # fmt: skip
def test_controls_have_the_sizes_of_the_specification(height, width, padded, unpadded, pooled):
    for generation, padding, expected in ((1, 1, padded), (3, 1, padded), (3, 0, unpadded), (2, 0, pooled)):
        network = ControlNeXt(GENERATIONS[generation - 1], padding, device="meta")
        control = network(torch.empty(1, 3, height, width, device="meta"), torch.empty(1, device="meta"))
        assert control.shape[-2:] == expected


@pytest.mark.parametrize("generation", [1, 2, 3])
def test_a_hint_that_is_read_once_serves_every_timestep(generation):
    network = load_controlnext(narrow_module(generation))
    hint = seeded_tensor("hint", [2, 3, 32, 48])
    features = network.read_hint(hint)
    for time in (0.0, 20.0, 999.0):
        timesteps = torch.full((2,), time)
        assert torch.equal(network.control_at(features, timesteps), network(hint, timesteps))
    assert not torch.equal(network(hint, torch.zeros(2)), network(hint, torch.full((2,), 999.0)))


def test_loading_copies_nothing_and_asks_for_no_gradients():
    tensors = narrow_module()
    network = load_controlnext(tensors)
    for key, parameter in network.state_dict(keep_vars=True).items():
        assert parameter.data_ptr() == tensors[key].data_ptr()
        assert not parameter.requires_grad
