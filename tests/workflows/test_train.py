"""Training through the HTTP API of a real ComfyUI: pictures to pairs, cancelled, gone on with, loaded and used."""

from __future__ import annotations

import copy
import json
import time

import pytest
from host_client import HttpError
from real_server import CTRLORA, JOB_SECONDS, api_workflow, cancel, failure, node_of, run, small_graph, wait

STEPS = 12
SMALL = {
    "resolution": 64, "rank": 4, "steps": STEPS, "preview_every": 0, "validation_pairs": 0, "save_every": 100,
    "sensitivity_every": 0,
}  # fmt: skip


def graph_of(name: str, **changes):
    """The workflow at a size that takes seconds."""
    graph = copy.deepcopy(api_workflow("train_ctrlora"))
    for node in graph.values():
        values = {**SMALL, **changes, "name": name}
        node["inputs"] |= {key: value for key, value in values.items() if key in node["inputs"]}
    # Not the workflow's own folder: what another test has queued makes pairs of another size there.
    node_of(graph, "NextControlMakePairs")["folder"] = "small_pairs"
    return graph


def metrics(server, name):
    path = server.base / "models" / "ctrlora" / f"{name}.training" / "metrics.jsonl"
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
    use = small_graph(CTRLORA)
    offset = 100
    for key, node in use.items():
        links = {name: [str(int(v[0]) + offset), v[1]] for name, v in node["inputs"].items() if isinstance(v, list)}
        graph[str(int(key) + offset)] = {**node, "inputs": node["inputs"] | links}
    trainer = next(key for key, node in graph.items() if node["class_type"] == "NextControlTrainCtrLoRA")
    node_of(graph, "NextControlLoadCtrLoRA")["lora_file"] = [trainer, 0]
    entry = run(server, graph)
    assert entry["status"]["status_str"] == "success", entry["status"]
    assert [line["step"] for line in metrics(server, "api/cancelled")] == list(range(1, STEPS + 1))
    assert (folder / "cancelled.safetensors").is_file()
    saver = next(key for key, node in graph.items() if node["class_type"] == "SaveImage")
    assert len(entry["outputs"][saver]["images"]) == 1


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
