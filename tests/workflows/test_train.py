"""Training through the HTTP API of a real ComfyUI: pictures to pairs, cancelled, gone on with, loaded and used."""

from __future__ import annotations

import copy
import json
import time
from typing import Any

import pytest
from host_client import HttpError
from real_server import CTRLORA, JOB_SECONDS, SD15, SMALL, api_workflow, cancel, failure, node_of, run, small_graph, wait

STEPS = 12


def graph_of(name: str, workflow: str = "train_ctrlora", **changes):
    """The workflow at a size that takes seconds."""
    graph = copy.deepcopy(api_workflow(workflow))
    for node in graph.values():
        values = {**SMALL, "steps": STEPS, **changes, "name": name}
        node["inputs"] |= {key: value for key, value in values.items() if key in node["inputs"]}
    # Not the workflow's own folder: what another test has queued makes pairs of another size there.
    node_of(graph, "NextControlMakePairs")["folder"] = "small_pairs"
    return graph


def used_by(graph: dict[str, Any], workflow: str) -> dict[str, Any]:
    """A training and, behind it, a workflow that uses what it makes."""
    offset, joined = 100, dict(graph)
    for key, node in small_graph(workflow).items():
        links = {name: [str(int(v[0]) + offset), v[1]] for name, v in node["inputs"].items() if isinstance(v, list)}
        joined[str(int(key) + offset)] = {**node, "inputs": node["inputs"] | links}
    return joined


def metrics(server, name, folder="ctrlora"):
    path = server.base / "models" / folder / f"{name}.training" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().rpartition("\n")[0].splitlines()] if path.is_file() else []


def test_a_cancelled_training_goes_on_when_it_is_queued_again_and_its_file_works(server):
    graph = graph_of("api/cancelled")
    job = server.post_json("/prompt", {"prompt": graph})["prompt_id"]
    end = time.monotonic() + JOB_SECONDS
    while len(metrics(server, "api/cancelled")) < 2:
        assert time.monotonic() < end, server.log_tail()
        time.sleep(0.02)
    server.post_json("/interrupt", {"prompt_id": job})
    entry = wait(server, job)
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"
    done = metrics(server, "api/cancelled")[-1]["step"]
    assert 2 <= done < STEPS
    folder = server.base / "models" / "ctrlora" / "api"
    assert [path.name for path in (folder / "cancelled.training").glob("*.state")] == [f"state-{done:08d}.state"]

    # The name of the new file goes by a link into the loader, which no list has it for yet.
    graph = used_by(graph, CTRLORA)
    trainer = next(key for key, node in graph.items() if node["class_type"] == "NextControlTrainCtrLoRA")
    node_of(graph, "NextControlLoadCtrLoRA")["lora_file"] = [trainer, 0]
    entry = run(server, graph)
    assert entry["status"]["status_str"] == "success", entry["status"]
    assert [line["step"] for line in metrics(server, "api/cancelled")] == list(range(1, STEPS + 1))
    assert (folder / "cancelled.safetensors").is_file()
    saver = next(key for key, node in graph.items() if node["class_type"] == "SaveImage")
    assert len(entry["outputs"][saver]["images"]) == 1


def test_a_controlnext_is_trained_and_its_two_files_are_used_in_one_queue(server):
    graph = used_by(graph_of("api/edges", "train_controlnext", steps=3, accumulation_steps=1), SD15)
    trainer = next(key for key, node in graph.items() if node["class_type"] == "NextControlTrainControlNeXt")
    node_of(graph, "NextControlLoadControlNeXt").update(control_file=[trainer, 0], unet_file=[trainer, 1])
    entry = run(server, graph)
    assert entry["status"]["status_str"] == "success", entry["status"]
    assert [line["step"] for line in metrics(server, "api/edges", "controlnext")] == [1, 2, 3]
    folder = server.base / "models" / "controlnext" / "api"
    assert sorted(path.name for path in folder.glob("*.safetensors")) == ["edges.safetensors", "edges_unet.safetensors"]
    saver = next(key for key, node in graph.items() if node["class_type"] == "SaveImage")
    assert len(entry["outputs"][saver]["images"]) == 1


def test_a_controlnext_without_a_text_encoder_is_refused_in_one_sentence(server):
    graph = graph_of("api/no_clip", "train_controlnext")
    del node_of(graph, "NextControlTrainControlNeXt")["clip"]
    node, text = failure(server, graph)
    assert node == "NextControlTrainControlNeXt"
    assert text.startswith("The model is SD1.5, which reads text, and clip is not connected")


def test_wrong_inputs_are_one_sentence(server):
    node, text = failure(server, graph_of("api/rank", rank=400))
    assert node == "NextControlTrainCtrLoRA"
    assert "rank (400) must be at most 320" in text
    for change, sentence in (
        ({"pictures": "../output"}, "must be a folder below"),
        ({"pictures": "gone"}, "There is no folder"),
    ):
        with pytest.raises(HttpError) as caught:
            server.post_json("/prompt", {"prompt": graph_of("api/x", **change)})
        assert sentence in json.dumps(caught.value.body)
    # Other branches of the graph are valid, so that the answer is no error as a whole.
    answer = server.post_json("/prompt", {"prompt": graph_of("../x")})
    assert "must be a file name" in json.dumps(answer["node_errors"])
    cancel(server, answer["prompt_id"])
