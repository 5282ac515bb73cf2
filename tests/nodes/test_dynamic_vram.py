"""Under dynamic VRAM (see dynamic_vram.py) everything computes what it computes without, and training trains the same."""

from __future__ import annotations

from dataclasses import replace

import comfy.model_management
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from ctrlora_files import GivenLatents, control_of, load_small_base, numbered, run_control
from dynamic_vram import HAS_DYNAMIC, dynamic_vram
from host_models import evaluate, make_model, prompt
from narrow import WIDTHS, apply, control_for, hints, latents, save, text
from nextcontrol.models.controlnext import GENERATIONS
from nextcontrol.nodes.host import recipe_controlnext, train_job
from nextcontrol.nodes.host.backbone import share_with_autograd
from nextcontrol.nodes.host.demo_model import UNET_FILE, load_demo_model
from nextcontrol.nodes.host.encoders import identity_of
from nextcontrol.nodes.host.folders import DEMO
from nextcontrol.nodes.host.managed import is_dynamic, manage, patcher_class
from nextcontrol.nodes.host.recipe_controlnext import ControlNeXtRecipe
from nextcontrol.training.method_controlnext import ControlNeXtOptions
from safetensors.torch import load_file, save_file
from seeded import seeded_tensor
from torch import nn
from torch.testing import assert_close
from train_stand_ins import SmallCLIP, small_job, write_dataset

import nodes

needs_dynamic = pytest.mark.skipif(not HAS_DYNAMIC, reason="this host has no dynamic VRAM")
LIMITS = [float("inf"), 0] if HAS_DYNAMIC else [float("inf")]
"""Bytes that weights may take: all of them stay, or none and each is cast at each use."""
LORA_KEY = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_out.0.weight"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", autouse=True)
def nothing_loaded_before():
    """What other tests have loaded is of the other kind."""
    comfy.model_management.unload_all_models()
    yield
    comfy.model_management.unload_all_models()


def fresh(variant: str) -> ModelPatcher:
    """A model as a loader of the host makes it at the moment."""
    return make_model(variant, kind=patcher_class())


def both(make, limit):
    """What `make` gives without dynamic VRAM and with it."""
    plain = make()
    with dynamic_vram(limit):
        found = make()
        comfy.model_management.unload_all_models()
    return plain, found


@pytest.mark.parametrize("limit", LIMITS)
def test_ctrlora(base_folder, limit):
    words = seeded_tensor("text", [2, 7, 96])

    def controls():
        base = load_small_base(base_folder, cache=0)
        model = fresh("ctrlora")
        control = control_of(base_folder, base).set_cond_hint(numbered(0), 1.0, (0.0, 1.0), GivenLatents("hint"))
        comfy.model_management.load_models_gpu([model, *control.get_models()])
        found = run_control(control, model, words, torch.tensor([3.0, 3.0]), 2)
        return [*found["middle"], *found["output"]]

    plain, found = both(controls, limit)
    for one, other in zip(found, plain, strict=True):
        assert_close(one, other, atol=1e-6, rtol=1e-6)


@needs_dynamic
@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("mode", ["replace", "delta"])
@pytest.mark.parametrize("family", ["sd15", "svd"])
def test_controlnext_with_the_weights_of_its_unet(base_folder, family, mode, limit):
    """SVD's mix factors are parameters outside the host's layers, which it loads without their patches."""
    own = fresh(f"{family}_narrow").model.diffusion_model.state_dict()
    ends = ("mix_factor", "to_out.0.weight", "out_layers.3.weight")
    chosen = {key: tensor for key, tensor in own.items() if key.endswith(ends)}
    assert any("mix_factor" in key for key in chosen) == (family == "svd")
    tensors = {key: seeded_tensor(key, tensor.shape) / 4 for key, tensor in chosen.items()}
    name = save(base_folder, f"dynamic_{family}.safetensors", tensors)
    extra = {"num_video_frames": 2, "c_concat": latents(2, seed=1)} if family == "svd" else {}
    given = text(family, **extra)

    def predictions():
        model = fresh(f"{family}_narrow")
        control = control_for(base_folder, "svd_v2" if family == "svd" else family, unet=name, mode=mode)
        patched = apply(model, control, hints(2))
        return [evaluate(one, [[given]], latents(2), 3.0)[0] for one in (patched, model, patched)]

    plain, found = both(predictions, limit)
    for one, other in zip(found, plain, strict=True):
        assert_close(one, other, atol=1e-5 * float(other.abs().max()), rtol=0)
    assert torch.equal(found[0], found[2])  # the original is back in between, and the patches after it
    assert not torch.allclose(found[0], found[1])


