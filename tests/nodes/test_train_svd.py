"""ControlNeXt training of SVD on the host: clips, all of the UNet, and files that the nodes draw with."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import comfy.ldm.models.autoencoder
import comfy.model_management
import comfy.sd
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from host_models import build_model, evaluate, prompt
from narrow import apply, hints, latents
from nextcontrol.models.controlnext import GENERATIONS
from nextcontrol.nodes.host import recipe_controlnext, train_job
from nextcontrol.nodes.host.backbone_svd import HostVideoBackbone
from nextcontrol.nodes.host.controlnext_file import load_controlnext_file
from nextcontrol.nodes.host.dataset_folders import open_dataset
from nextcontrol.nodes.host.encoders import HostPictures, HostVision
from nextcontrol.nodes.host.recipe_controlnext import ControlNeXtRecipe
from nextcontrol.nodes.host.train_files import files_for
from nextcontrol.nodes.host.train_job import TrainJob
from nextcontrol.nodes.host.train_script import read_job, train_from_text
from nextcontrol.training.backbone import NO_CONTROL
from nextcontrol.training.clips import ClipSettings
from nextcontrol.training.config import TrainConfig
from nextcontrol.training.dataset import DatasetSettings
from nextcontrol.training.method_controlnext import ControlNeXtOptions
from safetensors import safe_open
from seeded import seeded_tensor
from tiny_clips import write_clips
from tiny_training import write_pairs
from torch import nn
from torch.testing import assert_close
from train_stand_ins import SmallVAE

FRAMES, SIGMA = 3, 3.0
CLIPS = ClipSettings(frames=FRAMES, interval=2)
CONFIG = {
    "steps": 4,
    "learning_rate": 1e-4,
    "save_every": 50,
    "preview_every": 0,
    "sensitivity_every": 0,
    "validation_pairs": 0,
}


class SmallVision:
    """Stands for the checkpoint's image encoder."""

    image_size = 32

    def __init__(self, width=1024):
        device = comfy.model_management.get_torch_device()
        self.width, self.seen = width, []
        self.patcher = ModelPatcher(nn.Linear(2, 2), load_device=device, offload_device=device)
        with torch.no_grad():
            for parameter in self.patcher.model.parameters():
                parameter.fill_(width / 2048)

    def encode_image(self, image, crop=True):
        """An embedding that depends on the mean colour."""
        self.seen.append((image, crop))
        return SimpleNamespace(image_embeds=image.mean() * seeded_tensor("vision", [len(image), self.width]))


class Kept(ControlNeXtRecipe):
    """Keeps the method that was trained."""

    def build(self, model, config):
        """As ever."""
        self.built = super().build(model, config)
        return self.built


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", autouse=True)
def narrow_modules():
    """New modules are of the published layout in other widths."""
    sizes = {"stem": (16, 16, 32), "blocks": ((32, 32), (32, 64)), "mid": 64, "time_features": 64, "time_width": 128}
    with pytest.MonkeyPatch.context() as patch:
        narrow = (*GENERATIONS[:2], dataclasses.replace(GENERATIONS[2], **sizes))
        patch.setattr(recipe_controlnext, "GENERATIONS", narrow)
        yield


@pytest.fixture(scope="module")
def clips(base_folder):
    write_clips(base_folder / "input" / "svd_clips", {"a": 5, "b": 6, "c": 5})
    return "svd_clips"


def job(dataset, name, **changes):
    """A small SVD to train, with everything that its checkpoint has."""
    recipe = changes.pop("recipe", None) or Kept(ControlNeXtOptions(control_rate_factor=1.0))
    parts = {"model": build_model("svd_tiny"), "vae": SmallVAE(), "clip_vision": SmallVision(), "clips": CLIPS}
    parts = {key: changes.pop(key, part) for key, part in parts.items()}
    opened = open_dataset(dataset, DatasetSettings(resolution=64, **changes.pop("dataset_settings", {})))
    config = TrainConfig(**CONFIG | changes)
    return TrainJob(clip=None, recipe=recipe, dataset=opened, name=name, config=config, is_resumed=True, **parts)


def run(dataset, name, **changes):
    """Train; gives the recipe, with its method, and the result."""
    given = job(dataset, name, **changes)
    return given.recipe, train_job.train(given)


@pytest.fixture(scope="module")
def finished(base_folder, clips):
    """20 updates, as the executor runs them."""
    with torch.inference_mode():
        return run(clips, "svd/done", steps=20, sensitivity_every=10, validation_pairs=2)


