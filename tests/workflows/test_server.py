"""The pack in a real ComfyUI, asked through its HTTP API as a studio asks."""

from __future__ import annotations

import inspect
import io
from urllib.parse import urlencode

import pytest
from comfy_api.latest import io as host_io
from demo_checkpoint import CONTROL, UNET
from demo_job import run_job, set_inputs
from host_client import HttpError, ServerError
from PIL import Image
from real_server import APP, NAMES, WORKFLOWS, api_workflow, cancel, failure, pixels, run, small_graph, wait

NODES = (
    "NextControlLoadControlNeXt",
    "NextControlApplyControlNeXt",
    "NextControlCanny",
    "NextControlLoadCtrLoRABase",
    "NextControlLoadCtrLoRA",
)


def test_the_server_has_our_nodes_and_no_failed_import(server):
    nodes = server.get_json("/object_info")
    assert {name for name in nodes if name.startswith("NextControl")} >= set(NODES)
    assert {nodes[name]["python_module"] for name in NODES} == {"custom_nodes.nextcontrol"}
    about_pack = [line for line in server.log.read_text(encoding="utf-8").splitlines() if "nextcontrol" in line]
    assert about_pack
    assert not any("IMPORT FAILED" in line for line in about_pack)


def test_the_page_is_told_what_to_fold_away_and_what_to_show_again(server):
    nodes = {name: entry for name, entry in server.get_json("/object_info").items() if name.startswith("NextControl")}
    folded = {
        name: {
            key for inputs in entry["input"].values() for key, (_, *more) in inputs.items() if more and "advanced" in more[0]
        }
        for name, entry in nodes.items()
    }
    if "advanced" in inspect.signature(host_io.Input).parameters:
        assert folded["NextControlApplyStack"] == {"resolution_weighting", "guess_mode"}
        optional = set(nodes["NextControlTrainCtrLoRA"]["input"]["optional"])
        assert folded["NextControlTrainCtrLoRA"] == optional
        assert folded["NextControlTrainControlNeXt"] > optional
    else:
        assert not any(folded.values())
    again = {name for name, entry in nodes.items() if entry.get("has_intermediate_output")}
    shown = {name for name, entry in nodes.items() if "/hints/" in entry["category"]} | {"NextControlAlignPose"}
    assert again == (shown if "has_intermediate_output" in inspect.signature(host_io.Schema).parameters else set())


def test_the_template_browser_lists_the_workflows_and_their_thumbnails(server):
    assert sorted(server.get_json("/workflow_templates")["nextcontrol"]) == sorted([*NAMES, APP])
    for name in (*NAMES, APP):
        for ending in ("json", "jpg"):
            served = server.fetch(f"/api/workflow_templates/nextcontrol/{name}.{ending}")
            assert served == (WORKFLOWS / f"{name}.{ending}").read_bytes()


def test_our_model_folders_are_there_and_show_weights_only(server):
    assert {"controlnext", "ctrlora"} <= set(server.get_json("/models"))
    (server.base / "models" / "controlnext" / "readme.txt").touch()
    files = server.get_json("/models/controlnext")
    assert {CONTROL.partition("/")[2], UNET.partition("/")[2]} <= set(files)
    assert "readme.txt" not in files


@pytest.mark.parametrize("name", NAMES)
def test_each_workflow_is_accepted(server, name):
    answer = server.post_json("/prompt", {"prompt": api_workflow(name)})
    assert answer["node_errors"] == {}
    cancel(server, answer["prompt_id"])


def test_a_pose_is_found_and_drawn_in_three_styles(server):
    graph = api_workflow("pose_from_any_detector")
    for name, value in {"resolution": 128, "person_threshold": 0.05, "point_threshold": 0.01}.items():
        assert set_inputs(graph, name, value), name
    entry = run(server, graph)
    assert entry["status"]["status_str"] == "success", entry["status"]
    shown = {node: len(output["images"]) for node, output in entry["outputs"].items()}
    assert shown == dict.fromkeys(("3", "4", "5", "6", "7", "8"), 1)


