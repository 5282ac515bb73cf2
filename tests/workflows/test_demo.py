"""The demo model in a real ComfyUI: the demo workflows as they are, and the workflows for SD1.5 with their loaders swapped."""

from __future__ import annotations

import copy
import io
from urllib.parse import urlencode

import numpy as np
import pytest
import torch
from demo_checkpoint import CHECKPOINT, CONTROL, CTRLORA_BASE, CTRLORA_CANNY, CTRLORA_PALETTE, UNET, demo_models
from demo_graph import on_demo_model, use_sizes
from demo_job import set_inputs, title_of
from demo_plan import plan
from host_server import link_file
from nextcontrol.preprocessors.canny import canny
from nextcontrol.preprocessors.palette import palette
from PIL import Image
from prove_metrics import edge_f1, hint_error
from real_server import DEMOS, NAMES, api_workflow, node_of, pixels, run

import demo

EXAMPLES = {"demo_controlnext": "ControlNeXt", "demo_ctrlora": "CtrLoRA", "demo_two_conditions": "Two conditions"}
"""Each shows what it draws with control under this title."""
TRAINING = "demo_train_ctrlora"
ON_DEMO = (
    "controlnext_sd15_canny", "ctrlora_single", "ctrlora_two_conditions", "ctrlora_with_native_controlnet", "stack_regional",
    "stack_three_controls",
)  # fmt: skip
ON_SD15 = {
    "--checkpoint": CHECKPOINT, "--controlnext": CONTROL, "--unet": UNET, "--ctrlora-base": CTRLORA_BASE,
    "--ctrlora-canny": CTRLORA_CANNY, "--ctrlora-palette": CTRLORA_PALETTE,
}  # fmt: skip
"""Files for `demo.py`."""
TRAINERS = ("train_ctrlora", "train_controlnext")
WITHOUT_MODEL = ("hints_gallery", "pose_from_any_detector")
REAL_ONLY = ("controlnext_sdxl_canny", "controlnext_svd_pose_frames", "controlnext_svd_pose_video")
"""For SDXL and SVD, of which the demo model is neither; other tests send them to the server."""
SIDE = 128
UNLIKE = ("Without control", *EXAMPLES.values(), "Before training", "After training")
"""Titles of pictures that differ by the control."""
NOTHING = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
    "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}
STEPS = 8
FEW = {
    "steps": 3, "subset": 16, "rank": 4, "preview_every": 0, "validation_pairs": 0, "sensitivity_every": 0, "batch_size": 2,
    "accumulation_steps": 1,
}  # fmt: skip


def shown(server, graph):
    """The pictures that a run shows, by the titles of their nodes, (1, H, W, 3) in [0, 1]."""
    run(server, NOTHING)  # what is left of the prompt before would be shown no more
    entry = run(server, graph)
    assert entry["status"]["status_str"] == "success", entry["status"]
    found = {}
    for node, output in entry["outputs"].items():
        for picture in output.get("images", [])[:1]:
            content = server.fetch(f"/view?{urlencode(picture)}")
            pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), dtype=np.float32)
            found[title_of(graph, node)] = torch.from_numpy(pixels)[None] / 255
    return found


def test_every_workflow_is_run_on_the_demo_model_or_says_why_not():
    assert sorted((*EXAMPLES, TRAINING)) == DEMOS
    assert sorted((*DEMOS, *ON_DEMO, *TRAINERS, *WITHOUT_MODEL, *REAL_ONLY)) == NAMES


@pytest.mark.parametrize(("name", "title"), EXAMPLES.items())
def test_a_demo_workflow_runs_as_it_is_and_its_control_controls(server, name, title):
    pictures = shown(server, api_workflow(name))
    hint = next(picture for key, picture in pictures.items() if key in {"Hint", "Hint: edges"})
    free, controlled = pictures["Without control"], pictures[title]
    assert free.shape == controlled.shape == hint.shape == (1, SIDE, SIDE, 3)
    assert edge_f1(canny(controlled, SIDE), hint) > edge_f1(canny(free, SIDE), hint) + 0.1


