"""Training a ControlNet on the host: its file in ComfyUI's own loader, how it starts, what moves, gone on with, refused."""

from __future__ import annotations

import json
from typing import Any

import comfy.controlnet
import pytest
import torch
from host_models import build_model
from nextcontrol.models.detect import detect_kind
from nextcontrol.nodes.host.backbone import HostBackbone, training_mode
from nextcontrol.nodes.host.ctrlora_load import load_base
from nextcontrol.nodes.host.encoder_copy import copy_encoder
from nextcontrol.nodes.host.encoders import digest_of_weights
from nextcontrol.nodes.host.inspect_file import inspect_file
from nextcontrol.nodes.host.recipe_controlnet import ControlNetRecipe
from nextcontrol.nodes.host.recipe_ctrlora import CtrLoRARecipe
from nextcontrol.nodes.host.train_files import files_for
from nextcontrol.nodes.host.train_script import READERS, read_job
from nextcontrol.training.backbone import NO_CONTROL
from nextcontrol.training.config import TrainConfig
from safetensors import safe_open
from seeded import seeded_tensor
from train_stand_ins import SmallCLIP, train, write_dataset

NOISY, HINT, TIMES = seeded_tensor("x", [2, 4, 8, 8]), seeded_tensor("h", [2, 3, 64, 64]).sigmoid(), torch.tensor([30.0, 700.0])
SAVED = {"save_every": 20, "steps": 20}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pairs(base_folder):
    return write_dataset(base_folder, "controlnet_pairs")


class Kept(ControlNetRecipe):
    """Remembers what it built, which is trained in place."""

    made: Any = None

    def build(self, model, config):
        """As its parent."""
        self.made = super().build(model, config)
        return self.made


def run(base_folder, pairs, name, hint_encoder="convolutions", **changes):
    """A training on the small model; the network it trained, the result and the tensors and header of its file."""
    recipe = Kept(hint_encoder)
    with torch.inference_mode():
        result = train(base_folder, pairs, name, recipe=recipe, **SAVED | changes)
    path = files_for(name, recipe.folder).main
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return recipe.made, result, tensors, file.metadata()


def text(width):
    return seeded_tensor("t", [2, 9, width])


@pytest.fixture(scope="module")
def finished(base_folder):
    """At SD1.5's width, so that ComfyUI knows the number of heads."""
    pairs = write_dataset(base_folder, "controlnet_wide")
    model = build_model("sd15_short")
    before = digest_of_weights(dict(model.model.state_dict()), is_whole=True)
    done = run(
        base_folder, pairs, "done/cn", model=model, clip=SmallCLIP(768), learning_rate=5e-3,
        preview_every=20, preview_steps=1, validation_pairs=1,
    )  # fmt: skip
    assert digest_of_weights(dict(model.model.state_dict()), is_whole=True) == before
    return done


def close(own, expected):
    assert len(own) == len(expected)
    for one, other in zip(own, expected, strict=True):
        assert other.abs().max() > 0
        assert ((one - other).norm() / other.norm()).item() < 1e-5


def test_comfyuis_loader_reads_the_file_and_its_network_does_what_was_trained(finished, caplog):
    method, result, *_ = finished
    assert result.files == ("done/cn.safetensors",)
    assert len(result.losses) == 20
    loaded = comfy.controlnet.load_controlnet(str(files_for("done/cn", "controlnet").main))
    assert "keys" not in caplog.text
    trained = method.control(NOISY, HINT, TIMES, text(768), "").residuals
    other = method.control(NOISY, HINT.flip(-1), TIMES, text(768), "").residuals
    changes = [((a - b).norm() / b.norm()).item() for a, b in zip(other, trained, strict=True)]
    assert min(changes) > 1e-3, changes
    found = loaded.control_model(x=NOISY, hint=HINT, timesteps=TIMES, context=text(768))
    close([*found["output"], *found["middle"]], trained)