def header(result, number):
    with safe_open(files_for(result.files[number], "controlnext").main, framework="pt") as file:
        return set(file.keys()), file.metadata()


# What the network computes


def given(count=1):
    """(noisy, times, context, extras) of some clips."""
    extras = {
        "reference": seeded_tensor("reference", [count, 4, 8, 12]),
        "numbers": torch.tensor([[6, 127, 0.02], [9, 40, 0.1]])[:count],
    }
    times = torch.full((count * FRAMES,), SIGMA).log() / 4
    return latents(count * FRAMES), times, seeded_tensor("context", [count, 1, 1024]), extras


def in_training(model, method, count=1, checkpointing=False, **changes):
    """What the network in training predicts."""
    noisy, times, context, extras = given(count)
    noisy, context = changes.get("noisy", noisy), changes.get("context", context)
    frames = hints(count * FRAMES).movedim(-1, 1)
    control = NO_CONTROL if method is None else method.control(noisy, frames, times, context, "")
    return HostVideoBackbone(model, checkpointing).predict(noisy, times, context, control, extras)


def on_the_host(model, number=0):
    """What the host's own sampling code predicts for one of the clips."""
    noisy, _, context, extras = (part[:2] if isinstance(part, tuple) else part for part in given(2))
    fps, motion, augmentation = extras["numbers"][number].tolist()
    told = model.model.encode_adm(fps=round(fps) + 1, motion_bucket_id=round(motion), augmentation_level=augmentation)
    concat = extras["reference"][number, None].expand(FRAMES, -1, -1, -1)
    asked = prompt(context[number, None], y=told, c_concat=concat, num_video_frames=FRAMES)
    rows = slice(number * FRAMES, (number + 1) * FRAMES)
    return evaluate(model, [[asked]], noisy[rows], SIGMA)[0]


def test_the_backbone_predicts_what_the_host_predicts(clips):
    model = build_model("svd_tiny")
    comfy.model_management.load_models_gpu([model])
    both = in_training(model, None, count=2)
    assert_close(both[:FRAMES], on_the_host(model, 0), rtol=1e-5, atol=1e-5)
    assert_close(both[FRAMES:], on_the_host(model, 1), rtol=1e-5, atol=1e-5)


def test_frames_know_of_their_own_clip_alone(clips):
    model = build_model("svd_tiny")
    before = in_training(model, None, count=2)
    noisy = given(2)[0].clone()
    noisy[FRAMES] *= 10
    after = in_training(model, None, count=2, noisy=noisy)
    assert_close(after[:FRAMES], before[:FRAMES], rtol=1e-6, atol=1e-6)
    assert (after[FRAMES + 1 :] - before[FRAMES + 1 :]).abs().max() > 1e-4


def test_the_files_in_the_nodes_predict_what_the_trained_network_predicts(finished):
    recipe, result = finished
    model = build_model("svd_tiny")
    assert [name.removesuffix(".safetensors") for name in result.files] == ["svd/done", "svd/done_unet"]
    control = load_controlnext_file(result.files[0], result.files[1], "auto", "auto")
    patched = apply(model, control, hints(FRAMES))
    found = on_the_host(patched)
    expected = in_training(model, recipe.built)
    assert_close(found, expected, rtol=1e-5, atol=1e-5)
    plain, without = on_the_host(model), apply(model, load_controlnext_file(result.files[0], "none", "auto", "auto"), hints(3))
    assert (found - plain).abs().max() > 1e-2
    assert (found - on_the_host(without)).abs().max() > 1e-3
    assert_close(plain, in_training(model, None), rtol=1e-5, atol=1e-5)


def test_the_headers_say_what_the_loader_has_to_know(finished):
    _, result = finished
    names, metadata = header(result, 0)
    expected = {
        "kind": "controlnext", "family": "svd", "variant": "svd_v2", "stem_padding": "1", "scale": "1.0", "steps": "20",
        "unet_weights": "delta", "unet_part": "auto", "pairs": "3",
    }  # fmt: skip
    assert {key: metadata[f"nextcontrol.{key}"] for key in expected} == expected
    assert json.loads(metadata["nextcontrol.clips"]) == dataclasses.asdict(CLIPS)
    assert len(names) == 52
    unet, metadata = header(result, 1)
    assert metadata["nextcontrol.unet_weights"] == "delta"
    assert unet == {name for name, _ in build_model("svd_tiny").model.diffusion_model.named_parameters()}


