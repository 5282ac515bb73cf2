"""Annotators under the host: found, read once, moved and refused."""

from __future__ import annotations

import os
import shutil

import comfy.model_management as management
import pytest
import tiny_annotators as tiny
import torch
from nextcontrol.models.catalogue import CATALOGUE
from nextcontrol.nodes.host import annotators
from nextcontrol.nodes.host.annotators import (
    annotator_stamp,
    check_annotator,
    find_annotator,
    hold,
    list_annotators,
    one_by_one_when_short,
    open_annotator,
)
from nextcontrol.preprocessors.annotator import TASKS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def place(base_folder):
    """models/annotators, empty before and after."""
    folder = base_folder / "models" / "annotators"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def reads(monkeypatch):
    """The folders that were read from disk."""
    names = []
    load = annotators.load_annotator
    monkeypatch.setattr(annotators, "load_annotator", lambda folder, task: names.append(folder.name) or load(folder, task))
    return names


def test_the_list_has_what_is_there_for_the_task_and_then_what_could_be(place):
    tiny.save_depth_anything(place / "mine")
    tiny.save_segformer(place / "maker" / "regions")
    (place / "notes").mkdir()
    (place / "loose.txt").write_text("x")
    known = [item.name for item in CATALOGUE if item.task == "depth"]
    assert known
    assert list_annotators("depth") == ["mine", *known]
    assert list_annotators("segmentation")[0] == "maker/regions"


def test_a_known_network_that_is_there_is_listed_once(place):
    name = next(item.name for item in CATALOGUE if item.task == "depth")
    tiny.save_depth_anything(place / name)
    assert list_annotators("depth").count(name) == 1


def test_with_no_folder_at_all_the_known_ones_are_listed(place, base_folder):
    place.rmdir()
    assert list_annotators("depth") == [item.name for item in CATALOGUE if item.task == "depth"]
    place.mkdir()


@pytest.mark.parametrize("item", [item for item in CATALOGUE if item.task in TASKS], ids=lambda item: item.name)
def test_a_missing_network_is_a_sentence_with_its_command(place, item):
    with pytest.raises(FileNotFoundError) as caught:
        open_annotator(item.name, item.task)
    command = f"hf download {item.repository} --local-dir models/annotators/{item.name}"
    assert str(caught.value) == f"models/annotators/{item.name} is not there: fetch it with '{command}' in ComfyUI's folder."


def test_an_unknown_network_is_a_sentence_with_a_known_one(place):
    with pytest.raises(
        FileNotFoundError, match=r"^models/annotators/x is not there: put it there, or choose '[\w-]+' and fetch"
    ):
        open_annotator("x", "depth")


def test_a_folder_whose_download_has_only_begun_is_missing(place):
    (place / "dpt-large").mkdir()
    (place / "dpt-large" / "model.safetensors").write_bytes(b"")
    assert "hf download Intel/dpt-large" in str(check_annotator("dpt-large", "depth"))


def test_check_says_what_open_would(place):
    tiny.save_segformer(place / "regions")
    assert check_annotator("regions", "segmentation") is True
    sentence = "'regions' is a network for semantic segmentation and one for depth estimation is needed: choose another folder."
    assert check_annotator("regions", "depth") == sentence
    with pytest.raises(ValueError, match="is a network for semantic segmentation"):
        open_annotator("regions", "depth")


def test_both_path_separators_find_a_folder(place):
    tiny.save_yolos(place / "maker" / "things")
    assert find_annotator("maker\\things", "detection") == find_annotator("maker/things", "detection")
    assert annotator_stamp("maker\\things") == annotator_stamp("maker/things") is not None


@pytest.mark.parametrize("name", ["..", "../annotators/mine", "/", "", "mine/.."])
def test_a_name_never_leads_elsewhere(place, name):
    tiny.save_depth_anything(place / "mine")
    with pytest.raises(FileNotFoundError):
        find_annotator(name, "depth")


def test_a_network_is_read_once_and_again_when_its_files_change(place, reads):
    tiny.save_depth_anything(place / "mine", seed=1)
    first, second = (open_annotator("mine", "depth") for _ in range(2))
    assert reads == ["mine"]
    assert first.network is second.network
    stamp = annotator_stamp("mine")
    tiny.save_depth_anything(place / "mine", seed=2)
    os.utime(place / "mine" / "model.safetensors", ns=(0, 10**18))
    assert annotator_stamp("mine") != stamp
    third = open_annotator("mine", "depth")
    assert reads == ["mine", "mine"]
    weights = [next(iter(annotator.network.head.parameters())) for annotator in (first, third)]
    assert not torch.equal(*weights)


def test_a_damaged_folder_is_refused_and_read_once_it_is_repaired(place, reads):
    tiny.save_depth_anything(place / "mine")
    file = place / "mine" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:1000])
    with pytest.raises(ValueError, match=r"'mine' cannot be read"):
        open_annotator("mine", "depth")
    file.write_bytes(whole)
    assert open_annotator("mine", "depth").name == "mine"