def test_in_sampling_it_adds_what_it_added_in_training(finished):
    """With the host's own scaling of the latent, its own timesteps, and a hint as the Apply node gives it."""
    method, model, context = finished[0], build_model("sd15_short"), text(768)
    loaded = comfy.controlnet.load_controlnet(str(files_for("done/cn", "controlnet").main))
    sampling = model.get_model_object("model_sampling")
    sigmas = sampling.sigma(TIMES)
    scaled = NOISY * (sigmas**2 + 1).sqrt()[:, None, None, None]
    control = loaded.copy().set_cond_hint(HINT[:1])
    control.pre_run(model.model, sampling.percent_to_sigma)
    given = control.get_control(scaled, sigmas, {"c_crossattn": context}, 1, {})
    control.cleanup()
    trained = method.control(NOISY, HINT[:1].expand(2, -1, -1, -1), TIMES, context, "").residuals
    close([*given["output"], *given["middle"]], trained)


def test_every_tensor_of_the_network_moves_and_none_of_the_model(finished):
    method, _, tensors, _ = finished
    start = ControlNetRecipe().build(build_model("sd15_short"), TrainConfig()).network.state_dict()
    assert tensors.keys() == {f"control_model.{key}" for key in start}
    for key, tensor in start.items():
        assert not torch.equal(tensors[f"control_model.{key}"], tensor), key
        assert torch.equal(tensors[f"control_model.{key}"], method.parameters()[key].detach())


def test_the_header_and_inspect_tell_what_it_is(finished):
    *_, tensors, metadata = finished
    expected = {"kind": "controlnet", "family": "sd15", "hint_encoder": "convolutions", "steps": "20", "pairs": "6"}
    assert {key: metadata[f"nextcontrol.{key}"] for key in expected} == expected
    kind = detect_kind(tensors)
    assert kind is not None
    assert kind.id == "controlnet"
    described = inspect_file("done/cn.safetensors").splitlines()
    assert described[:2] == ["done/cn.safetensors is a stock ControlNet.", "Load it with ComfyUI's 'Load ControlNet Model'."]
    assert {"Family: SD1.5", "  hint encoder: 1,086,480 in 16"} <= set(described)


def test_before_the_first_step_the_controls_are_zero_and_the_prediction_is_the_models_own():
    model = build_model("ctrlora")
    with training_mode([model], is_cast=True):
        method, backbone = ControlNetRecipe().build(model, TrainConfig()), HostBackbone(model)
        given = (NOISY.clone(), TIMES.long(), text(96).clone())
        control = method.control(given[0], HINT.clone(), given[1], given[2], "")
        assert all(residual.abs().max() == 0 for residual in control.residuals)
        assert torch.equal(backbone.predict(*given, control, {}), backbone.predict(*given, NO_CONTROL, {}))
        encoder, _ = copy_encoder(model)
        assert all(torch.equal(method.parameters()[key], tensor) for key, tensor in encoder.items())


@pytest.fixture(scope="module")
def vae_finished(base_folder, pairs):
    return run(base_folder, pairs, "done/vae", "vae", sensitivity_every=20, validation_pairs=1)


def test_with_the_vae_the_file_is_a_base_that_does_what_was_trained(base_folder, vae_finished):
    method, result, tensors, metadata = vae_finished
    assert metadata["nextcontrol.kind"] == detect_kind(tensors).id == "ctrlora_base"
    base = load_base(result.files[0], use_embedded_lora=False, cache_megabytes=0)
    latent = seeded_tensor("hint", [2, 4, 8, 8])
    trained = method.control(NOISY, latent, TIMES, text(96), "").residuals
    close(base.network.model(latent, TIMES, text(96), 4), trained)
    start = ControlNetRecipe("vae").build(build_model("ctrlora"), TrainConfig()).network.state_dict()
    assert all(not torch.equal(tensors[f"control_model.{key}"], tensor) for key, tensor in start.items())


def test_with_the_vae_the_file_is_adapted_further_as_any_base(base_folder, pairs, vae_finished):
    base = load_base(vae_finished[1].files[0], use_embedded_lora=False, cache_megabytes=0)
    result = train(base_folder, pairs, "done/adapted", recipe=CtrLoRARecipe(base, 4), steps=2)
    assert len(result.losses) == 2


@pytest.fixture(scope="module")
def small(base_folder, pairs):
    return run(base_folder, pairs, "small")