def test_all_of_the_unet_and_all_of_the_module_learn(finished):
    recipe, result = finished
    with safe_open(files_for(result.files[1], "controlnext").main, framework="pt") as file:
        still = [key for key in file.keys() if not file.get_tensor(key).any()]  # noqa: SIM118 - the reader is no dictionary
    assert not still
    assert len(recipe.built.parameters()) == 52 + len(header(result, 1)[0])


def test_the_model_is_as_it_was(finished):
    model = build_model("svd_tiny")
    fresh = build_model.__wrapped__("svd_tiny")
    for key, tensor in fresh.model.diffusion_model.state_dict().items():
        assert torch.equal(model.model.diffusion_model.state_dict()[key], tensor)


def test_the_numbers_of_the_run_are_written_down(finished):
    _, result = finished
    lines = [json.loads(line) for line in files_for("svd/done", "controlnext").metrics.read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 21))
    assert [line["step"] for line in lines if "sensitivity_shuffled" in line] == [0, 10, 20]
    assert len(result.losses) == 20


def test_checkpointing_changes_no_gradient(finished):
    recipe, _ = finished
    model = build_model("svd_tiny")
    with train_job.training_mode([model], is_cast=True):
        found = []
        for checkpointing in (False, True):
            for tensor in recipe.built.parameters().values():
                tensor.grad = None
            in_training(model, recipe.built, checkpointing=checkpointing).square().mean().backward()
            found.append([tensor.grad.clone() for tensor in recipe.built.parameters().values()])
    assert all(grad.abs().max() > 0 for grad in found[0])
    for one, other in zip(*found, strict=True):
        assert_close(one, other)


# Runs


def test_a_cancelled_run_goes_on_and_ends_as_one_that_was_not(base_folder, clips, cancel_at):
    _, whole = run(clips, "svd/whole", validation_pairs=1)
    cancel_at(2, 4)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(clips, "svd/broken", validation_pairs=1)
    _, broken = run(clips, "svd/broken", validation_pairs=1)
    assert broken.losses == whole.losses
    for one, other in zip(whole.files, broken.files, strict=True):
        with (
            safe_open(files_for(one, "controlnext").main, framework="pt") as first,
            safe_open(files_for(other, "controlnext").main, framework="pt") as second,
        ):
            assert all(torch.equal(first.get_tensor(key), second.get_tensor(key)) for key in first.keys())  # noqa: SIM118


def test_other_clip_settings_are_another_training(clips, finished):
    with pytest.raises(ValueError, match="the dataset changed"):
        run(clips, "svd/done", steps=20, sensitivity_every=10, validation_pairs=2, clips=dataclasses.replace(CLIPS, interval=1))


def test_a_preview_shows_two_frames_of_each_clip_and_changes_nothing(clips, finished):
    _, result = run(clips, "svd/preview", steps=2, preview_every=2, preview_steps=2, preview_guidance=3.0, validation_pairs=2)
    _, plain = run(clips, "svd/no_preview", steps=2, validation_pairs=2)
    assert result.previews.shape == (2, 4 * 256, 3 * 256, 3)
    assert result.previews.std() > 0.05
    assert result.losses == plain.losses


# What it is made of


def test_the_embedding_is_that_of_the_node(clips):
    vision = SmallVision()
    pixels = seeded_tensor("pixels", [1, 3, 64, 96]).abs().clamp(max=1)
    found = HostVision(vision).encode(pixels)
    assert found.shape == (1, 1024)
    ((seen, is_cropped),) = vision.seen
    assert seen.shape == (1, 32, 32, 3)
    assert not is_cropped


