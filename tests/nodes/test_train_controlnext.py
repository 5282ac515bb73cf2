"""ControlNeXt training on the host: what is trained is what the nodes draw with."""

from __future__ import annotations

import json
from dataclasses import replace

import comfy.latent_formats
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from host_models import evaluate, prompt
from narrow import WIDTHS, apply, control_for, hints, latents, narrow_model, save
from nextcontrol.models.controlnext import GENERATIONS
from nextcontrol.models.injection import INJECTIONS
from nextcontrol.nodes.host import recipe_controlnext, train_job
from nextcontrol.nodes.host.backbone import HostBackbone, training_mode
from nextcontrol.nodes.host.controlnext_file import load_controlnext_file
from nextcontrol.nodes.host.recipe_controlnext import ControlNeXtRecipe
from nextcontrol.nodes.host.train_data import prepare_data
from nextcontrol.nodes.host.train_files import files_for
from nextcontrol.nodes.host.train_preview import PreviewPainter
from nextcontrol.nodes.host.train_script import READERS, read_job
from nextcontrol.nodes.host.unet_structure import find_place
from nextcontrol.training.backbone import NO_CONTROL
from nextcontrol.training.config import TrainConfig
from nextcontrol.training.draws import generator_for
from nextcontrol.training.method_controlnext import UNET, ControlNeXtOptions
from nextcontrol.training.trainer import Trainer
from safetensors import safe_open
from seeded import seeded_tensor
from stacking import entry, stacked
from torch.testing import assert_close
from train_stand_ins import SmallCLIP, SmallVAE, small_job, write_dataset

FAMILIES = ("sd15", "sdxl")
STEP = 500
POOLED = 1280
NARROW = replace(GENERATIONS[2], stem=(16, 16, 32), blocks=((32, 32), (32, 64)), mid=64, time_features=64, time_width=128)


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


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", autouse=True)
def narrow_modules():
    """The module in narrow: its own size costs more than the rest of these tests."""
    patch = pytest.MonkeyPatch()
    patch.setattr(recipe_controlnext, "GENERATIONS", (NARROW,) * 3)
    yield patch
    patch.undo()


@pytest.fixture(scope="module")
def pairs(base_folder):
    return write_dataset(base_folder, "controlnext_pairs")


def job_of(base_folder, pairs, name, family="sd15", **changes):
    """A training of a narrow model."""
    clip = PooledCLIP(WIDTHS["sdxl"]) if family == "sdxl" else SmallCLIP(WIDTHS["sd15"])
    recipe = Kept(ControlNeXtOptions(**changes.pop("options", {})))
    settings = {"model": narrow_model(family), "clip": clip, "recipe": recipe, "learning_rate": 1e-3, "save_every": 50}
    return small_job(base_folder, pairs, name, **settings | changes)


def run(*arguments, **changes):
    """Train it; gives the recipe, with its method, and the result."""
    job = job_of(*arguments, **changes)
    return job.recipe, train_job.train(job)


@pytest.fixture(scope="module")
def finished(base_folder, pairs):
    """Both families after 20 updates, as the executor runs them, and the models' weights before."""
    with torch.inference_mode():
        before = {family: {k: t.clone() for k, t in unet_of(family).state_dict().items()} for family in FAMILIES}
        runs = {family: run(base_folder, pairs, f"done_{family}", family, steps=20) for family in FAMILIES}
        return runs, before


def unet_of(family):
    return narrow_model(family).model.diffusion_model


def given(family):
    """(noisy, times, context, extras) of one row."""
    extras = {"pooled": seeded_tensor("pooled", [1, POOLED])} if family == "sdxl" else {}
    return latents(), torch.tensor([STEP]), seeded_tensor("context", [1, 7, WIDTHS[family]]), extras


def in_training(family, method, checkpointing=False, model=None):
    """What the network in training predicts."""
    noisy, times, context, extras = given(family)
    control = NO_CONTROL if method is None else method.control(noisy, hints().movedim(-1, 1), times, context, "")
    return HostBackbone(model or narrow_model(family), checkpointing).predict(noisy, times, context, control, extras)


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


def check_files(family, recipe, result):
    """The files in the nodes, at strength 1, predict what the trained network does; gives the loaded control."""
    model, control = narrow_model(family), loaded(result)
    found, expected = on_the_host(apply(model, control, hints()), family), in_training(family, recipe.built)
    assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found - on_the_host(model, family)).abs().max() > 1e-3
    return control


