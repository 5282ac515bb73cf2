"""Clips in a real ComfyUI: what reaches Pose Hint through core's video nodes."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from real_server import api_workflow, failure, node_of, run

NAME = "controlnext_svd_pose_video"
PREVIEW = "99"


def poses_graph(clip: str) -> dict[str, dict[str, Any]]:
    """The workflow up to the clip's poses, small, shown by core's preview."""
    graph = {node: entry for node, entry in api_workflow(NAME).items() if node in ("5", "6", "7", "9")}
    node_of(graph, "NextControlPose").update(resolution=128, person_threshold=0.0, point_threshold=0.0)
    node_of(graph, "LoadVideo")["file"] = clip
    graph[PREVIEW] = {"class_type": "PreviewImage", "inputs": {"images": ["9", 0]}}
    return graph


def write_clip(path: Path, times: list[int]) -> None:
    """Frames of noise at the given times, in milliseconds."""
    noise = np.random.default_rng(0)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=1000)
        stream.width = stream.height = 64
        for time in times:
            frame = av.VideoFrame.from_ndarray(noise.integers(0, 256, (64, 64, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def write_sound(path: Path) -> None:
    """A second of silence in a video's container."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        file.mux(stream.encode(frame))
        file.mux(stream.encode())


@pytest.fixture
def clips(server) -> Path:
    return server.base / "input"


def test_a_clip_of_uneven_frames_gives_one_hint_for_each(server, clips):
    write_clip(clips / "uneven.mp4", [0, 40, 90, 400, 410])
    entry = run(server, poses_graph("uneven.mp4"))
    assert entry["status"]["status_str"] == "success", entry["status"]
    assert len(entry["outputs"][PREVIEW]["images"]) == 5


def test_a_file_with_sound_alone_ends_in_cores_node_and_the_server_goes_on(server, clips):
    write_sound(clips / "sound.mp4")
    kind, _ = failure(server, poses_graph("sound.mp4"))  # what it says is ComfyUI's own
    assert kind == "GetVideoComponents"
    write_clip(clips / "single.mp4", [0])
    assert run(server, poses_graph("single.mp4"))["status"]["status_str"] == "success"