def test_the_stamp_of_a_network_that_is_not_there_is_none(place):
    assert annotator_stamp("x") is None


def test_a_network_survives_being_unloaded_by_the_host(place, reads):
    tiny.save_depth_anything(place / "mine")
    picture = torch.rand(1, 3, 28, 28)
    annotator = open_annotator("mine", "depth")
    before = annotator.network(picture).predicted_depth
    assert any(loaded.model.model[0] is annotator.network for loaded in management.current_loaded_models)
    management.unload_all_models()
    assert not any(loaded.model.model[0] is annotator.network for loaded in management.current_loaded_models)
    again = open_annotator("mine", "depth")
    assert again.network is annotator.network
    assert again.device == management.get_torch_device()
    assert {weight.device for weight in again.network.parameters()} == {management.get_torch_device()}
    assert torch.equal(again.network(picture).predicted_depth, before)
    assert reads == ["mine"]


def test_a_network_is_loaded_whole_however_little_memory_there_is():
    """The host loads as many layers as fit; those of transformers do not fetch the others' weights by themselves."""
    network = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(4)))
    patcher = hold(network)
    patcher.partially_load(torch.device("cpu"), 1)
    assert patcher.loaded_size() == patcher.model_size() == 4 * (64 + 8) * 4
    assert patcher.partially_unload(torch.device("cpu"), 100) == 0
    assert patcher.loaded_size() == patcher.model_size()
    patcher.detach()
    assert patcher.loaded_size() == 0


def test_the_host_is_told_how_much_memory_the_pictures_take(place, monkeypatch):
    tiny.save_depth_anything(place / "mine")
    asked = []
    monkeypatch.setattr(management, "load_models_gpu", lambda _, memory_required=0: asked.append(memory_required))
    make = lambda frames, *_: frames  # noqa: E731
    for count, resolution in ((1, 512), (2, 512), (100, 512), (100, 1024)):
        annotators.make_annotated(torch.zeros(count, 64, 64, 3), resolution, "mine", "depth", make)
    assert asked[0] > 10**8
    assert asked[1] == 2 * asked[0]
    assert asked[2] == annotators.FRAMES_PER_PIECE * asked[0]
    assert asked[3] > 2 * asked[2]


def test_pictures_go_one_by_one_where_memory_is_short():
    seen = []

    def make(frames: torch.Tensor) -> torch.Tensor:
        seen.append(len(frames))
        if len(frames) > 1:
            raise management.OOM_EXCEPTION("CUDA out of memory")
        return frames + 1

    frames = torch.rand(3, 4, 4, 3)
    assert torch.equal(one_by_one_when_short(make)(frames), frames + 1)
    assert seen == [3, 1, 1, 1]


def test_one_picture_that_takes_too_much_memory_is_the_hosts_error():
    def make(_: torch.Tensor) -> torch.Tensor:
        raise management.OOM_EXCEPTION("CUDA out of memory")

    with pytest.raises(management.OOM_EXCEPTION):
        one_by_one_when_short(make)(torch.rand(1, 4, 4, 3))


def test_other_errors_are_not_tried_again():
    seen = []

    def make(frames: torch.Tensor) -> torch.Tensor:
        seen.append(len(frames))
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        one_by_one_when_short(make)(torch.rand(3, 4, 4, 3))
    assert seen == [3]


def test_whatever_lies_in_the_folder_the_lists_and_stamps_are_made(place, monkeypatch):
    from nextcontrol.nodes.hint_depth import Depth

    tiny.save_depth_anything(place / "mine")
    (place / "loop").symlink_to(place / "loop")
    (place / "up").symlink_to(place)
    for name, make in {
        "deep": lambda path: path.write_text("[" * 100_000), "pipe": os.mkfifo, "folder": lambda path: path.mkdir(),
        "gone": lambda path: path.symlink_to("nowhere"), "turns": lambda path: path.symlink_to(path),
        "bytes": lambda path: path.write_bytes(b"\xff"),
    }.items():  # fmt: skip
        (place / name).mkdir()
        make(place / name / "config.json")
        assert isinstance(check_annotator(name, "depth"), str)
        annotator_stamp(name)
    assert list_annotators("depth")[0] == "mine"
    assert "mine" in Depth.define_schema().inputs[2].options
    before = annotator_stamp("mine")
    for name in "aehjnqtz":
        (place / "mine" / name).symlink_to(name)
    assert annotator_stamp("mine") == before != (str(place / "mine"), ())
    scandir = os.scandir

    def refusing(path):
        if path == place / "mine":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert annotator_stamp("mine") != before
    assert list_annotators("depth")[0] == "mine"


def test_a_foreign_name_is_short_and_printable_in_the_sentence(place):
    for name in ("x\ud800", "line\n" * 20_000, "../" * 9000, "\x00"):
        said = check_annotator(name, "depth")
        assert said.isprintable()
        assert len(said) < 500
        assert annotator_stamp(name) is None
