"""The files that come with the pack: listed last, found last, and never written over."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import pytest
from nextcontrol.nodes.host import dataset_folders, folders, make_hints
from nextcontrol.nodes.host.dataset_folders import find_pictures, new_folder
from nextcontrol.nodes.host.folders import CTRLORA_FOLDERS, DEMO_FOLDERS, find_file, list_files, register_folders
from nextcontrol.nodes.host.train_files import files_for
from nextcontrol.training.make_pairs import MakeSettings
from PIL import Image

SHIPPED, OWN = "demo_base.safetensors", "zebra.safetensors"


@pytest.fixture
def places(base_folder, tmp_path, monkeypatch):
    """The user's models and the pack's, one file in each; what is registered is forgotten again."""
    models, demo = tmp_path / "models", tmp_path / "demo"
    for folder, name in ((models, OWN), (demo, SHIPPED)):
        (folder / "ctrlora").mkdir(parents=True)
        (folder / "ctrlora" / name).touch()
    for kind in (*DEMO_FOLDERS, "annotators"):
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(models / kind)], {".safetensors"}))
    for module in (folders, dataset_folders, make_hints):
        monkeypatch.setattr(module, "DEMO", demo)
    folder_paths.filename_list_cache.clear()
    register_folders()
    yield models, demo
    folder_paths.filename_list_cache.clear()


def test_the_packs_own_files_are_listed_behind_the_users(places):
    # Other tests leave files in the host's own folder.
    assert [name for name in list_files(CTRLORA_FOLDERS) if name in (OWN, SHIPPED)] == [OWN, SHIPPED]
    assert list_files(CTRLORA_FOLDERS)[-1] == SHIPPED
    assert find_file(SHIPPED, CTRLORA_FOLDERS) == places[1] / "ctrlora" / SHIPPED


def test_a_file_of_the_users_own_hides_the_packs_of_the_same_name(places):
    mine = places[0] / "ctrlora" / SHIPPED
    mine.touch()
    assert find_file(SHIPPED, CTRLORA_FOLDERS) == mine


def test_registering_twice_changes_nothing(places):
    before = {kind: list(folder_paths.get_folder_paths(kind)) for kind in DEMO_FOLDERS}
    register_folders()
    assert before == {kind: folder_paths.get_folder_paths(kind) for kind in DEMO_FOLDERS}
    assert folder_paths.get_folder_paths("ctrlora")[-1] == str(places[1] / "ctrlora")


def test_only_kinds_that_the_pack_brings_get_a_place(places):
    assert [kind for kind in DEMO_FOLDERS if str(places[1]) in str(folder_paths.get_folder_paths(kind))] == ["ctrlora"]


@pytest.mark.parametrize("kind", DEMO_FOLDERS)
def test_what_is_trained_lies_among_the_users_files(places, kind):
    assert files_for("new", kind).main.parent == places[0] / kind


@pytest.fixture
def pictures(places) -> Path:
    folder = places[1] / "demo_pictures"
    folder.mkdir()
    Image.new("RGB", (64, 64), "red").save(folder / "red_square.webp")
    return folder


def test_pairs_are_made_of_the_packs_pictures_below_input(base_folder, pictures):
    report = make_hints.make_dataset(pictures.name, "of_demo", MakeSettings("canny", {}, 64, "file_name"), "")
    assert report == "1 pairs made, 0 were there already."
    made = base_folder / "input" / "of_demo"
    assert '"prompt": "red square"' in (made / "prompt.json").read_text()
    assert sorted(path.name for path in pictures.iterdir()) == ["red_square.webp"]


def test_nothing_is_made_in_the_packs_folder(base_folder, pictures):
    assert new_folder(pictures.name, "folder") == base_folder / "input" / pictures.name


def test_pictures_of_the_users_own_come_first_and_no_name_leads_out(base_folder, pictures):
    assert find_pictures(pictures.name) == pictures
    mine = base_folder / "input" / pictures.name
    mine.mkdir()
    try:
        assert find_pictures(pictures.name) == mine
    finally:
        mine.rmdir()
    with pytest.raises(FileNotFoundError, match="There is no folder 'gone' below"):
        find_pictures("gone")
    with pytest.raises(ValueError, match="must be a folder below"):
        find_pictures(f"../demo/{pictures.name}")
