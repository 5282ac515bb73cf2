"""ControlNeXt training on the host: what is trained is what the nodes draw with."""

from __future__ import annotations

import pytest
import torch
from host_models import evaluate, prompt
from narrow import WIDTHS, apply, hints, latents, narrow_model
from nextcontrol.nodes.host.backbone import HostBackbone
from nextcontrol.nodes.host.controlnext_file import load_controlnext_file
from nextcontrol.nodes.host.recipe_controlnext import ControlNeXtRecipe
from nextcontrol.nodes.host.train_files import files_for
from nextcontrol.training.backbone import NO_CONTROL
from nextcontrol.training.draws import generator_for
from nextcontrol.training.method_controlnext import ControlNeXtOptions
from safetensors import safe_open
from seeded import seeded_tensor
from torch.testing import assert_close
from train_stand_ins import SmallCLIP, train, write_dataset

FAMILIES = ("sd15", "sdxl")
STEP = 500
POOLED = 1280


class PooledCLIP(SmallCLIP):
    """As SDXL's."""

    def encode_from_tokens(self, tokens, return_pooled=False):
        """The text, and the pooled one."""
        encoded = super().encode_from_tokens(tokens)
        pooled = torch.randn(1, POOLED, generator=generator_for("pooled", tokens))
        return (encoded, pooled) if return_pooled else encoded


class Kept(ControlNeXtRecipe):
    """Keeps the method that was trained."""

    def build(self, model, config):
        """As ever."""
        self.built = super().build(model, config)
        return self.built


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small only wait for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pairs(base_folder):
    return write_dataset(base_folder, "controlnext_pairs")


def run(base_folder, pairs, name, family="sd15", **changes):
    """Train a narrow model; gives the recipe, with its method, and the result."""
    recipe = changes.pop("recipe", None) or Kept(ControlNeXtOptions(**changes.pop("options", {})))
    clip = PooledCLIP(WIDTHS["sdxl"]) if family == "sdxl" else SmallCLIP(WIDTHS["sd15"])
    settings = {"model": narrow_model(family), "clip": clip, "recipe": recipe, "learning_rate": 1e-4, "save_every": 50}
    return recipe, train(base_folder, pairs, name, **settings | changes)


@pytest.fixture(scope="module")
def finished(base_folder, pairs):
    """Both families after 20 updates, as the executor runs them."""
    with torch.inference_mode():
        return {family: run(base_folder, pairs, f"done_{family}", family, steps=20) for family in FAMILIES}


def given(family):
    """(noisy, times, context, extras) of one row."""
    extras = {"pooled": seeded_tensor("pooled", [1, POOLED])} if family == "sdxl" else {}
    return latents(), torch.tensor([STEP]), seeded_tensor("context", [1, 7, WIDTHS[family]]), extras


def in_training(model, family, method, checkpointing=False):
    """What the network in training predicts."""
    noisy, times, context, extras = given(family)
    control = NO_CONTROL if method is None else method.control(noisy, hints().movedim(-1, 1), times, context, "")
    return HostBackbone(model, checkpointing).predict(noisy, times, context, control, extras)


def on_the_host(model, family):
    """What the host's own sampling code predicts for the same."""
    noisy, _, context, extras = given(family)
    if extras:
        extras = {"y": model.model.encode_adm(pooled_output=extras["pooled"], device="cpu", width=96, height=64)}
    return evaluate(model, [[prompt(context, **extras)]], noisy, float(model.get_model_object("model_sampling").sigmas[STEP]))[
        0
    ]


def loaded(result):
    names = (*result.files, "none")
    return load_controlnext_file(names[0], names[1], "auto", "auto")


def header(name):
    with safe_open(files_for(name, "controlnext").main, framework="pt") as file:
        return file.metadata()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_files_in_the_nodes_predict_what_the_trained_network_predicts(finished, family):
    recipe, result = finished[family]
    model = narrow_model(family)
    assert [name.removesuffix(".safetensors") for name in result.files] == [f"done_{family}", f"done_{family}_unet"]
    found, expected = on_the_host(apply(model, loaded(result), hints()), family), in_training(model, family, recipe.built)
    assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found - on_the_host(model, family)).abs().max() > 1e-2
    assert_close(on_the_host(model, family), in_training(model, family, None), rtol=1e-5, atol=1e-5)
