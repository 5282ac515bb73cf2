"""Training looks at the model that it is given: what ModelSampling nodes have set, and what the UNet reads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from comfy.model_sampling import EPS
from comfy_extras import nodes_model_advanced as advanced
from ctrlora_files import load_small_base
from host_models import UNET_CONFIGS, build_model, make_model
from nextcontrol.nodes.host import train_job
from nextcontrol.nodes.host.backbone import HostBackbone
from nextcontrol.nodes.host.backbone_svd import build_backbone
from nextcontrol.nodes.host.noise_schedule import objective_of
from nextcontrol.nodes.host.recipe_controlnet import ControlNetRecipe
from nextcontrol.nodes.host.recipe_controlnext import ControlNeXtRecipe
from nextcontrol.nodes.host.recipe_ctrlora import CtrLoRARecipe
from nextcontrol.nodes.host.recipe_ctrlora_base import CtrLoRABaseRecipe
from nextcontrol.nodes.host.train_files import files_for
from nextcontrol.training.objective_edm import EdmObjective
from seeded import seeded_tensor
from tiny_clips import write_clips
from train_stand_ins import SmallVAE, small_job, train, write_dataset

pytestmark = pytest.mark.usefixtures("one_thread")


def sampled_as(model, node, *settings):
    """A model behind one of the host's ModelSampling nodes."""
    made = getattr(advanced, node)()
    return getattr(made, made.FUNCTION)(model, *settings)[0]


def distilled(model):
    """Few steps, far from each other, as LCM's; but a model that predicts noise."""

    class Distilled(advanced.ModelSamplingDiscreteDistilled, EPS):
        pass

    clone = model.clone()
    clone.add_object_patch("model_sampling", Distilled(model.model.model_config))
    return clone


def of_another_pack(model):
    """The model's own, with another formula."""
    own = type(model.model.model_sampling)

    class Other(own):
        def calculate_denoised(self, sigma, model_output, model_input):
            return own.calculate_denoised(self, sigma, model_output / 2, model_input)

    clone = model.clone()
    clone.add_object_patch("model_sampling", Other(model.model.model_config))
    return clone


TRAINED = {
    "the checkpoint's own": (lambda model: model, "eps"),
    "eps": (lambda model: sampled_as(model, "ModelSamplingDiscrete", "eps", False), "eps"),
    "eps, zsnr": (lambda model: sampled_as(model, "ModelSamplingDiscrete", "eps", True), "eps"),
    "v": (lambda model: sampled_as(model, "ModelSamplingDiscrete", "v_prediction", False), "v"),
    "v, zsnr": (lambda model: sampled_as(model, "ModelSamplingDiscrete", "v_prediction", True), "v"),
    "the last of two nodes": (lambda model: TRAINED["v"][0](SAMPLED["x0"](model)), "v"),
    "few steps": (distilled, "eps"),
}  # fmt: skip


@pytest.mark.parametrize("case", TRAINED)
def test_what_the_network_should_predict_is_what_the_host_makes_the_picture_of(case):
    """Every level: the host's input of the network, its timestep, and the clean latent from a prediction without error."""
    patch, prediction = TRAINED[case]
    model = patch(build_model("ctrlora"))
    objective, sampling = HostBackbone(model).objective, model.get_model_object("model_sampling")
    assert objective.prediction == prediction
    levels = torch.arange(len(sampling.sigmas))
    latents, noise = seeded_tensor("latents", [1, 4, 2, 2]), seeded_tensor("noise", [1, 4, 2, 2])
    sigmas = sampling.sigmas
    sample = sampling.noise_scaling(sigmas, noise.expand(len(levels), -1, -1, -1).clone(), latents)
    seen, times = objective.network_input(objective.add_noise(latents, noise, levels), levels)
    torch.testing.assert_close(seen, sampling.calculate_input(sigmas, sample), rtol=1e-4, atol=1e-4)
    assert torch.equal(times.float(), sampling.timestep(sigmas).float())
    # A prediction without error: the loss is 0 there, and the host finds the latent with it.
    column = sigmas[:, None, None, None]
    target = noise.expand_as(sample) if prediction == "eps" else (noise - column * latents) / (column**2 + 1).sqrt()
    assert objective.loss(target, latents, noise, levels, 0.0, {}) < 1e-9
    clean = sampling.calculate_denoised(sigmas, target, sample)
    kept = sigmas < 100  # of more noise nothing is left in 32 bits
    torch.testing.assert_close(clean[kept], latents.expand_as(clean)[kept], rtol=1e-3, atol=1e-3)


def test_an_ordinary_model_is_told_the_levels_themselves():
    levels = torch.tensor([3, 999])
    assert HostBackbone(build_model("ctrlora")).objective.network_input(None, levels)[1] is levels


def test_svd_is_trained_on_the_range_that_it_is_sampled_in():
    model = build_model("svd_tiny")
    assert build_backbone(model, checkpointing=False).objective == EdmObjective()
    other = sampled_as(model, "ModelSamplingContinuousEDM", "v_prediction", 120.0, 0.01)
    assert build_backbone(other, checkpointing=False).objective == EdmObjective(sigma_min=0.01, sigma_max=120.0)
    assert objective_of(other).identity != objective_of(model).identity


# What is refused, by every method


