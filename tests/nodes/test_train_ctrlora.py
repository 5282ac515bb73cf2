"""Training on the host: in the executor's inference mode, cancelled, gone on with, refused, and its file loaded."""

from __future__ import annotations

import json
from pathlib import Path

import comfy.model_management
import pytest
import torch
from ctrlora_files import load_small_base
from host_models import build_model
from nextcontrol.models.adapted import Group
from nextcontrol.nodes.host.ctrlora_load import load_condition
from nextcontrol.nodes.host.encoders import HostTexts, identity_of
from nextcontrol.nodes.host.recipe_ctrlora import CtrLoRARecipe
from nextcontrol.nodes.host.train_files import files_for
from nextcontrol.nodes.host.train_job import train as run_job
from nextcontrol.training.config import TrainConfig
from safetensors import safe_open
from seeded import seeded_tensor
from tiny_training import write_pairs
from train_stand_ins import WIDTH, SmallCLIP, SmallVAE, small_job, train, write_dataset

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pairs(base_folder):
    return write_dataset(base_folder, "train_pairs")


@pytest.fixture(scope="module")
def finished(base_folder, pairs):
    """A training with everything on, run as the executor runs it."""
    with torch.inference_mode():
        return train(
            base_folder, pairs, "done/all", preview_every=4, preview_steps=2, sensitivity_every=2, validation_pairs=2
        )  # fmt: skip