def drawn() -> torch.Tensor:
    """A picture of the demo model, after two steps."""
    model, clip, vae = load_demo_model()
    positive, negative = (nodes.CLIPTextEncode().encode(clip, words)[0] for words in ("red apple", ""))
    empty = {"samples": torch.zeros(1, 4, 8, 8)}
    latent = nodes.KSampler().sample(model, 1, 2, 4.0, "euler", "normal", positive, negative, empty)[0]
    return nodes.VAEDecode().decode(vae, latent)[0]


@pytest.mark.parametrize("limit", LIMITS)
def test_the_demo_model_draws_the_same(limit):
    plain, found = both(drawn, limit)
    assert_close(found, plain, atol=1e-5, rtol=0)


def test_the_demo_model_is_layered_where_the_host_has_it_and_can_be_made_anew():
    with dynamic_vram():
        model, clip, vae = load_demo_model()
        for patcher in (model, clip.patcher, vae.patcher):
            assert is_dynamic(patcher) == HAS_DYNAMIC
            make, given, index = patcher.cached_patcher_init
            again = make(*given, disable_dynamic=True)[index]
            assert not is_dynamic(again)
            assert identity_of(again) == identity_of(patcher)
            assert again.model is not patcher.model


def test_a_damaged_demo_model_is_still_named(tmp_path):
    for path in DEMO.glob("demo_*.safetensors"):
        (tmp_path / path.name).symlink_to(path)
    weights = load_file(DEMO / UNET_FILE)
    key = "input_blocks.1.0.emb_layers.1.weight"
    cut = {name: tensor for name, tensor in weights.items() if name != key}
    for tensors, said in ((cut, "missing"), (weights | {key: weights[key][:, :-1].clone()}, r"\[64, 255\]")):
        (tmp_path / UNET_FILE).unlink()
        save_file(tensors, tmp_path / UNET_FILE)
        with dynamic_vram(), pytest.raises(ValueError, match=rf"'{UNET_FILE}' is damaged \('{key}' is {said} in it"):
            load_demo_model(tmp_path)


# Training


@pytest.fixture(scope="module")
def pairs(base_folder):
    return write_dataset(base_folder, "dynamic_pairs")


@pytest.fixture
def narrow_modules(monkeypatch):
    sizes = replace(GENERATIONS[2], stem=(16, 16, 32), blocks=((32, 32), (32, 64)), mid=64, time_features=64, time_width=128)
    monkeypatch.setattr(recipe_controlnext, "GENERATIONS", (sizes,) * 3)


def tensors_of(base_folder, folder, result):
    return {key: t for name in result.files for key, t in load_file(base_folder / "models" / folder / name).items()}


@needs_dynamic
def test_ctrlora_trains_the_same(base_folder, pairs):
    def trained():
        model = fresh("ctrlora")
        evaluate(model, [[prompt(seeded_tensor("text", [1, 7, 96]))]], latents(), 3.0)
        name = f"dynamic/{is_dynamic(model)}"
        result = train_job.train(small_job(base_folder, pairs, name, model=model, sensitivity_every=2, validation_pairs=2))
        return result.losses, tensors_of(base_folder, "ctrlora", result)

    (losses, expected), (found_losses, found) = both(trained, LIMITS[0])
    assert found_losses == pytest.approx(losses, rel=1e-5)
    for key, tensor in expected.items():
        assert_close(found[key], tensor, atol=1e-6, rtol=1e-5)


