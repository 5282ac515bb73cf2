"""Folders of transformers: what they are for, and reading them."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import tiny_annotators as tiny
import torch
from nextcontrol.preprocessors.annotator import TASKS, evaluate, load_annotator, task_of
from rounding import assert_same_but_for_rounding

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One folder for each task that these tests can save."""
    place = tmp_path_factory.mktemp("annotators")
    return {
        "depth": tiny.save_depth_anything(place / "depth"),
        "segmentation": tiny.save_upernet(place / "segmentation"),
        "detection": tiny.save_yolos(place / "detection"),
        "dpt": tiny.save_dpt(place / "dpt"),
    }


@pytest.fixture
def copy(folders, tmp_path):
    """A copy to damage."""
    return shutil.copytree(folders["depth"], tmp_path / "depth")


@pytest.mark.parametrize("task", ["depth", "segmentation", "detection"])
def test_a_folder_says_what_it_is_for_and_is_read(folders, task):
    assert task_of(folders[task]) == task
    annotator = load_annotator(folders[task], task)
    assert annotator.name == task
    assert not annotator.network.training
    assert {weight.dtype for weight in annotator.network.parameters()} == {torch.float32}
    assert not any(weight.requires_grad for weight in annotator.network.parameters())


def test_weights_in_half_precision_are_read_as_fp32(folders, copy):
    from safetensors.torch import load_file, save_file

    file = copy / "model.safetensors"
    halves = {name: tensor.half() for name, tensor in load_file(file).items()}
    save_file(halves, file, metadata={"format": "pt"})
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    found, whole = (load_annotator(folder, "depth").network.state_dict() for folder in (copy, folders["depth"]))
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert all(torch.equal(found[name], tensor.half().float()) for name, tensor in whole.items())


@pytest.mark.parametrize(("is_for", "wanted"), [("segmentation", "depth"), ("depth", "segmentation"), ("depth", "pose")])
def test_a_network_for_another_task_is_named(folders, is_for, wanted):
    with pytest.raises(ValueError, match=f"is a network for {TASKS[is_for].title} and one for {TASKS[wanted].title} is needed"):
        load_annotator(folders[is_for], wanted)


def test_a_network_of_an_unknown_kind_is_refused(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
    with pytest.raises(ValueError, match="'depth' is of a kind that is not known and one for depth estimation is needed"):
        load_annotator(copy, "depth")


def test_a_folder_without_a_configuration_is_no_model_folder(copy):
    (copy / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"'depth' has no config\.json: it is no model folder"):
        load_annotator(copy, "depth")


@pytest.mark.parametrize("text", ["{", "[]", '{"architectures": 3}', '{"architectures": [3]}', "\x00"])
def test_a_damaged_configuration_is_for_nothing(copy, text):
    (copy / "config.json").write_text(text)
    assert task_of(copy) is None
    with pytest.raises(ValueError, match="of a kind that is not known"):
        load_annotator(copy, "depth")


@pytest.mark.parametrize("file", ["model.safetensors", "preprocessor_config.json"])
def test_a_file_that_is_missing_or_cut_off_is_a_sentence(copy, file):
    content = (copy / file).read_bytes()
    (copy / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"^'depth' cannot be read \(.+\): download the whole model again\.$"):
        load_annotator(copy, "depth")
    (copy / file).unlink()
    with pytest.raises(ValueError, match=r"^'depth' cannot be read \(.+\): download the whole model again\.$"):
        load_annotator(copy, "depth")


def test_weights_that_are_missing_are_counted(copy):
    tiny.rewrite(copy, drop="head.conv1")
    with pytest.raises(ValueError, match=r"'depth' lacks 2 weights, 'head\.conv1\.bias' first: download the whole model again"):
        load_annotator(copy, "depth")


def test_weights_of_another_shape_are_a_sentence(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"fusion_hidden_size": 12}))
    with pytest.raises(ValueError, match=r"'depth' cannot be read \(.+\): download the whole model again"):
        load_annotator(copy, "depth")


def test_weights_that_published_files_leave_out_change_nothing(folders, tmp_path):
    """Intel/dpt-large comes without the residual layer of the first fusion layer, which has no residual."""
    copy = shutil.copytree(folders["dpt"], tmp_path / "dpt")
    tiny.rewrite(copy, drop="neck.fusion_stage.layers.0.residual_layer1.")
    picture = torch.rand(1, 3, 32, 32)
    whole, cut = (load_annotator(folder, "depth").network(picture).predicted_depth for folder in (folders["dpt"], copy))
    assert_same_but_for_rounding(cut, whole)
    tiny.rewrite(copy, drop="neck.fusion_stage.layers.1.residual_layer1.")
    with pytest.raises(ValueError, match="lacks 4 weights"):
        load_annotator(copy, "depth")