def test_colours_beside_edges_bring_the_colours(server):
    graph = api_workflow("demo_two_conditions")
    pictures = shown(server, graph)
    cell = node_of(graph, "NextControlPalette")["cell"]

    def distance(picture) -> float:
        return float(hint_error(palette(picture, SIDE, cell), pictures["Hint: colours"]))

    assert distance(pictures["Two conditions"]) < distance(pictures["Without control"])
    (colours,) = (node["inputs"] for node in graph.values() if node["_meta"]["title"] == "2. Colours")
    colours["strength"] = 0.0
    assert distance(pictures["Two conditions"]) < distance(shown(server, graph)["Two conditions"])


def test_the_demos_training_runs_and_what_it_makes_is_used_in_the_same_queue(server):
    graph = api_workflow(TRAINING)
    for key, value in (FEW | {"name": "demo/in_the_tests", "learning_rate": 0.01}).items():
        set_inputs(graph, key, value, ("NextControlTrainCtrLoRA", "NextControlPairDataset"))
    pictures = shown(server, graph)
    assert (server.base / "models" / "ctrlora" / "demo" / "in_the_tests.safetensors").is_file()
    assert (pictures["Before training"] - pictures["After training"]).abs().max() > 0.02
    made = server.base / "input" / node_of(graph, "NextControlMakePairs")["folder"]
    assert len(list((made / "source").glob("*.png"))) == len(list((made / "target").glob("*.png"))) == 128


@pytest.mark.parametrize("name", ON_DEMO)
def test_a_workflow_for_sd15_runs_on_the_demo_model_and_its_controls_count(server, name):
    graph = on_demo_model(api_workflow(name))
    set_inputs(graph, "steps", STEPS, ("KSampler",))
    picture = pixels(server, graph)
    assert picture.shape == (SIDE, SIDE, 3)
    assert picture.std() > 5
    off = copy.deepcopy(graph)
    for node in off.values():
        if "Apply" in node["class_type"] or node["class_type"] == "NextControlStackControl":
            node["inputs"]["strength"] = 0.0
    assert abs(picture - pixels(server, off)).max() > 20


@pytest.mark.parametrize("name", TRAINERS)
def test_a_workflow_that_trains_runs_on_the_demo_model(server, name):
    graph = on_demo_model(api_workflow(name))
    (trainer,) = (node["class_type"] for node in graph.values() if node["class_type"].startswith("NextControlTrain"))
    for key, value in (FEW | {"pictures": "demo_pictures", "captions": "file_name", "name": f"demo/{name}"}).items():
        set_inputs(graph, key, value)
    node_of(graph, "NextControlMakePairs")["folder"] = "demo_pairs_canny"
    entry = run(server, graph)
    assert entry["status"]["status_str"] == "success", entry["status"]
    kind = "ctrlora" if trainer == "NextControlTrainCtrLoRA" else "controlnext"
    assert (server.base / "models" / kind / "demo" / f"{name}.safetensors").is_file()


def test_the_demo_runs_on_an_sd15_checkpoint_and_controls_for_it(server, tmp_path):
    own = {option: tmp_path / f"my_{file.rpartition('/')[2]}" for option, file in ON_SD15.items()}
    for option, path in own.items():
        link_file(demo_models(server.host) / ON_SD15[option], path)
    options = demo.parse([str(word) for pair in own.items() for word in pair])
    demo.add_files(server, options)
    (row, *_, training), left_out = plan(options)
    assert left_out == []
    for graph in (*row.graphs, *training.graphs):
        assert node_of(graph, "CheckpointLoaderSimple") == {"ckpt_name": own["--checkpoint"].name}
        use_sizes(graph, FEW | {"resolution": SIDE, "folder": "demo_pairs_sd15", "name": "demo/on_sd15"})
        pictures = shown(server, graph)
        (free, controlled) = (pictures[title] for title in pictures if title in UNLIKE)
        assert free.shape == (1, SIDE, SIDE, 3)
        assert not torch.equal(free, controlled)
    assert (server.base / "models" / "ctrlora" / "demo" / "on_sd15.safetensors").is_file()