def trained(base_folder, name):
    with safe_open(files_for(name).main, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def test_the_file_loads_in_our_loader_and_does_what_was_trained(base_folder, finished):
    base = load_small_base(base_folder)
    patcher, _ = load_condition(base, finished.files[0], "")
    tensors, _ = trained(base_folder, finished.files[0])
    hint, times, text = seeded_tensor("h", [1, 4, 8, 8]), torch.tensor([500.0]), seeded_tensor("t", [1, 77, 96])
    plain = base.network.model(hint, times, text, 4)
    adapted = base.network.model(hint, times, text, 4, [Group(patcher.model, 1.0, 1)])
    assert all(not torch.equal(a, b) for a, b in zip(plain, adapted, strict=True))
    for key, tensor in patcher.model.tensors().items():
        assert torch.equal(tensor, tensors[f"control_model.{key}"])
    assert any(tensor.abs().max() > 0 for key, tensor in tensors.items() if key.endswith("up.weight"))


def test_after_twenty_steps_the_file_in_the_loader_has_the_trained_networks_controls(base_folder, pairs):
    class Kept(CtrLoRARecipe):
        def build(self, model, config):
            self.built = super().build(model, config)
            return self.built

    base = load_small_base(base_folder)
    recipe = Kept(base, 4)
    result = train(base_folder, pairs, "done/twenty", recipe=recipe, steps=20, save_every=20)
    patcher, _ = load_condition(base, result.files[0], "")
    hint, times, text = seeded_tensor("h", [1, 4, 8, 8]), torch.tensor([500.0]), seeded_tensor("t", [1, 77, 96])
    with torch.no_grad():
        expected = recipe.built.control(hint, hint, times, text, "").residuals
        found = base.network.model(hint, times, text, 4, [Group(patcher.model, 1.0, 1)])
        plain = base.network.model(hint, times, text, 4)
    for ours, trained_one, untrained in zip(found, expected, plain, strict=True):
        torch.testing.assert_close(ours, trained_one, rtol=1e-5, atol=1e-5)
        assert not torch.equal(ours, untrained)


def test_the_header_tells_where_the_file_comes_from(base_folder, finished):
    _, metadata = trained(base_folder, finished.files[0])
    expected = {"kind": "ctrlora_lora", "rank": "4", "steps": "4", "pairs": "6", "learning_rate": "0.001", "family": "sd15"}
    assert {key: metadata[f"nextcontrol.{key}"] for key in expected} == expected
    assert len(metadata["nextcontrol.base_hash"]) == len(metadata["nextcontrol.dataset_hash"]) == 40
    assert TrainConfig.from_json(metadata["nextcontrol.settings"]).rank == 4
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{metadata["nextcontrol.version"]}"' in pyproject


def test_numbers_states_and_previews_lie_beside_the_file(finished):
    files = files_for("done/all")
    lines = [json.loads(line) for line in files.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert {"step", "loss", "smoothed_loss", "learning_rate", "grad_norm", "images_per_second"} <= lines[1].keys()
    assert [line["step"] for line in lines if "sensitivity_shuffled" in line] == [0, 2, 4]
    assert sorted(path.name for path in files.folder.iterdir()) == [
        "metrics.jsonl", "previews", "state-00000002.state", "state-00000004.state",
    ]  # fmt: skip
    assert finished.previews.shape == (2, 512, 768, 3)
    assert finished.previews.std() > 0.05
    assert len(finished.losses) == 4


def test_a_model_from_a_loader_in_inference_mode_can_be_trained(base_folder, pairs):
    """The golden's model in this process is made outside; this one is made as the executor makes it."""
    build_model.cache_clear()
    model = build_model("ctrlora", seed=5)
    assert next(model.model.diffusion_model.parameters()).is_inference()
    result = train(base_folder, pairs, "inference", model=model, steps=1)
    assert len(result.losses) == 1


def test_a_second_queue_in_the_same_process_works(base_folder, pairs, finished):
    again = train(base_folder, pairs, "second", preview_every=0, sensitivity_every=2, validation_pairs=2)
    assert again.losses == finished.losses


def test_cancel_saves_raises_again_and_the_next_queue_finishes(base_folder, pairs, cancel_at, finished):
    cancel_at(3, 4)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(base_folder, pairs, "cancelled", sensitivity_every=2, validation_pairs=2)
    files = files_for("cancelled")
    assert (files.folder / "state-00000003.state").is_file()
    assert files.main.is_file()
    result = train(base_folder, pairs, "cancelled", sensitivity_every=2, validation_pairs=2)
    assert result.losses == finished.losses
    whole, broken = (trained(base_folder, name)[0] for name in ("done/all", "cancelled"))
    assert all(torch.equal(broken[key], tensor) for key, tensor in whole.items())


def test_the_last_line_on_the_node_is_that_of_the_last_step(base_folder, pairs):
    shown = []
    run_job(small_job(base_folder, pairs, "lines"), shown.append)
    assert shown[-1].startswith("step 4 of 4, loss ")


def test_a_taken_name_is_refused(base_folder, pairs, finished):
    with pytest.raises(ValueError, match=r"A training named 'done/all\.safetensors' is there already: set resume"):
        train(base_folder, pairs, "done/all", is_resumed=False)
    files = files_for("foreign")
    files.main.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"'foreign.safetensors' is there already without a saved training"):
        train(base_folder, pairs, "foreign")
    assert files.main.read_bytes() == b"x"


def test_other_data_another_model_or_other_settings_are_refused(base_folder, pairs, finished):
    common = {"preview_every": 0, "preview_steps": 2, "sensitivity_every": 2, "validation_pairs": 2}
    with pytest.raises(ValueError, match="rank was 4 and is 2"):
        train(base_folder, pairs, "done/all", **common | {"rank": 2})
    with pytest.raises(ValueError, match="the model changed"):
        train(base_folder, pairs, "done/all", model=build_model("ctrlora", seed=9), **common)
    with pytest.raises(ValueError, match="the base changed"):
        train(base_folder, pairs, "done/all", base=load_small_base(base_folder, seed=1), **common)
    other = write_dataset(base_folder, "train_other", count=7)
    with pytest.raises(ValueError, match="the dataset changed"):
        train(base_folder, other, "done/all", **common)


def test_what_a_checkpoint_lacks_and_no_text_is_read_with_is_no_other_text_encoder():
    """SD1.5's projection: the host leaves it as it finds it in memory."""
    clips = SmallCLIP(), SmallCLIP()
    for value, clip in enumerate(clips):
        clip.cond_stage_model.text_projection = torch.nn.Linear(2, 2, bias=False)
        torch.nn.init.constant_(clip.cond_stage_model.text_projection.weight, value)
    assert HostTexts(clips[0], WIDTH).identity == HostTexts(clips[1], WIDTH).identity
    assert identity_of(clips[0].patcher) != identity_of(clips[1].patcher)
    torch.nn.init.constant_(clips[1].cond_stage_model.weight, 3)
    assert HostTexts(clips[0], WIDTH).identity != HostTexts(clips[1], WIDTH).identity


def test_a_lora_on_the_model_is_another_model_loaded_or_not(pairs):
    model = build_model("ctrlora")
    plain = identity_of(model, "diffusion_model.")
    patched = model.clone()
    key = "diffusion_model.out.2.weight"
    patch = torch.ones_like(model.model.state_dict()[key])
    patched.add_patches({key: (patch,)}, 0.5)
    other = identity_of(patched, "diffusion_model.")
    assert other != plain
    comfy.model_management.load_models_gpu([patched])
    assert identity_of(patched, "diffusion_model.") == other
    comfy.model_management.load_models_gpu([model])
    assert identity_of(model, "diffusion_model.") == plain
    weaker = model.clone()
    weaker.add_patches({key: (patch,)}, 0.25)
    assert identity_of(weaker, "diffusion_model.") != other


def test_one_flipped_pixel_encodes_one_picture_again(base_folder):
    from PIL import Image

    name = write_dataset(base_folder, "train_pixel")
    vae = SmallVAE()
    train(base_folder, name, "pixel_1", vae=vae, steps=1)
    assert len(vae.seen) == 12
    path = base_folder / "input" / name / "target" / "003.png"
    picture = Image.open(path).convert("RGB")
    picture.putpixel((5, 5), tuple(255 - value for value in picture.getpixel((5, 5))))
    picture.save(path)
    vae.seen.clear()
    train(base_folder, name, "pixel_2", vae=vae, steps=1)
    assert len(vae.seen) == 1


def test_hints_are_encoded_in_0_to_1_and_targets_in_minus_1_to_1(base_folder):
    name = write_dataset(base_folder, "train_range")
    vae = SmallVAE()
    train(base_folder, name, "range", vae=vae, steps=1)
    targets, hints = vae.seen[0::2], vae.seen[1::2]
    assert min(t.min() for t in hints) == 0
    assert max(t.max() for t in hints) == 1
    assert min(t.min() for t in targets) < -0.5


def test_captions_are_plain_text_of_77_tokens(base_folder):
    name = write_dataset(base_folder, "train_caption")
    (base_folder / "input" / name / "target" / "000.txt").write_text("a (red:1.3) house\n by the sea")
    clip = SmallCLIP()
    train(base_folder, name, "caption", clip=clip, steps=1)
    assert "a \\(red:1.3\\) house by the sea" in clip.seen
    assert "" in clip.seen


WRONG = {
    "an SDXL model": ({"model": lambda: build_model("sdxl_narrow")}, "made for text of width 96"),
    "a VAE of another kind": (
        {"vae": type("Vae", (), {"latent_channels": 16, "latent_dim": 2})}, "The VAE has 16 latent channels"
    ),
    "a text encoder of another width": ({"clip": lambda: SmallCLIP(768)}, "The text encoder gives texts of width 768"),
    "a rank too large": ({"rank": lambda: 65}, r"rank \(65\) must be at most 64"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_before_anything_is_encoded(base_folder, pairs, case):
    changes, sentence = WRONG[case]
    with pytest.raises(ValueError, match=sentence):
        train(base_folder, pairs, "wrong", **{key: make() for key, make in changes.items()})
    assert not files_for("wrong").folder.exists()


def test_a_patched_model_is_refused(base_folder, pairs):
    model = build_model("ctrlora").clone()
    model.set_model_attn1_patch(lambda *tokens: tokens[:3])
    with pytest.raises(ValueError, match="carries patches of other nodes"):
        train(base_folder, pairs, "patched", model=model)


@pytest.mark.parametrize("name", ["", "../x", "/etc/x", "a/../../x", "C:x"])
def test_a_name_that_leads_out_is_refused(base_folder, pairs, name):
    with pytest.raises(ValueError, match="name is"):
        train(base_folder, pairs, name)


def test_too_few_pairs_are_refused(base_folder):
    name = write_dataset(base_folder, "train_single", count=1)
    with pytest.raises(ValueError, match="has 1 usable pair and training needs 2 or more"):
        train(base_folder, name, "single")


def test_hints_of_another_shape_and_unreadable_pictures_are_named_or_skipped(base_folder):
    folder = write_pairs(base_folder / "input" / "train_bad", count=5)
    (folder / "target" / "001.png").write_bytes(b"no picture")
    cut = folder / "source" / "002.png"
    cut.write_bytes(cut.read_bytes()[:-60])
    from PIL import Image

    Image.new("RGB", (64, 96)).save(folder / "source" / "003.png")
    with pytest.raises(ValueError, match=r"'target/001.png' is no readable picture") as caught:
        train(base_folder, "train_bad", "bad")
    assert "'target/003.png' is 64x64 and its hint 64x96" in str(caught.value)
    result = train(base_folder, "train_bad", "bad", dataset_settings={"bad_pairs": "skip"})
    assert len(result.losses) == 4
    _, metadata = trained(base_folder, "bad")
    assert metadata["nextcontrol.pairs"] == "2"


def test_the_file_becomes_the_authors_checkpoint_and_loads_from_it(base_folder, finished):
    from nextcontrol.nodes.host.convert import convert_file

    name = convert_file(finished.files[0], "auto", "keep", "done/for_the_authors", layout="ckpt")
    assert name == "done/for_the_authors.ckpt"
    path = files_for("done/all").main.with_name("for_the_authors.ckpt")
    written = torch.load(path, weights_only=True)
    tensors, _ = trained(base_folder, finished.files[0])
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[key], tensor) for key, tensor in tensors.items())
    patcher, _ = load_condition(load_small_base(base_folder), name, "")
    assert all(torch.equal(tensor, tensors[f"control_model.{key}"]) for key, tensor in patcher.model.tensors().items())


def test_the_hint_of_a_preview_has_the_hints_own_brightness():
    """It was encoded in [0, 1]; the host's decoder maps [-1, 1] to [0, 1]."""
    from types import SimpleNamespace

    from nextcontrol.nodes.host.train_preview import PreviewPainter

    vae = SimpleNamespace(decode=lambda latents: ((latents[:, :3] + 1) / 2).movedim(1, -1))
    hint = torch.rand(1, 4, 8, 8)
    painter = PreviewPainter(vae, SimpleNamespace(scale=0.5, held_out=[], frames=1), [])
    torch.testing.assert_close(painter._show_hint(hint * 0.5), hint[0, :3])
    torch.testing.assert_close(painter._decode((hint * 2 - 1) * 0.5), hint[0, :3])
    assert torch.equal(painter._show_hint(hint[:, :3]), hint[0, :3])
