"""The files that come with the pack: listed last, found last, and never written over."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import pytest
from nextcontrol.nodes import extension
from nextcontrol.nodes.host import dataset_folders, folders, make_hints
from nextcontrol.nodes.host.dataset_folders import find_pictures, new_folder
from nextcontrol.nodes.host.folders import CTRLORA_FOLDERS, DEMO_FOLDERS, OWN_FOLDERS, find_file, list_files, register_folders
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


# What other packs do to the host's dictionary, before this pack is loaded or after


class Hostile(list):
    """A collection that another pack has made its own class of."""


HOSTILE = {
    "list of extensions": lambda place: ([place], [".safetensors"]),
    "tuple of extensions": lambda place: ([place], (".safetensors",)),
    "frozen set": lambda place: ([place], frozenset({".safetensors"})),
    "one extension": lambda place: ([place], ".safetensors"),
    "no extensions": lambda place: ([place], None),
    "numbers as extensions": lambda place: ([place], {1, None}),
    "one of a pair": lambda place: ([place],),
    "three in place of two": lambda place: ([place], {".safetensors"}, "mine"),
    "a list of two": lambda place: [[place], {".safetensors"}],
    "tuple of places": lambda place: ((place,), {".safetensors"}),
    "one place": lambda place: (place, {".safetensors"}),
    "set of places": lambda place: ({place}, {".safetensors"}),
    "path objects": lambda place: ([Path(place)], {".safetensors"}),
    "None among places": lambda place: ([None, place, 3, b"bytes", ""], {".safetensors"}),
    "a place that is gone": lambda place: ([f"{place}/gone", place], {".safetensors"}),
    "own class": lambda place: Hostile([Hostile([place]), Hostile([".safetensors"])]),
    "no places": lambda _: (None, {".safetensors"}),
    "nothing": lambda _: None,
    "a word": lambda _: "mine",
    "a dictionary": lambda place: {"paths": [place]},
}
WITHOUT_PLACE = {"no places", "nothing", "a word", "a dictionary"}
KINDS = ("controlnext", "ctrlora", "controlnet", "annotators", "diffusion_models", dataset_folders.KIND)


def everything_loads() -> None:
    """What the host asks of every node when a page opens, and where new files would lie."""
    for node in extension.NODES:
        assert node.define_schema().node_id
    for kind in OWN_FOLDERS:
        assert files_for("new", kind).main.is_absolute()
    assert dataset_folders.dataset_roots()


@pytest.mark.parametrize("is_late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("shape", HOSTILE)
def test_nothing_that_another_pack_has_made_of_a_kind_keeps_the_nodes_from_loading(
    shape, is_late, places, tmp_path, monkeypatch
):
    other = tmp_path / "other"
    other.mkdir()
    (other / "theirs.safetensors").touch()
    for kind in KINDS:
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, HOSTILE[shape](str(other)))
    folder_paths.filename_list_cache.clear()
    if not is_late:
        register_folders()
    everything_loads()
    names = list_files(CTRLORA_FOLDERS)
    assert set(names) & {"theirs.safetensors"} == (set() if shape in WITHOUT_PLACE else {"theirs.safetensors"})
    assert names[-1] == SHIPPED
    assert find_file(SHIPPED, CTRLORA_FOLDERS) == places[1] / "ctrlora" / SHIPPED
    if shape not in WITHOUT_PLACE:
        assert find_file("theirs.safetensors", CTRLORA_FOLDERS) == other / "theirs.safetensors"
    with pytest.raises(FileNotFoundError, match="is not in any of"):
        find_file("../zebra.safetensors", CTRLORA_FOLDERS)


def test_a_kind_that_another_pack_has_taken_out_is_none_of_ours_to_lose(places, monkeypatch):
    for kind in KINDS:
        monkeypatch.delitem(folder_paths.folder_names_and_paths, kind, raising=False)
    everything_loads()
    register_folders()
    assert list_files(CTRLORA_FOLDERS)[-1] == SHIPPED
    assert files_for("new", "controlnet").main.parent == Path(folder_paths.models_dir) / "controlnet"


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), FileNotFoundError(2, "gone"), KeyError("x"), RuntimeError("a\nb")]
)
def test_a_list_that_the_host_cannot_make_is_made_without_it_and_said_once(error, places, monkeypatch, caplog):
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(folder_paths, "get_filename_list", refuse)
    monkeypatch.setattr(folder_paths, "get_full_path", refuse)
    folders._warn.cache_clear()
    for _ in range(2):
        assert [name for name in list_files(CTRLORA_FOLDERS) if name in (OWN, SHIPPED)] == [OWN, SHIPPED]
        assert find_file(OWN, CTRLORA_FOLDERS) == places[0] / "ctrlora" / OWN
    everything_loads()
    said = [record.getMessage() for record in caplog.records if "ctrlora" in record.getMessage()]
    assert len(said) == 1
    assert "\n" not in said[0]


def test_collections_of_another_pack_stay_as_it_made_them(places, monkeypatch):
    own, shared = [".patch"], {".patch"}
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "controlnext", ([], own))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "ctrlora", ([], shared))
    register_folders()
    assert (own, shared) == ([".patch"], {".patch"})
    # It goes on with the kind of collection that it knows.
    folder_paths.folder_names_and_paths["controlnext"][1].extend([".more"])
    folder_paths.folder_names_and_paths["ctrlora"][1].add(".more")
    assert {".patch", ".more", ".safetensors"} <= set(folder_paths.folder_names_and_paths["controlnext"][1])
