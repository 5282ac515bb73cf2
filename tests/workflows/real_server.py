"""A real ComfyUI server in a process of its own, with the files that the workflows ask for, and what is asked of it."""

from __future__ import annotations

import copy
import json
import shutil
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from demo_checkpoint import FILES, demo_models, random_native
from demo_graph import BASE, NATIVE
from demo_job import set_inputs
from host_server import Server, link_file
from workflow_properties import FOLDERS

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = ROOT / "workflows"
SUBGRAPHS = ROOT / "subgraphs"
APP = "demo_controlnext.app"
"""A workflow of the others that newer pages open in their app mode."""
NAMES = sorted({path.stem for path in WORKFLOWS.glob("*.json")} - {APP})
DEMOS = [name for name in NAMES if name.startswith("demo_")]
"""Those that need nothing but the pack."""
SD15 = "controlnext_sd15_canny"
CTRLORA = "ctrlora_single"
# A training that takes seconds.
SMALL = {
    "resolution": 64, "rank": 4, "preview_every": 0, "validation_pairs": 0, "save_every": 100, "sensitivity_every": 0,
}  # fmt: skip
WEIGHTS = (".safetensors", ".ckpt")
JOB_SECONDS = 120.0


def fill(server: Server) -> None:
    """Give a server every file that the workflows ask for: real ones where the demo has them, empty ones else."""
    models = demo_models(server.host)
    for name in FILES:
        link_file(models / name, server.base / "models" / name)
    for name in sorted(set(NAMES) - set(DEMOS)):
        for file in model_files(api_workflow(name)) - set(FILES):
            path = server.base / "models" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    write_native(server.base / "models" / "controlnet" / NATIVE)
    fill_annotators(server.base / "models" / "annotators")
    for picture in (ROOT / "demo").glob("*.png"):
        server.upload_image(picture)
    for clip in ("pose_frames.mp4", "walk.mp4"):
        write_video(server.base / "input" / clip)
    pictures = server.base / "input" / "my_pictures"
    pictures.mkdir()
    for picture in (ROOT / "demo").glob("*.png"):
        shutil.copy(picture, pictures / picture.name)  # not a link: those that lead out of input/ are refused


def write_native(path: Path) -> None:
    """A native ControlNet for the demo model, with random weights: none comes with the pack."""
    from safetensors.torch import load_file, save_file

    base = load_file(ROOT / "demo" / "ctrlora" / BASE)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(random_native({key.removeprefix("control_model."): tensor for key, tensor in base.items()}, 1), path)


def fill_annotators(folder: Path) -> None:
    """Tiny networks under the names that the workflows ask for. This detector takes everything for a person."""
    import torch
    from tiny_annotators import save_depth_anything, save_vitpose, save_yolos

    with torch.inference_mode():
        save_yolos(folder / "rtdetr_r50vd_coco_o365", names=dict.fromkeys(range(4), "person"))
        save_vitpose(folder / "vitpose-base-simple")
        save_depth_anything(folder / "Depth-Anything-V2-Small-hf")


def write_video(path: Path) -> None:
    """Three black frames."""
    import av
    import numpy as np

    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=7)
        stream.width = stream.height = 64
        for _ in range(3):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        file.mux(stream.encode())


def api_workflow(name: str) -> dict[str, dict[str, Any]]:
    """A workflow's API twin."""
    return json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))


def model_files(graph: dict[str, dict[str, Any]]) -> set[str]:
    """The weights that a workflow loads, as paths below models/."""
    return {
        f"{FOLDERS[node['class_type']]}/{value}"
        for node in graph.values()
        for value in node["inputs"].values()
        if str(value).endswith(WEIGHTS)
    }


def annotator_folders(graph: dict[str, dict[str, Any]]) -> set[str]:
    """The networks that look at pictures in a workflow, by their folders below models/annotators."""
    networks = ("detector", "model")
    return {
        value
        for node in graph.values()
        for name, value in node["inputs"].items()
        if node["class_type"].startswith("NextControl") and name in networks and isinstance(value, str)
    }


def small_graph(workflow: str = SD15, **changes: Any) -> dict[str, dict[str, Any]]:
    """A workflow at a size that takes two seconds; `changes` by the names of inputs."""
    graph = copy.deepcopy(api_workflow(workflow))
    has_hint = any("resolution" in node["inputs"] for node in graph.values())
    size = {"resolution": 128} if has_hint else {"width": 128, "height": 128}
    for name, value in ({**size, "steps": 2} | changes).items():
        assert set_inputs(graph, name, value), name
    return graph


def node_of(graph: dict[str, dict[str, Any]], kind: str) -> dict[str, Any]:
    """The inputs of the only node of a class."""
    (inputs,) = (node["inputs"] for node in graph.values() if node["class_type"] == kind)
    return inputs


def failure(server: Server, graph: dict[str, dict[str, Any]]) -> tuple[str, str]:
    """The class of the node that ends a workflow, and the one sentence that it says."""
    entry = run(server, graph)
    (error,) = (data for kind, data in entry["status"]["messages"] if kind == "execution_error")
    text = error["exception_message"].strip()
    assert "\n" not in text
    return error["node_type"], text


def run(server: Server, graph: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Post a workflow, wait for its end; its entry of the history."""
    answer = server.post_json("/prompt", {"prompt": graph})
    assert answer["node_errors"] == {}
    return wait(server, answer["prompt_id"])


def wait(server: Server, job: str) -> dict[str, Any]:
    """The history of a job, when it is done."""
    end = time.monotonic() + JOB_SECONDS
    while time.monotonic() < end:
        history = server.get_json(f"/history/{job}")
        if history:
            return history[job]
        time.sleep(0.05)
    raise TimeoutError(server.log_tail())


def pixels(server: Server, graph: dict[str, dict[str, Any]]):
    """The picture that a workflow saves, as an array."""
    import io

    import numpy as np
    from PIL import Image

    entry = run(server, graph)
    assert entry["status"]["status_str"] == "success", entry["status"]
    saver = next(node for node in graph if graph[node]["class_type"] == "SaveImage")
    (picture,) = entry["outputs"][saver]["images"]
    content = server.fetch(f"/view?{urlencode(picture)}")
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def cancel(server: Server, job: str) -> None:
    """End a job of which only the acceptance matters, running or not."""
    server.post_json("/queue", {"delete": [job]})
    server.post_json("/interrupt", {"prompt_id": job})
    end = time.monotonic() + JOB_SECONDS
    while any(server.get_json("/queue").values()):
        assert time.monotonic() < end
        time.sleep(0.05)