@pytest.mark.parametrize("odd", [{"image_mean": None}, {"resample": {"a": 1}}, {"size": {"height": "x", "width": 56}}])
def test_a_configuration_that_cannot_be_computed_with_is_a_sentence(copy, odd):
    path = copy / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | odd))
    with pytest.raises(
        ValueError, match=r"^'depth' cannot (look at a picture|be read) \(.*\): .*download the whole model again\.$"
    ):
        evaluate(load_annotator(copy, "depth"), np.zeros((1, 64, 64, 3), np.uint8))


def test_a_package_that_is_missing_is_not_called_a_damaged_file(folders, monkeypatch):
    import transformers

    def needs_timm(*_: object, **__: object) -> None:
        raise ImportError("this network requires timm: pip install timm")

    monkeypatch.setattr(transformers.AutoModelForDepthEstimation, "from_pretrained", needs_timm)
    with pytest.raises(ValueError, match="'depth' needs a package that is not installed: this network requires timm"):
        load_annotator(folders["depth"], "depth")


def deep(path):
    path.write_text("[" * 100_000)


def sparse(path):
    with path.open("wb") as file:
        file.truncate(2 << 30)


ODD_FILES = {
    "deep": deep, "deep object": lambda path: path.write_text('{"a":' * 100_000), "sparse": sparse, "a pipe": os.mkfifo,
    "a folder": lambda path: path.mkdir(), "a loop": lambda path: path.symlink_to(path),
    "a list": lambda path: path.write_text("[]"),
    "no UTF-8": lambda path: path.write_bytes(b'{"architectures": ["\xff\xfe"]}'), "empty": lambda path: path.write_text(""),
    "a number of digits": lambda path: path.write_text('{"a": ' + "9" * 5000 + "}"), "cut": lambda path: path.write_text("{"),
    "a device": lambda path: path.symlink_to("/dev/zero"),
}  # fmt: skip


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("kind", ODD_FILES)
def test_an_odd_file_in_the_place_of_a_small_one_is_one_sentence_and_not_waited_for(copy, file, kind):
    (copy / file).unlink(missing_ok=True)
    ODD_FILES[kind](copy / file)
    assert task_of(copy) == (None if file == "config.json" else "depth")
    expected = "is of a kind that is not known" if file == "config.json" else rf"cannot be read \({file}: .*\): download the"
    with pytest.raises((ValueError, FileNotFoundError), match=rf"^'depth' ({expected}|has no config\.json: )") as caught:
        load_annotator(copy, "depth")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("files", [{"a": "../outside.bin"}, {"a": "/outside.bin"}, {"a": "C:x"}, {"a": ".."}, {"a": 5}, ["x"]])
def test_an_index_names_weights_in_its_folder_alone(copy, files):
    (copy / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    with pytest.raises(ValueError, match=r"^'depth' cannot be read \(pytorch_model.bin.index.json: it names weights outside"):
        load_annotator(copy, "depth")


@pytest.mark.parametrize("found", [7, "x", {"a": 1}, [7, None, "x\ud800\n" * 50_000]])
def test_architectures_of_another_kind_are_no_task(copy, found):
    (copy / "config.json").write_text(json.dumps({"architectures": found}))
    assert task_of(copy) is None
    with pytest.raises(ValueError, match=r"^'depth' is of a kind that is not known and one for depth estimation is needed"):
        load_annotator(copy, "depth")


def test_code_that_comes_in_a_folder_is_never_run(copy, monkeypatch):
    import transformers

    (copy / "evil.py").write_text("raise SystemExit('code of the folder has run')")
    for file, classes in (
        ("config.json", ("AutoConfig", "AutoModelForDepthEstimation")),
        ("preprocessor_config.json", ("AutoImageProcessor",)),
    ):
        content = json.loads((copy / file).read_text())
        content |= {"auto_map": dict.fromkeys(classes, "evil.Evil"), "model_type": "evil", "image_processor_type": "Evil"}
        (copy / file).write_text(json.dumps(content))
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # what transformers asks on a terminal
    with pytest.raises(ValueError, match=r"^'depth' cannot be read \(.*\): download the whole model again\.$"):
        load_annotator(copy, "depth")

    said = {}
    for loader in (transformers.AutoImageProcessor, transformers.AutoModelForDepthEstimation):
        monkeypatch.setattr(
            loader, "from_pretrained", lambda *_, name=loader.__name__, **options: said.update({name: options}) or (None, None)
        )
    with pytest.raises(TypeError):
        load_annotator(copy, "depth")
    assert {name: (options["trust_remote_code"], options["local_files_only"]) for name, options in said.items()} == {
        "AutoImageProcessor": (False, True), "AutoModelForDepthEstimation": (False, True),
    }  # fmt: skip