def contents(name, suffix=""):
    """The tensors of a finished file, and what its header says."""
    with safe_open(files_for(name, "controlnext").path(suffix), framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.mark.parametrize("family", FAMILIES)
def test_the_files_in_the_nodes_predict_what_the_trained_network_predicts(finished, family):
    recipe, result = finished[0][family]
    assert result.files == (f"done_{family}.safetensors", f"done_{family}_unet.safetensors")
    check_files(family, recipe, result)
    model = narrow_model(family)
    assert_close(on_the_host(model, family), in_training(family, None), rtol=1e-5, atol=1e-5)
    without = on_the_host(apply(model, load_controlnext_file(result.files[0], "none", "auto", "auto"), hints()), family)
    assert (without - in_training(family, recipe.built)).abs().max() > 1e-4


@pytest.mark.parametrize(("family", "part"), [("sd15", ".to_out."), ("sdxl", ".attn2.to_out.")])
def test_base_and_delta_are_the_trained_weights_and_nothing_else_moves(finished, family, part):
    (recipe, _), before, unet = finished[0][family], finished[1][family], unet_of(family)
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())
    trained = {name for name in before if part in name}
    assert recipe.built.weights.keys() == trained
    assert {name for name in recipe.built.parameters() if name.startswith(UNET)} == {UNET + name for name in trained}
    deltas, header = contents(f"done_{family}", "_unet")
    assert header["nextcontrol.unet_weights"] == "delta"
    assert deltas.keys() == set(recipe.built.names.values())
    assert all(name.startswith(("down_blocks.", "mid_block.", "up_blocks.")) and part in name for name in deltas)
    for name, tensor in recipe.built.weights.items():
        delta = deltas[recipe.built.names[name]]
        assert_close(before[name] + delta, tensor, rtol=1e-6, atol=1e-7)
        assert delta.abs().max() > 1e-4, name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_header_tells_what_the_loader_reads(finished, family):
    recipe, result = finished[0][family]
    _, header = contents(f"done_{family}")
    expected = {"kind": "controlnext", "family": family, "variant": family, "scale": "1.0", "normalization": "cross"}
    expected |= {"unet_weights": "delta", "stem_padding": "1", "steps": "20"}
    assert {key: header[f"nextcontrol.{key}"] for key in expected} == expected
    assert int(header["nextcontrol.parameters"]) == sum(t.numel() for t in recipe.built.network.parameters())
    assert int(header["nextcontrol.unet_parameters"]) == sum(t.numel() for t in recipe.built.weights.values())
    control = loaded(result)
    assert (control.variants, control.stem_padding, control.scale, control.is_normalized) == ((family,), 1, 1.0, True)
    assert control.unet.mode == "delta"


def test_the_module_has_its_published_shapes(narrow_modules):
    with narrow_modules.context() as patch:
        patch.setattr(recipe_controlnext, "GENERATIONS", GENERATIONS)
        for family in FAMILIES:
            method = ControlNeXtRecipe().build(narrow_model(family), TrainConfig())
            assert method.network.config == replace(GENERATIONS[2], out=64)
            assert (method.injection, method.network.stem_padding) == (INJECTIONS[family], 1)