@needs_dynamic
def test_controlnext_trains_on_from_a_run_without_it(base_folder, narrow_modules):
    """On a model with a LoRA, which is in no weight there; sampled before and after, which leaves weights behind."""
    lora, pairs = seeded_tensor("lora", [64, 64]) / 8, write_dataset(base_folder, "dynamic_controlnext_pairs")

    def trained(name, steps):
        model = fresh("sd15_narrow").clone()
        model.add_patches({LORA_KEY: (lora,)}, 0.5)
        before = evaluate(model, [[text()]], latents(), 3.0)[0]
        options = {"steps": steps, "learning_rate": 1e-3, "save_every": 2, "preview_every": 2, "preview_steps": 2}
        options |= {"validation_pairs": 2, "clip": SmallCLIP(WIDTHS["sd15"]), "model": model}
        result = train_job.train(small_job(base_folder, pairs, name, recipe=ControlNeXtRecipe(ControlNeXtOptions()), **options))
        assert_close(evaluate(model, [[text()]], latents(), 3.0)[0], before, atol=1e-6, rtol=0)
        return result.losses, tensors_of(base_folder, "controlnext", result)

    losses, expected = trained("dynamic/plain", 4)
    trained("dynamic/resumed", 2)
    with dynamic_vram():
        resumed_losses, found = trained("dynamic/resumed", 4)
        comfy.model_management.unload_all_models()
    assert resumed_losses == pytest.approx(losses, rel=1e-5)
    for key, tensor in expected.items():
        assert_close(found[key], tensor, atol=1e-6, rtol=1e-5)


@needs_dynamic
def test_a_model_that_cannot_be_loaded_again_is_refused_for_training(base_folder, pairs):
    with dynamic_vram():
        model = fresh("ctrlora")
        model.cached_patcher_init = None
        with pytest.raises(ValueError, match=r"cannot load it again.*'Load Checkpoint'.*--disable-dynamic-vram"):
            train_job.train(small_job(base_folder, pairs, "dynamic/refused", model=model))


@pytest.mark.skipif(not hasattr(comfy.model_management, "in_training"), reason="this host does not ask whether a training runs")
def test_the_host_knows_that_a_training_runs(base_folder, pairs):
    seen = []
    job = small_job(base_folder, pairs, "dynamic/marked", steps=1)
    build = job.recipe.build
    job.recipe.build = lambda *given: seen.append(comfy.model_management.in_training) or build(*given)
    train_job.train(job)
    assert seen == [True]
    assert not comfy.model_management.in_training


def test_what_the_host_notes_on_a_weight_stays_when_it_is_shared_with_autograd():
    layer = nn.Linear(2, 2)
    assert layer.weight.is_inference()
    layer.weight._model_dtype = torch.float16
    with torch.inference_mode(mode=False):
        share_with_autograd(layer)
    assert not layer.weight.is_inference()
    assert layer.weight._model_dtype == torch.float16


# Several GPUs


def test_a_control_that_is_to_be_copied_to_a_second_gpu_says_so(base_folder):
    refused = (ValueError, RuntimeError)
    said = r"'.+' runs on one GPU: remove 'MultiGPU CFG Split'.*'Select Model Device' before"
    control = control_of(base_folder, load_small_base(base_folder))
    with pytest.raises(refused, match=said):
        control.deepclone_multigpu(torch.device("cpu"), autoregister=True)
    patched = apply(fresh("sd15_narrow"), control_for(base_folder), hints())
    for network in (*control.get_models(), *patched.get_nested_additional_models()):
        make, given = network.cached_patcher_init
        with pytest.raises(refused, match=said):
            make(*given)
    if hasattr(patched, "deepclone_multigpu"):
        with pytest.raises(refused, match=said):
            patched.deepclone_multigpu(torch.device("cpu"))


def test_a_controlnext_is_loaded_layer_by_layer_and_where_its_model_is(base_folder):
    with dynamic_vram():
        model, control = fresh("sd15_narrow"), control_for(base_folder)
        (network,) = apply(model, control, hints()).get_nested_additional_models()
        assert is_dynamic(network) == HAS_DYNAMIC
        assert not is_dynamic(manage(nn.Identity(), "x"))
        elsewhere = model.clone()
        elsewhere.load_device = torch.device("meta")
        (other,) = apply(elsewhere, control, hints()).get_nested_additional_models()
    assert other.load_device == elsewhere.load_device
    assert network.load_device == model.load_device


def test_a_weight_in_its_files_type_is_the_weight_that_is_computed_with():
    """Otherwise a training that was begun without dynamic VRAM would be taken for one of another model."""
    kept, converted = nn.Linear(3, 3), nn.Linear(3, 3)
    converted.load_state_dict(kept.state_dict())
    converted.half()
    for layer in (kept, converted):
        layer.weight_comfy_model_dtype = layer.bias_comfy_model_dtype = torch.float16
    assert identity_of(manage(kept, "x")) == identity_of(manage(converted, "x"))