def test_a_run_resumed_at_10_is_the_uninterrupted_one(base_folder, pairs, small):
    run(base_folder, pairs, "halves", steps=10)
    _, result, tensors, _ = run(base_folder, pairs, "halves")
    assert result.losses == small[1].losses
    assert all(torch.equal(tensors[key], tensor) for key, tensor in small[2].items())


@pytest.fixture(scope="module")
def plain(base_folder, pairs):
    return run(base_folder, pairs, "plain", batch_size=2, steps=2)


@pytest.mark.parametrize("change", [{"gradient_checkpointing": True}, {"batch_size": 1, "accumulation_steps": 2}])
def test_less_memory_gives_the_same_run(base_folder, pairs, plain, change):
    _, other, tensors, _ = run(base_folder, pairs, f"less_{len(change)}", **{"batch_size": 2, "steps": 2} | change)
    torch.testing.assert_close(other.losses, plain[1].losses, rtol=1e-5, atol=0)
    for key, tensor in plain[2].items():
        torch.testing.assert_close(tensors[key], tensor, rtol=0, atol=1e-4)


def test_half_precision_trains_the_same_fp32_tensors(base_folder, pairs, small):
    _, result, tensors, _ = run(base_folder, pairs, "bf16", precision="bf16", steps=2)
    torch.testing.assert_close(result.losses, small[1].losses[:2], rtol=2e-2, atol=0)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


CONFIG = {"method": "controlnet", "checkpoint": "sd.safetensors", "name": "x", "dataset": {"folder": "pairs"}}


def read(**changes):
    return read_job(json.dumps(CONFIG | changes))


def test_half_of_the_prompts_are_dropped_unless_the_file_says_otherwise():
    assert read()["dataset"].prompt_dropout == 0.5
    assert read(dataset={"folder": "pairs", "prompt_dropout": 0.1})["dataset"].prompt_dropout == 0.1
    assert read(method="ctrlora", base="base.ckpt")["dataset"].prompt_dropout == 0.3


def test_a_file_without_options_trains_the_hint_encoder_of_the_paper():
    for options, expected in (({}, "convolutions"), ({"hint_encoder": "vae"}, "vae")):
        recipe = READERS["controlnet"].build(read(options=options))
        assert (recipe.method, recipe.hint_encoder) == ("controlnet", expected)


def test_options_that_do_not_exist_are_named():
    with pytest.raises(ValueError, match="'hint' is no option of controlnet"):
        read(options={"hint": "vae"})
    with pytest.raises(ValueError, match="hint_encoder is 'clip' and must be convolutions or vae: choose one of these"):
        READERS["controlnet"].build(read(options={"hint_encoder": "clip"}))


def test_a_name_that_makes_the_loader_average_is_refused_for_its_files_alone():
    for name in ("my_shuffle", "a/my_shuffle_fp16.safetensors"):
        with pytest.raises(ValueError, match="ComfyUI averages the controls of files with such an ending"):
            READERS["controlnet"].build(read(name=name))
    assert READERS["controlnet"].build(read(name="my_shuffle", options={"hint_encoder": "vae"})).folder == "ctrlora"
    assert READERS["controlnet"].build(read(name="shuffle_2")).folder == "controlnet"


WRONG = {
    "SDXL": ({"model": lambda: build_model("sdxl_narrow")}, "family SDXL, whose encoder cannot become a control network here"),
    "SVD": ({"model": lambda: build_model("svd_narrow")}, "family SVD_img2vid, whose encoder cannot become"),
    "a text encoder of another width": ({"clip": lambda: SmallCLIP(768)}, "The text encoder gives texts of width 768"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_and_leaves_nothing(base_folder, pairs, case):
    changes, sentence = WRONG[case]
    with pytest.raises(ValueError, match=sentence):
        run(base_folder, pairs, "wrong", **{key: make() for key, make in changes.items()})
    assert not files_for("wrong", "controlnet").folder.exists()


def test_a_patched_model_is_refused(base_folder, pairs):
    model = build_model("ctrlora").clone()
    model.set_model_attn1_patch(lambda *tokens: tokens[:3])
    with pytest.raises(ValueError, match="carries patches of other nodes"):
        run(base_folder, pairs, "patched", model=model)