@pytest.mark.parametrize("part", ["auto", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_and_predictions_are_the_same_with_checkpointing(family, part):
    model, found = narrow_model(family), []
    with training_mode([model], is_cast=True):
        for checkpointing in (False, True):
            config = TrainConfig(gradient_checkpointing=checkpointing)
            method = ControlNeXtRecipe(ControlNeXtOptions(unet_part=part)).build(model, config)
            predicted = in_training(family, method, checkpointing)
            predicted.square().mean().backward()
            found.append((predicted.detach(), {name: tensor.grad for name, tensor in method.parameters().items()}))
    (plain, gradients), (again, others) = found
    assert torch.equal(plain, again)
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert_close(others[name], gradient, rtol=1e-5, atol=1e-7)
    assert all(parameter.grad is None for parameter in unet_of(family).parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_through_the_host_are_those_of_differences(family):
    """Along the gradient, at tensors of the UNet below and above the place where the control enters, and in the module."""
    model = narrow_model(family)
    with training_mode([model], is_cast=True):
        method = ControlNeXtRecipe(ControlNeXtOptions(unet_part="all")).build(model, TrainConfig())
        weight = seeded_tensor("loss", [1, 4, 8, 12])

        def loss():
            return (in_training(family, method) * weight).double().sum()

        loss().backward()
        for name in ("unet.input_blocks.0.0.weight", "unet.out.2.weight", "module.mid_convs.1.weight"):
            tensor = method.parameters()[name]
            along = tensor.grad / tensor.grad.norm()
            values = []
            with torch.no_grad():
                for step in (0.004, -0.008):
                    tensor.add_(along, alpha=step)
                    values.append(loss())
                tensor.add_(along, alpha=0.004)
            slope = (values[0] - values[1]) / 0.008
            assert slope.item() == pytest.approx(tensor.grad.norm().item(), rel=0.01), name


def test_resumed_at_10_is_the_uninterrupted_run(base_folder, pairs, finished):
    _, first = run(base_folder, pairs, "halves", steps=10)
    assert len(first.losses) == 10
    _, second = run(base_folder, pairs, "halves", steps=20)
    assert second.losses == finished[0]["sd15"][1].losses
    for suffix in ("", "_unet"):
        whole, broken = contents("done_sd15", suffix)[0], contents("halves", suffix)[0]
        assert whole.keys() == broken.keys()
        assert all(torch.equal(broken[key], tensor) for key, tensor in whole.items())


def test_other_options_are_another_run(base_folder, pairs, finished):
    with pytest.raises(ValueError, match="the controlnext options changed"):
        run(base_folder, pairs, "done_sd15", steps=20, options={"scale": 0.5})


def test_a_narrower_module_trains_and_its_file_reproduces(base_folder, pairs, narrow_modules):
    with narrow_modules.context() as patch:
        patch.setattr(recipe_controlnext, "GENERATIONS", GENERATIONS)
        recipe, result = run(base_folder, pairs, "quarter", options={"width": 0.25}, steps=2)
        config = recipe.built.network.config
        assert config == replace(NARROW, time_features=32, time_width=64, out=config.out)
        check_files("sd15", recipe, result)


def test_the_usual_width_leaves_the_identity_of_older_states():
    assert "width" not in ControlNeXtOptions().to_json()
    assert '"width": 0.5' in ControlNeXtOptions(width=0.5).to_json()


@pytest.mark.parametrize("family", FAMILIES)
def test_zero_convolution_starts_from_exactly_no_control_and_its_file_reproduces(base_folder, pairs, family):
    options = {"normalization": "zero_convolution", "scale": 0.5}
    start = ControlNeXtRecipe(ControlNeXtOptions(**options)).build(narrow_model(family), TrainConfig())
    assert torch.equal(in_training(family, start), in_training(family, None))
    recipe, result = run(base_folder, pairs, f"zero_{family}", family, options=options, steps=3)
    control = check_files(family, recipe, result)
    assert (control.is_normalized, control.scale) == (False, 0.5)
    normalized = replace_fields(control, is_normalized=True)
    assert (predict_with(normalized, family) - predict_with(control, family)).abs().max() > 1e-3


def as_it_is(control, family):
    """The host's model with the module's output, pooled and times the scale, added by hand."""
    injection = control.injection_for(family)
    network, place = control.network(injection).model, find_place(unet_of(family), injection.site)

    def add(h, options):
        if options["block"] != place.block:
            return h
        residual = network(hints().movedim(-1, 1), torch.tensor([float(STEP)]))
        return h + torch.nn.functional.adaptive_avg_pool2d(residual, h.shape[-2:]) * control.scale

    clone = narrow_model(family).clone()
    clone.set_model_patch(add, place.hook)
    return clone


@pytest.mark.parametrize("family", FAMILIES)
def test_without_normalization_a_control_is_added_as_it_is_alone_and_in_a_stack(base_folder, finished, family):
    plain = replace_fields(loaded(finished[0][family][1]), is_normalized=False, trained_scale=0.5, unet=None)
    other = control_for(base_folder, family)
    assert_close(predict_with(plain, family), on_the_host(as_it_is(plain, family), family), rtol=1e-5, atol=1e-5)
    expected = on_the_host(apply(as_it_is(plain, family), other, hints(), 0.7), family)
    both, *_ = stacked([entry(plain, image=hints()), entry(other, 0.7, image=hints())], model=narrow_model(family))
    assert_close(on_the_host(both, family), expected, rtol=1e-5, atol=1e-5)


def replace_fields(control, **changes):
    """Another control of the same file."""
    return replace(control, _networks={}, **changes)


def predict_with(control, family):
    return on_the_host(apply(narrow_model(family), control, hints()), family)


def test_strength_1_is_the_scale_of_the_training(base_folder, pairs):
    recipe, result = run(base_folder, pairs, "scaled", options={"scale": 0.35, "unet_part": "none"}, steps=2)
    assert result.files == ("scaled.safetensors",)
    assert not recipe.built.weights
    assert "nextcontrol.unet_weights" not in contents("scaled")[1]
    control = check_files("sd15", recipe, result)
    plain = replace_fields(control, trained_scale=None)
    model = narrow_model()
    assert_close(on_the_host(apply(model, plain, hints(), 0.35), "sd15"), on_the_host(apply(model, control, hints()), "sd15"))


def test_the_whole_unet_can_be_trained(base_folder, pairs):
    recipe, result = run(base_folder, pairs, "whole_unet", "sdxl", options={"unet_part": "all"}, steps=1, learning_rate=1e-4)
    assert recipe.built.weights.keys() == dict(unet_of("sdxl").named_parameters()).keys()
    check_files("sdxl", recipe, result)


def test_on_a_model_with_a_lora_only_what_training_adds_is_in_the_file(base_folder, pairs):
    model, place = narrow_model().clone(), "input_blocks.1.1.transformer_blocks.0.attn1.to_out.0.weight"
    own = unet_of("sd15").get_parameter(place)
    lora = 0.05 * seeded_tensor("lora", own.shape)
    model.add_patches({f"diffusion_model.{place}": (lora,)}, 1.0)
    recipe, result = run(base_folder, pairs, "with_lora", model=model, steps=2)
    found = on_the_host(apply(model, loaded(result), hints()), "sd15")
    with training_mode([model], is_cast=True):
        expected = in_training("sd15", recipe.built, model=model).detach()
    assert_close(found, expected, rtol=1e-5, atol=1e-5)
    delta = contents("with_lora", "_unet")[0][recipe.built.names[place]]
    assert 0 < delta.abs().max() < 0.01 < lora.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_and_checkpointing_train(base_folder, pairs, family):
    settings = {"precision": "bf16", "gradient_checkpointing": True, "steps": 1}
    recipe, result = run(base_folder, pairs, f"half_{family}", family, **settings)
    assert all(0 < loss < 10 for loss in result.losses)
    assert all(tensor.dtype == torch.float32 for tensor in recipe.built.parameters().values())


def test_the_pooled_text_is_dropped_with_the_caption(base_folder, pairs):
    for dropout in (1.0, 0.0):
        job = job_of(base_folder, pairs, "pooled", "sdxl", dataset_settings={"prompt_dropout": dropout})
        data = prepare_data(job, HostBackbone(job.model).objective, print)
        (batch,) = data.source.batches(0)
        empty = torch.randn(1, POOLED, generator=generator_for("pooled", ""))
        assert torch.equal(data.empty_extras["pooled"], empty)
        assert torch.equal(batch.context, data.empty) == (dropout == 1)
        assert torch.equal(batch.extras["pooled"], empty) == (dropout == 1)


def test_previews_go_with_the_pooled_text_of_the_empty_text(base_folder, pairs, monkeypatch):
    job = job_of(base_folder, pairs, "drawn", "sdxl", validation_pairs=2, preview_steps=1)
    backbone = HostBackbone(job.model)
    data = prepare_data(job, backbone.objective, print)
    trainer = Trainer(job.recipe.build(job.model, job.config), backbone, job.config)
    seen = []

    def predict(noisy, _hints, _levels, context, extras, _condition):
        seen.append((context, extras["pooled"]))
        return torch.zeros_like(noisy)

    monkeypatch.setattr(trainer, "predict", predict)
    PreviewPainter(job.vae, data, [job.model]).paint(trainer)
    held_out = data.held_out[0]
    context, pooled = seen[0]
    assert torch.equal(context, torch.cat([held_out.context[:1], data.empty]))
    assert torch.equal(pooled, torch.cat([held_out.extras["pooled"][:1], data.empty_extras["pooled"]]))
    assert not torch.equal(pooled[0], pooled[1])


def with_patch():
    model = narrow_model().clone()
    model.set_model_input_block_patch(lambda h, _options: h)
    return model


class Other(torch.nn.Module):
    """A model of a family of its own."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.diffusion_model = torch.nn.Linear(2, 2)


def other_family():
    return ModelPatcher(Other(), load_device=Other.device, offload_device=Other.device)


MISFITS = {
    "a patched model": ({"model": with_patch}, "carries patches of other nodes"),
    "a model without a UNet": ({"model": other_family}, "The model is of the family Other: ControlNeXt exists for SD1.5, SDXL"),
    "a text encoder of another width": ({"clip": lambda: SmallCLIP(1024)}, "width 1024 and the model needs 768"),
    "SD1.5's text encoder on SDXL": (
        {"family": "sdxl", "clip": lambda: PooledCLIP(768)},
        "width 768 and the model needs 2048: connect the CLIP of an SDXL checkpoint",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_refused(base_folder, pairs, case):
    changes, sentence = MISFITS[case]
    made = {name: make() if callable(make) else make for name, make in changes.items()}
    with pytest.raises(ValueError, match=sentence):
        run(base_folder, pairs, "misfit", **made)


def test_a_text_encoder_without_pooled_text_is_refused(base_folder, pairs):
    class Silent(PooledCLIP):
        def encode_from_tokens(self, tokens, return_pooled=False):
            encoded = super().encode_from_tokens(tokens)
            return (encoded, None) if return_pooled else encoded

    with pytest.raises(ValueError, match="gives no pooled text, which SDXL reads"):
        run(base_folder, pairs, "silent", "sdxl", clip=Silent(2048))


@pytest.mark.parametrize(("family", "vae", "sentence"), [
    ("sd15", "sdxl", "The VAE is SDXL's, whose latents mean something else to SD1.5: connect the VAE of an SD1.5"),
    ("sdxl", "sd15", "The VAE is SD1.5's, whose latents mean something else to SDXL: connect the VAE of an SDXL"),
])  # fmt: skip
def test_the_other_familys_vae_is_refused(base_folder, pairs, family, vae, sentence):
    with pytest.raises(ValueError, match=sentence):
        run(base_folder, pairs, "other_vae", family, vae=LinearVAE(vae))


class LinearVAE(SmallVAE):
    """Its latents are those that the host's own map of a family makes the given colours of."""

    def __init__(self, family):
        super().__init__()
        self.format = {"sd15": comfy.latent_formats.SD15, "sdxl": comfy.latent_formats.SDXL}[family]()

    def encode(self, pixels):
        """(B, 4, h, w)."""
        inverse = torch.linalg.pinv(torch.tensor(self.format.latent_rgb_factors)) / self.format.scale_factor
        return (pixels[:, ::8, ::8] @ inverse).movedim(-1, 1)


@pytest.mark.parametrize(("key", "value", "sentence"), [
    ("scale", "much", "its scale is 'much' and a number is expected"),
    ("scale", "inf", "its scale is 'inf' and a number is expected"),
    ("normalization", "batch", "its normalization is 'batch' and this version knows cross and zero_convolution: update"),
])  # fmt: skip
def test_a_header_that_says_something_else_is_refused(base_folder, finished, key, value, sentence):
    tensors = contents("done_sd15")[0]
    name = save(base_folder, f"header_{key}_{value}.safetensors", tensors, **{f"nextcontrol.{key}": value})
    with pytest.raises(ValueError, match=sentence):
        load_controlnext_file(name, "none", "auto", "auto")


def test_a_configuration_file_builds_it():
    text = {"method": "controlnext", "checkpoint": "x", "name": "y", "dataset": {"folder": "z"}}
    job = read_job(json.dumps(text | {"options": {"scale": 0.35, "unet_part": "none"}}))
    recipe = READERS[job["method"]].build(job)
    assert (recipe.method, recipe.options) == ("controlnext", ControlNeXtOptions(scale=0.35, unet_part="none"))
    with pytest.raises(ValueError, match="'speed' is no option of controlnext"):
        read_job(json.dumps(text | {"options": {"speed": 1}}))
    with pytest.raises(ValueError, match=r"unet_part \('some'\) must be auto or"):
        READERS["controlnext"].build(read_job(json.dumps(text | {"options": {"unet_part": "some"}})))
