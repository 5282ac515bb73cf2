"""A real ComfyUI server in a process of its own, with the files that the workflows ask for, and what is asked of it."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from demo_checkpoint import CHECKPOINT, CONTROL, UNET, demo_models, link_file
from demo_job import set_inputs
from host_server import Server

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = ROOT / "workflows"
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
SD15 = "controlnext_sd15_canny"
# Files that are only asked for, never read to the end; the SD1.5 workflow gets real ones.
PLACEHOLDERS = (
    "checkpoints/sd_xl_base_1.0.safetensors",
    "checkpoints/svd_xt_1_1.safetensors",
    "controlnext/controlnext-sdxl-anime-canny/controlnet.safetensors",
    "controlnext/controlnext-sdxl-anime-canny/unet.safetensors",
    "controlnext/controlnext-svd-v2/controlnext-svd_v2-controlnet-fp16.safetensors",
    "controlnext/controlnext-svd-v2/controlnext-svd_v2-unet-fp16.safetensors",
)
JOB_SECONDS = 120.0


def fill(server: Server) -> None:
    """Give a server every file that the workflows ask for."""
    models = demo_models(server.host)
    for name in (CHECKPOINT, CONTROL, UNET):
        link_file(models / name, server.base / "models" / name)
    for name in PLACEHOLDERS:
        path = server.base / "models" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    server.upload_image(ROOT / "demo" / "astronaut.png")
    write_video(server.base / "input" / "pose_frames.mp4")


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


def small_graph(**changes: Any) -> dict[str, dict[str, Any]]:
    """The SD1.5 workflow at a size that takes two seconds; `changes` by the names of inputs."""
    graph = copy.deepcopy(api_workflow(SD15))
    for name, value in ({"resolution": 128, "steps": 2} | changes).items():
        assert set_inputs(graph, name, value), name
    return graph


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
