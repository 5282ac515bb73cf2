"""Pretraining a base with several conditions on the host: its files in our loaders, what moves, resumed, adapted, refused."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from ctrlora_files import REPORT
from host_models import build_model
from nextcontrol.models.adapted import Group
from nextcontrol.models.detect import detect_kind
from nextcontrol.nodes.host import train_job
from nextcontrol.nodes.host.ctrlora_load import load_base, load_condition
from nextcontrol.nodes.host.dataset_folders import open_datasets
from nextcontrol.nodes.host.encoder_copy import copy_encoder
from nextcontrol.nodes.host.encoders import identity_of
from nextcontrol.nodes.host.inspect_file import inspect_file
from nextcontrol.nodes.host.recipe_ctrlora import CtrLoRARecipe
from nextcontrol.nodes.host.recipe_ctrlora_base import CtrLoRABaseRecipe
from nextcontrol.nodes.host.train_files import files_for
from nextcontrol.nodes.host.train_preview import PreviewPainter
from nextcontrol.nodes.host.train_script import read_job
from nextcontrol.training.dataset import DatasetSettings
from safetensors import safe_open
from seeded import seeded_tensor
from train_stand_ins import SmallVAE, small_job, train, write_dataset

FOLDERS = {"canny": "base_canny", "depth": "base_depth", "palette": "base_palette"}
HEADS = 4
ONCE = {"steps": 20, "save_every": 20}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folders(base_folder):
    for count, folder in enumerate(FOLDERS.values(), 3):
        write_dataset(base_folder, folder, count=count)
    return FOLDERS


def job_of(base_folder, folders, name, layout="files", **changes):
    job = small_job(base_folder, next(iter(folders.values())), name, **(ONCE | changes))
    dataset = open_datasets(folders, DatasetSettings(resolution=64))
    recipe = CtrLoRABaseRecipe(tuple(folders), job.config.rank, name, layout)
    return replace(job, dataset=dataset, recipe=recipe)


@pytest.fixture(scope="module")
def finished(base_folder, folders):
    """A training with everything on; its method at the end, and the model before and after."""
    kept = []
    with torch.inference_mode():
        job = job_of(
            base_folder, folders, "pre/base", "loras_dict", preview_every=20, preview_steps=1, sensitivity_every=20,
            validation_pairs=2,
        )  # fmt: skip
        build = job.recipe.build
        job.recipe.build = lambda *given: kept.append(build(*given)) or kept[0]
        before = identity_of(job.model, "diffusion_model.")
        result = train_job.train(job)
        after = identity_of(job.model, "diffusion_model.")
    return SimpleNamespace(result=result, method=kept[0], before=before, after=after, model=job.model)


def header_of(name):
    with safe_open(files_for(name).main, framework="pt") as file:
        metadata = file.metadata()
    return {key.removeprefix("nextcontrol."): value for key, value in metadata.items()}


def given():
    return seeded_tensor("h", [2, 4, 8, 8]), torch.tensor([500.0, 20.0]), seeded_tensor("t", [2, 77, 96])


def test_the_files_load_in_the_loaders_and_do_what_was_trained(finished):
    names = ["pre/base.safetensors", *(f"pre/base_{name}.safetensors" for name in FOLDERS), "pre/base.loras_dict.safetensors"]
    assert list(finished.result.files) == names
    hints, times, text = given()
    seen = []
    for base_name in (names[0], names[-1]):
        base = load_base(base_name, use_embedded_lora=False, cache_megabytes=0)
        for name in FOLDERS:
            expected = finished.method.control(hints, hints, times, text, name).residuals
            own = (names[-1], name) if base_name == names[-1] else (f"pre/base_{name}.safetensors", "")
            condition, _ = load_condition(base, *own)
            found = base.network.model(hints, times, text, HEADS, [Group(condition.model, 1.0, 2)])
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b, atol=1e-5 * float(b.abs().max()), rtol=0)
            seen.append(found[-1])
        assert not torch.equal(seen[-1], seen[-2])


def test_a_run_starts_from_the_models_own_encoder_and_adds_nothing_yet(base_folder, folders):
    job = job_of(base_folder, folders, "start")
    expected, _ = copy_encoder(job.model)
    with torch.inference_mode(mode=False), torch.enable_grad():
        method = job.recipe.build(job.model, job.config)
    own = method.base.state_dict()
    assert own.keys() == expected.keys()
    assert all(torch.equal(own[key], tensor) for key, tensor in expected.items())
    assert list(method.loras) == list(FOLDERS)
    hints, times, text = given()
    for name in FOLDERS:
        assert all(residual.abs().max() == 0 for residual in method.control(hints, hints, times, text, name).residuals)


def test_training_moves_base_and_loras_and_nothing_of_the_model(finished):
    start, _ = copy_encoder(finished.model)
    moved = {key for key, tensor in finished.method.base.state_dict().items() if not torch.equal(tensor, start[key])}
    assert moved == start.keys()
    for lora in finished.method.loras.values():
        assert all(tensor.abs().max() > 0 for tensor in lora.tensors().values())
    assert finished.before == finished.after


def test_the_headers_say_what_belongs_together(finished):
    base, canny, stacked = (header_of(f"pre/base{suffix}") for suffix in ("", "_canny", ".loras_dict.safetensors"))
    assert (base["kind"], canny["kind"]) == ("ctrlora_base", "ctrlora_lora")
    assert base["conditions"] == canny["conditions"] == "canny, depth, palette"
    assert "condition" not in base
    expected = {"condition": "canny", "base": "pre/base.safetensors", "rank": "4", "steps": "20", "pairs": "12", "layers": "36"}
    assert {key: canny[key] for key in expected} == expected
    loaded = load_base(finished.result.files[0], use_embedded_lora=False, cache_megabytes=0)
    assert canny["base_hash"] == base["base_hash"] == stacked["base_hash"] == CtrLoRARecipe(loaded, 4).identity()["base"]
    text = inspect_file("pre/base.loras_dict.safetensors")
    assert "pretraining checkpoint" in text
    assert "palette" in text


def test_the_files_adapt_further(base_folder, folders, finished):
    """A new condition is learned on the base; the pretrained ones stay beside it."""
    base = load_base(finished.result.files[0], use_embedded_lora=False, cache_megabytes=0)
    result = train(base_folder, folders["depth"], "pre/novel", base=base, steps=2)
    hints, times, text = given()
    plain = base.network.model(hints, times, text, HEADS)
    novel, _ = load_condition(base, result.files[0], "")
    found = base.network.model(hints, times, text, HEADS, [Group(novel.model, 1.0, 2)])
    assert all(not torch.equal(a, b) for a, b in zip(plain, found, strict=True))
    assert header_of("pre/novel")["base_hash"] == header_of("pre/base_canny")["base_hash"]


def test_numbers_and_previews_are_of_every_condition(finished):
    files = files_for("pre/base")
    lines = [json.loads(line) for line in files.metrics.read_text().splitlines()]
    looks = [line for line in lines if "sensitivity_shuffled" in line]
    assert [line["step"] for line in looks] == [0, 20]
    assert {f"sensitivity_shuffled_{name}" for name in FOLDERS} <= looks[-1].keys()
    assert finished.result.previews.shape[1:] == (4 * 256, 3 * 256, 3)
    held_out = [SimpleNamespace(condition=f"c{number % 6}") for number in range(12)]
    painter = PreviewPainter(SmallVAE(), SimpleNamespace(held_out=held_out, frames=1), [])
    assert [pair.condition for pair in painter.pairs] == [f"c{number}" for number in range(6)]


def test_a_run_that_is_cut_short_goes_on_as_if_nothing_had_been(base_folder, folders, finished, monkeypatch):
    common = {"preview_every": 0, "sensitivity_every": 0, "validation_pairs": 2}
    stop = train_job.Progress.on_step

    def cut(self, trainer, report):
        stop(self, trainer, report)
        if report.step == 10:
            raise KeyboardInterrupt

    monkeypatch.setattr(train_job.Progress, "on_step", cut)
    with pytest.raises(KeyboardInterrupt):
        train_job.train(job_of(base_folder, folders, "cut", **common))
    monkeypatch.undo()
    assert all(files_for("cut", suffixes=("", "_canny", "_depth", "_palette")).path(f"_{name}").is_file() for name in FOLDERS)
    assert header_of("cut_canny")["steps"] == "10"
    result = train_job.train(job_of(base_folder, folders, "cut", **common))
    assert result.losses == finished.result.losses
    for suffix in ("", "_canny", "_depth", "_palette"):
        with (
            safe_open(files_for(f"cut{suffix}").main, framework="pt") as ours,
            safe_open(files_for(f"pre/base{suffix}").main, framework="pt") as theirs,
        ):
            assert all(torch.equal(ours.get_tensor(key), theirs.get_tensor(key)) for key in theirs.keys())  # noqa: SIM118


def test_the_reference_layout_can_be_written_later(base_folder, folders, finished):
    """The run again with the option: nothing is left to train, and the file is written."""
    options = {"preview_every": 0, "sensitivity_every": 0, "validation_pairs": 0, "steps": 1}
    train_job.train(job_of(base_folder, folders, "later", **options))
    result = train_job.train(job_of(base_folder, folders, "later", "loras_dict", **options))
    assert len(result.losses) == 1
    with safe_open(files_for("later").path(".loras_dict"), framework="pt") as file:
        keys = set(file.keys())
    assert detect_kind(dict.fromkeys(keys)).id == "ctrlora_pretraining"
    numbers = {int(key.split(".")[3]) for key in keys if key.startswith("control_model.loras_dict.depth.")}
    assert numbers == set(range(sum(key.endswith("lora_layer.down.weight") for key in REPORT["shapes"])))


def test_other_conditions_are_another_run(base_folder, folders, finished):
    fewer = {name: folders[name] for name in ("canny", "depth")}
    options = {"preview_every": 20, "preview_steps": 1, "sensitivity_every": 20, "validation_pairs": 2}
    with pytest.raises(ValueError, match="the list of conditions changed"):
        train_job.train(job_of(base_folder, fewer, "pre/base", **options))
    other = write_dataset(base_folder, "base_other", count=7)
    with pytest.raises(ValueError, match="the dataset of 'depth' changed"):
        train_job.train(job_of(base_folder, folders | {"depth": other}, "pre/base", **options))


def test_a_name_that_one_of_the_files_has_is_taken(base_folder, folders):
    path = files_for("taken_depth").main
    path.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"'taken_depth.safetensors' is there already without a saved training"):
        train_job.train(job_of(base_folder, folders, "taken"))
    assert path.read_bytes() == b"x"


def test_an_sdxl_model_and_a_missing_folder_are_refused(base_folder, folders):
    job = job_of(base_folder, folders, "refused")
    with pytest.raises(ValueError, match=r"The model is of the family SDXL, .*: load an SD1.5 checkpoint"):
        train_job.train(replace(job, model=build_model("sdxl_narrow")))
    with pytest.raises(ValueError, match=r"rank \(500\) must be at most"):
        train_job.train(job_of(base_folder, folders, "refused", rank=500))
    with pytest.raises(FileNotFoundError, match=r"There is no folder 'nowhere' below ComfyUI's input/"):
        open_datasets({"canny": "nowhere"}, DatasetSettings())


def test_one_condition_alone_can_be_pretrained(base_folder, folders):
    result = train_job.train(job_of(base_folder, {"canny": folders["canny"]}, "single", steps=1))
    assert list(result.files) == ["single.safetensors", "single_canny.safetensors"]


CONFIGURATION = {"method": "ctrlora_base", "checkpoint": "sd15.safetensors", "name": "x"}


def test_a_configuration_names_a_folder_for_each_condition():
    settings = {"resolution": 256, "folders": FOLDERS}
    job = read_job(json.dumps(CONFIGURATION | {"dataset": settings, "options": {"layout": "loras_dict"}}))
    assert list(job["folders"].items()) == list(FOLDERS.items())
    assert job["dataset"] == DatasetSettings(resolution=256)


@pytest.mark.parametrize(
    ("dataset", "sentence"),
    [
        (
            {"folder": "pairs"},
            "ctrlora_base trains several conditions: give 'folders', the name of each condition with its folder",
        ),
        ({"resolution": 256}, "'folders' must name a folder for each condition, as "),
        ({"folders": {}}, "'folders' must name a folder for each condition, as "),
        ({"folders": ["a", "b"]}, "'folders' must name a folder for each condition, as "),
        ({"folders": {"canny": 5}}, "'folders' must name a folder for each condition, as "),
        ({"folders": FOLDERS, "hint_type": "canny"}, "'hint_type' is the name of each condition here: leave it out"),
        ({"folders": FOLDERS, "shards": {"folder": "x"}}, "the 'folder' of shards would be one for all conditions"),
    ],
)
def test_a_wrong_dataset_is_refused(dataset, sentence):
    with pytest.raises(ValueError, match=f"The configuration is wrong: .*{sentence}"):
        read_job(json.dumps(CONFIGURATION | {"dataset": dataset}))


def test_folders_are_for_this_method_alone_and_a_name_is_there_once():
    with pytest.raises(ValueError, match="'folders' is for several conditions and ctrlora trains one: give its 'folder'"):
        read_job(json.dumps(CONFIGURATION | {"method": "ctrlora", "base": "b", "dataset": {"folders": FOLDERS}}))
    text = '{"checkpoint": "a", "name": "b", "method": "ctrlora_base", "dataset": {"folders": {"canny": "a", "canny": "b"}}}'
    with pytest.raises(ValueError, match="'canny' is there twice"):
        read_job(text)
    with pytest.raises(ValueError, match="layout is 'zip' and must be files or loras_dict"):
        CtrLoRABaseRecipe(("canny",), 4, "x", "zip")
    with pytest.raises(ValueError, match=r"'a\.b' must be 1 to 64 letters"):
        CtrLoRABaseRecipe(("a.b",), 4, "x")