def test_svds_own_autoencoder_gives_mean_and_deviation():
    """It has no quant_conv, and its `encode` gives the mode."""
    sizes = {
        "double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 1, 1, 1],
        "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    decoder = sizes | {"video_kernel_size": [3, 1, 1], "alpha": 0.0}
    stage = comfy.ldm.models.autoencoder.AutoencodingEngine(
        regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
        encoder_config={"target": "comfy.ldm.modules.diffusionmodules.model.Encoder", "params": sizes},
        decoder_config={"target": "comfy.ldm.modules.temporal_ae.VideoDecoder", "params": decoder},
    )
    for name, tensor in stage.named_parameters():
        tensor.data.copy_(seeded_tensor(name, tensor.shape) * 0.1)
    vae = SmallVAE()
    vae.first_stage_model = stage.eval()
    vae.encode = lambda pixels: stage.encode(pixels.movedim(-1, 1) * 2 - 1)
    pixels = seeded_tensor("pixels", [1, 3, 64, 64]).abs().clamp(max=1)
    mean, deviation = HostPictures(vae, "svd").encode(pixels, is_hint=False)
    assert_close(mean, vae.encode(pixels.movedim(1, -1)))
    assert_close(deviation, (stage.encoder(pixels * 2 - 1)[:, 4:].clamp(-30, 20) / 2).exp())


# What is refused

WRONG = {
    "no image encoder": ({"clip_vision": None}, "reads a picture in the place of text, and clip_vision is missing"),
    "an image encoder of another model": (
        {"clip_vision": lambda: SmallVision(768)}, "clip_vision makes embeddings of 768 numbers and SVD reads 1024"
    ),
    "a VAE of another kind": ({"vae": SimpleNamespace(latent_channels=16)}, "The VAE has 16 latent channels and training SVD"),
    "clips that are too short": ({"clips": ClipSettings()}, "none of 14 frames or more, the longest is 'b' with 6"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_in_one_sentence(clips, case):
    changes, sentence = WRONG[case]
    with pytest.raises(ValueError, match=sentence):
        run(clips, "svd/wrong", **{key: make() if callable(make) else make for key, make in changes.items()})
    assert not files_for("svd/wrong", "controlnext").folder.exists()


def test_pairs_of_pictures_are_refused_before_anything_is_encoded(base_folder):
    write_pairs(base_folder / "input" / "svd_pictures", count=4)
    vae = SmallVAE()
    with pytest.raises(ValueError, match="'svd_pictures' holds 4 pairs of pictures and no clips, and SVD is trained on clips"):
        run("svd_pictures", "svd/pictures", vae=vae)
    assert not vae.seen


def test_a_relative_of_svd_and_a_patched_model_are_refused(clips):
    patched = build_model("svd_tiny").clone()
    patched.set_model_attn1_patch(lambda *tokens: tokens[:3])
    with pytest.raises(ValueError, match="carries patches of other nodes"):
        run(clips, "svd/patched", model=patched)
    own = build_model("svd_tiny").model
    parts = {"model_config": own.model_config, "model_type": own.model_type, "diffusion_model": own.diffusion_model}
    relative = SimpleNamespace(model=SimpleNamespace(**parts), model_options={}, object_patches={})
    with pytest.raises(ValueError, match="SVD is the only video model that training knows"):
        Kept().check(relative, TrainConfig(**CONFIG))


# From a configuration file


def configuration(**parts):
    clip_settings = {"frames": FRAMES, "interval": 2}
    common = {
        "method": "controlnext", "checkpoint": "svd.safetensors", "name": "svd/script", "clips": clip_settings,
        "dataset": {"folder": "svd_clips", "resolution": 64}, "training": CONFIG | {"steps": 1},
    }  # fmt: skip
    return json.dumps(common | parts)


def test_a_configuration_trains_svd_with_what_is_in_its_checkpoint(base_folder, clips, monkeypatch):
    (base_folder / "models" / "checkpoints").mkdir(parents=True, exist_ok=True)
    (base_folder / "models" / "checkpoints" / "svd.safetensors").write_bytes(b"")

    def load(path, **asked):
        assert asked["output_clipvision"]
        return build_model("svd_tiny"), None, SmallVAE(), SmallVision()

    monkeypatch.setattr(comfy.sd, "load_checkpoint_guess_config", load)
    files = train_from_text(configuration(), lambda _text: None)
    assert files == ("controlnext/svd/script.safetensors", "controlnext/svd/script_unet.safetensors")
    with safe_open(base_folder / "models" / files[0], framework="pt") as file:
        assert file.metadata()["nextcontrol.variant"] == "svd_v2"
        assert json.loads(file.metadata()["nextcontrol.clips"])["frames"] == FRAMES


def test_clips_in_a_configuration_are_checked():
    assert read_job(configuration())["clips"] == CLIPS
    with pytest.raises(ValueError, match=r"frames \(0\) must be 2 or more"):
        read_job(configuration(clips={"frames": 0}))
    with pytest.raises(ValueError, match="'clips' is for SVD and ctrlora trains on pictures"):
        read_job(configuration(method="ctrlora", base="x"))
