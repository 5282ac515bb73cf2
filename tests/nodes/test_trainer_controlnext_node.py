"""The node Train ControlNeXt: what it trains, writes and gives out, and what it refuses."""

from __future__ import annotations

import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from narrow import WIDTHS, hints, narrow_model, predict
from nextcontrol.nodes import trainer_controlnext
from nextcontrol.nodes.host.dataset_folders import open_dataset
from nextcontrol.nodes.host.train_files import files_for
from nextcontrol.nodes.host.train_job import TrainResult
from nextcontrol.training.config import TrainConfig
from nextcontrol.training.dataset import DatasetSettings
from safetensors import safe_open
from train_stand_ins import SmallCLIP, SmallVAE, write_dataset

SMALL = {
    "steps": 3, "accumulation_steps": 1, "learning_rate": 1e-3, "save_every": 2, "preview_every": 0, "validation_pairs": 0,
    "sensitivity_every": 0,
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def dataset(base_folder):
    return open_dataset(write_dataset(base_folder, "node_controlnext_pairs"), DatasetSettings(resolution=64))


@pytest.fixture
def node(pack_nodes):
    return pack_nodes["NextControlTrainControlNeXt"]


def defaults(node):
    """What the page fills in."""
    return {spec.id: spec.default for spec in node.GET_SCHEMA().inputs if getattr(spec, "default", None) is not None}


def execute(node, dataset, name, model=None, **changes):
    """The node as the executor runs it; its four outputs."""
    given = {"model": model or narrow_model(), "vae": SmallVAE(), "clip": SmallCLIP(WIDTHS["sd15"]), "dataset": dataset}
    with torch.inference_mode():
        return node.execute(**{**defaults(node), **SMALL, "name": name, **given, **changes}).result


def trained(name, suffix=""):
    with safe_open(files_for(name, "controlnext").path(suffix), framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.fixture(scope="module")
def finished(pack_nodes, dataset):
    """A training with everything on; a preview takes two sampling steps in the place of twenty."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_controlnext, "TrainConfig", partial(TrainConfig, preview_steps=2))
        settings = {"preview_every": 3, "validation_pairs": 2, "sensitivity_every": 3}
        return execute(pack_nodes["NextControlTrainControlNeXt"], dataset, "node/all", **settings)


def test_the_outputs_are_both_files_the_losses_and_the_previews(finished):
    control_file, unet_file, loss, previews = finished
    assert (control_file, unet_file) == ("node/all.safetensors", "node/all_unet.safetensors")
    assert len(loss["loss"]) == 3
    assert previews.shape == (2, 512, 768, 3)
    assert previews.std() > 0.05


def test_the_outputs_feed_load_and_apply(pack_nodes, finished):
    load, use = pack_nodes["NextControlLoadControlNeXt"], pack_nodes["NextControlApplyControlNeXt"]
    (control,) = load.execute(*finished[:2], "auto", "auto").result
    (patched,) = use.execute(narrow_model(), control, hints(), 1.0, 0.0, 1.0).result
    assert not torch.equal(predict(patched), predict(narrow_model()))
    assert len(control.unet.tensors) == len(trained("node/all", "_unet")[0])
    assert any(tensor.abs().max() > 0 for tensor in control.unet.tensors.values())


def test_the_loader_waits_for_names_that_come_through_a_link(pack_nodes, finished):
    load = pack_nodes["NextControlLoadControlNeXt"]
    assert load.validate_inputs(None, None) is True
    assert load.validate_inputs(finished[0], None) is True
    assert "'gone.safetensors' is not in any of" in load.validate_inputs(None, "gone.safetensors")
    assert load.fingerprint_inputs(None, None)[:2] == (None, None)


def test_the_settings_of_the_page_arrive(node, dataset):
    execute(
        node, dataset, "node/settings", steps=1, scale=0.35, unet_part="attn2_to_out", control_rate_factor=2.0,
        normalization="zero_convolution", min_snr_gamma=5.0, accumulation_steps=2,
    )  # fmt: skip
    tensors, metadata = trained("node/settings", "_unet")
    said = {key: metadata[f"nextcontrol.{key}"] for key in ("scale", "unet_part", "control_rate_factor", "normalization")}
    assert said == {
        "scale": "0.35", "unet_part": "attn2_to_out", "control_rate_factor": "2.0", "normalization": "zero_convolution",
    }  # fmt: skip
    settings = json.loads(metadata["nextcontrol.settings"])
    assert (settings["min_snr_gamma"], settings["accumulation_steps"], settings["learning_rate"]) == (5.0, 2, 1e-3)
    assert all("attn2.to_out" in key for key in tensors)


def test_without_a_part_of_the_unet_the_second_name_is_none_and_loads(pack_nodes, node, dataset):
    # The page's preview_every is 250: with no pairs held out the node makes no previews in the place of refusing.
    control_file, unet_file, *_ = execute(node, dataset, "node/module", steps=1, unet_part="none", preview_every=250)
    assert unet_file == "none"
    assert not files_for("node/module", "controlnext").path("_unet").exists()
    (control,) = pack_nodes["NextControlLoadControlNeXt"].execute(control_file, unet_file, "auto", "auto").result
    assert control.unet is None


def test_more_steps_go_on_and_give_what_one_run_gives(node, dataset):
    first = execute(node, dataset, "node/resumed", steps=2)
    again = execute(node, dataset, "node/resumed", steps=4)
    whole = execute(node, dataset, "node/whole", steps=4)
    assert first[2]["loss"] == whole[2]["loss"][:2]
    assert again[2]["loss"] == whole[2]["loss"]
    for suffix in ("", "_unet"):
        one, other = (trained(name, suffix)[0] for name in ("node/resumed", "node/whole"))
        assert one.keys() == other.keys()
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())


def test_progress_previews_numbers_and_sensitivity_are_there(finished):
    files = files_for("node/all", "controlnext")
    lines = [json.loads(line) for line in files.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    assert [line["step"] for line in lines if "sensitivity_shuffled" in line] == [0, 3]
    assert sorted(path.name for path in (files.folder / "previews").iterdir()) == ["step-00000000.jpg", "step-00000003.jpg"]
    assert any(path.suffix == ".state" for path in files.folder.iterdir())


def test_the_line_of_progress_goes_to_the_node(node, dataset, monkeypatch):
    shown = []
    monkeypatch.setattr(trainer_controlnext, "show_text", lambda text, node_id: shown.append((node_id, text)))
    monkeypatch.setattr(node, "hidden", SimpleNamespace(unique_id="17"), raising=False)
    execute(node, open_dataset(dataset.name, DatasetSettings(resolution=64, has_flip=True)), "node/shown", steps=1)
    assert ("17", "encoding pair 1 of 6") in shown


def test_a_model_without_its_encoder_is_refused_in_one_sentence(node, dataset):
    with pytest.raises(ValueError, match=r"The model is SD1\.5, which reads text, and clip is not connected: connect"):
        execute(node, dataset, "node/refused", clip=None)
    with pytest.raises(ValueError, match=r"The model is SDXL, which reads text, and clip is not connected: connect"):
        execute(node, dataset, "node/refused", model=narrow_model("sdxl"), clip=None)


def test_what_svd_needs_arrives_in_the_job(node, dataset, monkeypatch):
    jobs, vision = [], object()
    monkeypatch.setattr(trainer_controlnext, "train", lambda job, _show: jobs.append(job) or TrainResult(("x",), [], None))
    outputs = execute(node, dataset, "node/svd", clip=None, clip_vision=vision, frames=5, interval=0)
    assert (jobs[0].clips.frames, jobs[0].clips.interval) == (5, 0)
    assert jobs[0].clip_vision is vision
    assert outputs[:2] == ("x", "none")


def test_svd_needs_clips_long_enough_and_its_image_encoder(node, base_folder, dataset):
    name = write_dataset(base_folder, "node_controlnext_clips")
    for side in ("source", "target"):
        folder = base_folder / "input" / name / side
        (folder / "dance").mkdir()
        for path in folder.glob("*.*"):
            path.rename(folder / "dance" / path.name)
    clips = open_dataset(name, DatasetSettings(resolution=64))
    svd = {"model": narrow_model("svd"), "clip": None}
    with pytest.raises(ValueError, match=r"holds 6 pairs of pictures and no clips, and SVD is trained on clips: put"):
        execute(node, dataset, "node/refused", **svd)
    with pytest.raises(ValueError, match=r"has 1 clip and none of 7 frames or more, the longest is 'dance' with 6: use"):
        execute(node, clips, "node/refused", frames=7, **svd)
    with pytest.raises(ValueError, match=r"The model is SVD, .*, and clip_vision is missing: connect"):
        execute(node, clips, "node/refused", frames=3, **svd)
    assert not files_for("node/refused", "controlnext").folder.exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"unet_part": "to_in"}, r"unet_part \('to_in'\) must be auto or none"),
        ({"scale": 0.0, "control_rate_factor": -1.0}, r"scale \(0\.0\) must be above 0; control_rate_factor \(-1\.0\)"),
        ({"normalization": "batch"}, r"normalization \('batch'\) must be cross or zero_convolution"),
        ({"warmup_steps": 3}, r"warmup_steps \(3\) must be below steps \(3\)"),
        ({"clip": SmallCLIP(1024)}, "The text encoder gives texts of width 1024 and the model needs 768"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(node, dataset, changes, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        execute(node, dataset, "node/refused", **changes)
    assert "\n" not in str(caught.value)
    assert not files_for("node/refused", "controlnext").folder.exists()


@pytest.mark.parametrize("name", ["", "../x", "a/../../x"])
def test_an_impossible_name_is_refused_before_anything_runs(node, name):
    assert "name is" in node.validate_inputs(name)
    assert node.validate_inputs("good/name") is True


def test_another_scale_is_another_training(node, dataset, finished):
    with pytest.raises(ValueError, match="the controlnext options changed"):
        execute(node, dataset, "node/all", scale=0.5, validation_pairs=2)


def test_each_encoder_is_asked_for_by_family_not_by_the_schema(node):
    assert {"clip", "clip_vision"} <= node.INPUT_TYPES()["optional"].keys()