METHODS = {
    "ctrlora": ("ctrlora", lambda base_folder: CtrLoRARecipe(load_small_base(base_folder), 4)),
    "ctrlora_base": ("ctrlora", lambda _: CtrLoRABaseRecipe(("canny",), 4, "base")),
    "controlnet": ("ctrlora", lambda _: ControlNetRecipe()),
    "controlnext": ("sd15_narrow", lambda _: ControlNeXtRecipe()),
    "controlnext, SDXL": ("sdxl_narrow", lambda _: ControlNeXtRecipe()),
    "controlnext, SVD": ("svd_tiny", lambda _: ControlNeXtRecipe()),
}
SAMPLED = {
    "x0": lambda model: sampled_as(model, "ModelSamplingDiscrete", "x0", False),
    "lcm": lambda model: sampled_as(model, "ModelSamplingDiscrete", "lcm", False),
    "continuous eps": lambda model: sampled_as(model, "ModelSamplingContinuousEDM", "eps", 120.0, 0.002),
    "edm": lambda model: sampled_as(model, "ModelSamplingContinuousEDM", "edm", 120.0, 0.002),
    "continuous v": lambda model: sampled_as(model, "ModelSamplingContinuousV", "v_prediction", 500.0, 0.03),
    "flow": lambda model: sampled_as(model, "ModelSamplingSD3", 3.0),
    "flux": lambda model: sampled_as(model, "ModelSamplingFlux", 1.15, 0.5, 64, 64),
    "cascade": lambda model: sampled_as(model, "ModelSamplingStableCascade", 2.0),
    "another pack": of_another_pack,
}


def with_channels(monkeypatch, variant, **channels):
    """A model of a family that reads or returns other channels."""
    monkeypatch.setitem(UNET_CONFIGS, variant, UNET_CONFIGS[variant] | channels)
    return make_model(variant)


@pytest.fixture(scope="module")
def datasets(base_folder):
    write_clips(base_folder / "input" / "objective_clips", {"a": 5, "b": 6})
    return {False: write_dataset(base_folder, "objective_pairs"), True: "objective_clips"}


def refusal(base_folder, datasets, method, model):
    """What a training says, which has encoded nothing and written nothing then."""
    variant, build = METHODS[method]
    vae = SmallVAE()
    job = small_job(base_folder, datasets[variant.startswith("svd")], "objective/refused", recipe=build(base_folder), vae=vae)
    with pytest.raises(ValueError, match="model") as caught:
        train_job.train(replace(job, model=model))
    assert not vae.seen
    assert not files_for("objective/refused", job.recipe.folder).folder.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_is_sampled_in_another_way_is_refused_before_anything_is_encoded(base_folder, datasets, method):
    model = build_model(METHODS[method][0])
    is_video = METHODS[method][0].startswith("svd")
    expected = "is trained on v at continuous" if is_video else "predict eps or v at whole timesteps"
    others = {"discrete": TRAINED["v"][0]} if is_video else {"continuous": lambda m: sampled_as(
        m, "ModelSamplingContinuousEDM", "v_prediction", 120.0, 0.002
    )}  # fmt: skip
    for name, patch in (SAMPLED | others).items():
        said = refusal(base_folder, datasets, method, patch(model))
        assert said.startswith("The model is sampled as '"), name
        assert expected in said


@pytest.mark.parametrize("channels", [{"in_channels": 9}, {"in_channels": 8}, {"in_channels": 5}, {"out_channels": 8}])
@pytest.mark.parametrize("method", METHODS)
def test_a_model_of_other_channels_is_refused_before_anything_is_encoded(base_folder, datasets, method, channels, monkeypatch):
    variant = METHODS[method][0]
    if variant.startswith("svd") and channels == {"in_channels": 8}:
        channels = {"in_channels": 4}  # SVD's own are 8
    said = refusal(base_folder, datasets, method, with_channels(monkeypatch, variant, **channels))
    ((verb, count),) = channels.items()
    assert f"{'reads' if verb == 'in_channels' else 'returns'} {count}" in said
    assert "checkpoint" in said


@pytest.mark.parametrize("method", METHODS)
def test_a_model_whose_unet_another_node_calls_is_refused(base_folder, datasets, method):
    model = build_model(METHODS[method][0]).clone()
    model.set_model_unet_function_wrapper(lambda run, given: run(given["input"], given["timestep"], **given["c"]))
    assert "carries patches of other nodes" in refusal(base_folder, datasets, method, model)


# The objective is part of what a run is


@pytest.fixture
def run_of(base_folder, datasets):
    def go(name, model, **settings):
        return train(base_folder, datasets[False], f"objective/{name}", model=model, **{"steps": 1, "save_every": 1} | settings)

    return go


def test_a_run_is_not_resumed_with_another_objective(run_of):
    model = build_model("ctrlora")
    run_of("kept", model)
    assert len(run_of("kept", TRAINED["eps"][0](model), steps=2).losses) == 2  # the same, from a node
    for case in ("v", "v, zsnr", "eps, zsnr", "few steps"):
        with pytest.raises(ValueError, match=r"the objective \(prediction type and noise schedule\) changed"):
            run_of("kept", TRAINED[case][0](model), steps=3)


def test_a_state_that_does_not_say_it_was_trained_as_the_checkpoint_is(run_of, monkeypatch):
    model = build_model("ctrlora")
    with monkeypatch.context() as earlier:
        earlier.setattr(train_job, "OBJECTIVE", "an entry of another name")
        run_of("earlier", model)
    with pytest.raises(ValueError, match=r"the objective .* changed"):
        run_of("earlier", TRAINED["v"][0](model), steps=2)
    assert len(run_of("earlier", model, steps=2).losses) == 2


def test_a_run_on_v_learns_v(run_of):
    """The same draws, another target: the first losses are those of each target."""
    model = build_model("ctrlora")
    losses = [run_of(f"learns_{index}", TRAINED[case][0](model)).losses for index, case in enumerate(("eps", "v", "v, zsnr"))]
    assert len({loss for (loss,) in losses}) == 3
