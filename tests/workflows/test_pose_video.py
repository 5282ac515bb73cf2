"""Pose video in a real ComfyUI: from a clip to aligned hints, and clips that are none."""

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
    """The workflow up to the hints, small, shown by core's preview."""
    graph = {node: entry for node, entry in api_workflow(NAME).items() if int(node) in range(4, 11)}
    for entry in graph.values():
        if entry["class_type"] == "NextControlPose":
            entry["inputs"] |= {"resolution": 128, "person_threshold": 0.0, "point_threshold": 0.0}
    node_of(graph, "LoadVideo")["file"] = clip
    # The tiny networks are not sure of anything, so nothing is aligned.
    node_of(graph, "NextControlAlignPose").update(width=64, height=64, mode="none")
    graph[PREVIEW] = {"class_type": "PreviewImage", "inputs": {"images": ["10", 0]}}
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


def test_a_clip_of_uneven_frames_gives_one_hint_for_each_or_the_reason_why_not(server, clips):
    write_clip(clips / "uneven.mp4", [0, 40, 90, 400, 410])
    graph = poses_graph("uneven.mp4")
    entry = run(server, graph)
    if entry["status"]["status_str"] == "success":
        assert len(entry["outputs"][PREVIEW]["images"]) == 6
    else:
        # The tiny networks may find nobody.
        assert "poses has no person in any of its 5 frames" in str(entry["status"]["messages"])


def test_a_file_with_sound_alone_is_refused_before_our_nodes(server, clips):
    write_sound(clips / "sound.mp4")
    kind, message = failure(server, poses_graph("sound.mp4"))
    assert kind == "GetVideoComponents"
    assert "video" in message.lower()
