"""The workflow files by themselves: what a user finds before anything runs."""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any

import pytest
from nextcontrol.models.catalogue import CATALOGUE
from real_server import APP, DEMOS, NAMES, ROOT, WEIGHTS, WORKFLOWS, annotator_folders, api_workflow, model_files
from workflow_properties import BASES, FOLDERS, all_nodes, complete, files

TITLE = 30
POSE, HINTS = "pose_from_any_detector", "hints_gallery"
FEWEST = {"train_ctrlora": 2, "train_controlnext": 1, "demo_controlnext": 2, "demo_ctrlora": 2, "demo_train_ctrlora": 1}
"""Each trainer makes files, and loads only what it starts from; the demo workflows load no checkpoint."""


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture
def workflow(name: str) -> dict[str, Any]:
    return json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))


def test_each_has_a_twin_for_the_api():
    assert "stack_three_controls" in NAMES
    assert sorted(path.stem for path in (WORKFLOWS / "api").iterdir()) == NAMES


def test_a_note_names_every_file_that_the_workflow_loads(name, workflow):
    (note,) = (node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "MarkdownNote")
    loaders = [node for node in workflow["nodes"] if "Load" in node["type"] and node["type"] != "LoadImage"]
    files = [value for node in loaders for value in node.get("widgets_values", ()) if str(value).endswith((*WEIGHTS, ".mp4"))]
    fewest = 0 if name == HINTS or annotator_folders(api_workflow(name)) else FEWEST.get(name, 3)
    assert len(files) >= fewest
    for file in files:
        folder, _, base = file.rpartition("/")
        assert f"`{base}`" in note
        assert folder in note


def test_the_note_says_which_folder_each_file_goes_into(name, workflow):
    (note,) = (node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "MarkdownNote")
    for file in model_files(api_workflow(name)):
        folder, _, base = file.rpartition("/")
        row = next(line for line in note.splitlines() if line.startswith("|") and f"`{base}`" in line)
        assert f"`{'demo' if name in DEMOS else 'models'}/{folder}`" in row


@pytest.mark.parametrize("name", DEMOS)
def test_a_demo_workflow_loads_nothing_but_what_comes_with_the_pack(name, workflow):
    graph = api_workflow(name)
    assert model_files(graph)
    assert all((ROOT / "demo" / file).is_file() for file in model_files(graph))
    kinds = {node["class_type"] for node in graph.values()}
    assert "NextControlLoadDemoModel" in kinds
    assert kinds.isdisjoint({"CheckpointLoaderSimple", "LoadImage"})
    folders = {node["inputs"]["pictures"] for node in graph.values() if "pictures" in node["inputs"]}
    assert all((ROOT / "demo" / folder).is_dir() for folder in folders)
    (note,) = (node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "MarkdownNote")
    assert "come with NextControl" in note


def test_the_note_has_the_command_for_each_network_that_looks_at_pictures(name, workflow):
    (note,) = (node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "MarkdownNote")
    folders = annotator_folders(api_workflow(name))
    assert folders or name != POSE
    for folder in folders:
        (known,) = (item for item in CATALOGUE if item.name == folder)
        row = next(line for line in note.splitlines() if line.startswith(f"| `models/annotators/{folder}` |"))
        assert f"`hf download {known.repository} --local-dir models/annotators/{folder}`" in row
        assert f"{known.megabytes} MB" in row


def test_every_ctrlora_is_applied_with_a_vae(workflow):
    kinds = {node["id"]: node["type"] for node in workflow["nodes"]}
    sources = {link: kinds[node] for link, node, *_ in workflow["links"]}
    for node in workflow["nodes"]:
        if node["type"] == "ControlNetApplyAdvanced":
            links = {socket["name"]: socket["link"] for socket in node["inputs"]}
            assert sources[links["vae"]] in {"CheckpointLoaderSimple", "NextControlLoadDemoModel"}