def test_every_hint_without_weights_is_drawn(server):
    graph = api_workflow("hints_gallery")
    hints = {node: entry["class_type"] for node, entry in graph.items() if entry["class_type"].startswith("NextControl")}
    for node in hints:
        graph[node]["inputs"]["resolution"] = 128
    entry = run(server, graph)
    assert entry["status"]["status_str"] == "success", entry["status"]
    previews = [node for node in graph if graph[node]["class_type"] == "PreviewImage"]
    assert len(previews) == len(hints) == len(set(hints.values()))
    pictures = set()
    for node in [*hints, *previews]:
        (picture,) = entry["outputs"][node]["images"]
        pictures.add(Image.open(io.BytesIO(server.fetch(f"/view?{urlencode(picture)}"))).convert("RGB").tobytes())
    # A hint shows what its preview shows, and no two are the same.
    assert len(pictures) == len(hints)
    if "has_intermediate_output" in inspect.signature(host_io.Schema).parameters:
        again = run(server, graph)  # all of it is cached
        assert again["outputs"] == entry["outputs"]


def test_the_same_seed_gives_the_same_picture_and_strength_changes_it(server):
    first = pixels(server, small_graph(seed=7, strength=1.0))
    assert first.shape == (128, 128, 3)
    assert first.std() > 5
    # What ComfyUI keeps is of the last prompt only: the first one is really run again after another.
    without = pixels(server, small_graph(seed=7, strength=0.0))
    assert abs(first - without).max() > 20
    assert (first == pixels(server, small_graph(seed=7, strength=1.0))).all()


def test_a_missing_file_is_named_before_anything_runs(server):
    graph = small_graph(control_file="gone.safetensors")
    # With an output that does not depend on the file the answer would be 200, and that output alone would run.
    graph = {node: entry for node, entry in graph.items() if entry["class_type"] != "PreviewImage"}
    with pytest.raises(HttpError) as caught:
        server.post_json("/prompt", {"prompt": graph})
    assert caught.value.status == 400
    (entry,) = caught.value.body["node_errors"].values()
    error = entry["errors"][0]
    # Newer hosts look the name up in the combo's list before they ask the node.
    assert error["type"] in {"custom_validation_failed", "value_not_in_list"}
    assert "gone.safetensors" in error["details"]
    if error["type"] == "custom_validation_failed":
        assert "put it into models/controlnext" in error["details"]


def test_a_file_of_another_kind_is_one_sentence(server):
    node, text = failure(server, small_graph(control_file=UNET.partition("/")[2]))
    assert node == "NextControlLoadControlNeXt"
    assert "is a set of fine-tuned UNet weights, not a ControlNeXt module" in text


def test_a_cut_off_file_is_one_sentence(server):
    whole = server.base / "models" / CONTROL
    (whole.parent / "cut.safetensors").write_bytes(whole.read_bytes()[:100_000])
    _, text = failure(server, small_graph(control_file="controlnext-sd15/cut.safetensors"))
    assert "cut short or damaged" in text


def test_the_demo_shows_progress_and_passes_on_what_a_node_says(server, capsys):
    entry = run_job(server, small_graph(seed=9))
    assert entry["status"]["status_str"] == "success"
    shown = capsys.readouterr().out
    assert "KSampler" in shown
    assert "[####################] 2/2" in shown
    with pytest.raises(ServerError, match=r"^'Load ControlNeXt' failed: .* not a ControlNeXt module"):
        run_job(server, small_graph(control_file=UNET.partition("/")[2]))
    with pytest.raises(ServerError, match=r"^The workflow is refused: 'Load ControlNeXt': .*gone.safetensors"):
        run_job(server, small_graph(control_file="gone.safetensors"))
    assert wait(server, entry["prompt"][1])["status"]["completed"]