def test_file_names_have_forward_slashes_and_nothing_is_downloaded(workflow):
    assert not any("\\" in str(value) for node in workflow["nodes"] for value in node.get("widgets_values", ()))


def test_each_has_an_id_of_its_own():
    ids = [json.loads(path.read_text(encoding="utf-8"))["id"] for path in files()]
    assert len(ids) == len(NAMES) + 4
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("path", files(), ids=lambda path: path.stem)
def test_every_node_says_which_pack_and_version_it_is_of_and_offers_its_files(path):
    text = path.read_text(encoding="utf-8")
    # After a change, and after a release: python3 scripts/workflow_properties.py
    assert json.dumps(complete(json.loads(text)), indent=2, ensure_ascii=False) + "\n" == text


def test_what_is_offered_is_what_the_catalogue_says_and_what_the_page_downloads():
    published = {
        (item.folder, file.rpartition("/")[2], item.place): f"https://huggingface.co/{item.repository}/resolve/main/{file}"
        for item in CATALOGUE
        for file in item.files
    }
    nodes = [node for path in files() for node in all_nodes(json.loads(path.read_text(encoding="utf-8")))]
    offered, left_out = set(), set()
    for node in nodes:
        wanted = {value for value in node.get("widgets_values") or () if str(value).endswith(WEIGHTS)}
        models = {model["name"]: model for model in node["properties"].get("models", ())}
        assert set(models) <= wanted
        left_out |= wanted - set(models)
        for name, model in models.items():
            assert model["directory"] == FOLDERS[node["type"]]
            assert model["url"].startswith(("https://huggingface.co/", "https://civitai.com/"))
            place, _, base = name.rpartition("/")
            known = {published.get((model["directory"], base, folder)) for folder in ("", place)} - {None}
            assert known == {model["url"]} or (not known and base in BASES)
            offered.add(base)
    assert all(name.startswith(("demo_", "controlnext-sd15/")) for name in left_out)
    assert {"ctrlora_sd15_basecn700k.ckpt", "unet.safetensors", "svd_xt_1_1.safetensors"} <= offered
    assert offered >= set(BASES)


def test_the_app_is_the_demo_workflow_with_a_view_of_its_own():
    app, demo = (json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")) for name in (APP, "demo_controlnext"))
    view = app["extra"].pop("linearData")
    assert app["extra"].pop("linearMode") is True
    nodes = {str(node["id"]): node for node in app["nodes"]}
    for node, name in view["inputs"]:
        (socket,) = (socket for socket in nodes[node]["inputs"] if socket["name"] == name)
        assert socket["widget"] == {"name": name}
        assert socket.pop("label")
    assert [nodes[node]["type"] for node in view["outputs"]] == ["SaveImage"]
    assert app | {"id": demo["id"]} == demo


def test_no_node_lies_on_another(workflow):
    boxes = [(node["type"], *node["pos"], *node["size"]) for node in workflow["nodes"]]
    for (a, ax, ay, aw, ah), (b, bx, by, bw, bh) in combinations(boxes, 2):
        apart = ax + aw <= bx or bx + bw <= ax or ay + ah <= by - TITLE or by + bh <= ay - TITLE
        assert apart, f"{a} and {b}"


def test_every_node_is_in_a_group_except_the_note(workflow):
    groups = [group["bounding"] for group in workflow["groups"]]
    for node in workflow["nodes"]:
        (x, y), (width, height) = node["pos"], node["size"]
        inside = [g for g in groups if g[0] < x and g[1] < y - TITLE and x + width < g[0] + g[2] and y + height < g[1] + g[3]]
        assert len(inside) == (node["type"] != "MarkdownNote"), node["type"]


@pytest.mark.parametrize("name", [*NAMES, APP])
def test_the_thumbnail_is_small(name):
    content = (WORKFLOWS / f"{name}.jpg").read_bytes()
    assert content.startswith(b"\xff\xd8")
    assert len(content) < 60_000
