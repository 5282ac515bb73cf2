"""People in pictures: detected with annotators under the host's memory management, drawn, and exchanged as JSON."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ...preprocessors.canvas import hint_size, to_bytes
from ...preprocessors.pose_detect import detect_people, detect_points, whole_pictures
from ...preprocessors.pose_draw import Drawing, draw_pose
from ...preprocessors.pose_json import from_json, to_json
from ...preprocessors.pose_points import VISIBLE, People
from .annotators import BYTES_PER_PIXEL, FRAMES_PER_PIECE, NETWORK_PIXELS, one_by_one_when_short, open_annotator
from .hint_output import make_hints
from .progress import in_chunks

WHOLE_PICTURE = "none"
"""In place of a detector: the whole picture is one person."""

log = logging.getLogger("nextcontrol")


@dataclass(frozen=True)
class Detection:
    """How people are found."""

    detector: str
    """Folder of a person detector, or `WHOLE_PICTURE`."""
    model: str
    """Folder of a ViTPose."""
    threshold: float = VISIBLE
    """Persons that the detector is less sure of are left out."""
    most: int = 0
    """People of a picture, the surest ones; 0 keeps all."""


def make_pose(
    image: Tensor, resolution: int, detection: Detection, drawing: Drawing, is_certain: bool = False
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Find and draw the people of each picture, with progress and cancel.

    Args:
        image: From an `IMAGE` socket.
        resolution: As for every preprocessor.
        detection: Networks and options.
        drawing: Style and options.
        is_certain: As for `to_json`.

    Returns:
        (B, H', W', 3) in [0, 1], and the people of each picture as `POSE_KEYPOINT`.

    Raises:
        FileNotFoundError: A network's folder is not there.
        ValueError: A network is for another task or damaged; or `image` is no batch of RGB pictures.
    """
    clip: list[People] = []

    def make(frames: Tensor) -> Tensor:
        people = _detect(frames, detection)
        clip.extend(people)
        return draw_pose(people, hint_size(frames.shape[1], frames.shape[2], resolution), drawing)

    hints = make_hints(image, one_by_one_when_short(make), FRAMES_PER_PIECE)
    if empty := sum(not len(people) for people in clip):
        log.warning("No person in %d of %d pictures: their hints are black.", empty, len(clip))
    return hints, to_json(clip, is_certain)


def draw_keypoints(keypoints: Any, resolution: int, drawing: Drawing, canvas: tuple[int, int] = (0, 0)) -> Tensor:
    """Draw a `POSE_KEYPOINT` from any node, with progress and cancel.

    Args:
        keypoints: See `from_json`.
        resolution: As for every preprocessor, of the canvas.
        drawing: Style and options.
        canvas: (height, width) in place of the canvas of `keypoints`; (0, 0) for its own.

    Returns:
        (B, H', W', 3) in [0, 1], one for each frame of `keypoints`.

    Raises:
        ValueError: `keypoints` has another shape, or no canvas, or canvases of several sizes, and none is given.
    """
    if (canvas[0] == 0) != (canvas[1] == 0):
        raise ValueError(f"width ({canvas[1]}) and height ({canvas[0]}) are given together: set both, or both to 0.")
    clip = from_json(keypoints, canvas if any(canvas) else None)
    sizes = sorted({(people.height, people.width) for people in clip})
    if not any(canvas) and len(sizes) > 1:
        names = " and ".join(f"{width}x{height}" for height, width in sizes[:2])
        raise ValueError(f"keypoints has frames of several sizes ({names}): give width and height.")
    size = hint_size(*(canvas if any(canvas) else sizes[0]), resolution)
    return in_chunks(clip, lambda people: draw_pose(people, size, drawing))


def _detect(frames: Tensor, detection: Detection) -> list[People]:
    pictures, memory = to_bytes(frames), len(frames) * NETWORK_PIXELS * BYTES_PER_PIXEL
    if detection.detector == WHOLE_PICTURE:
        boxes: list[np.ndarray] = whole_pictures(frames)
    else:
        detector = open_annotator(detection.detector, "detection", memory)
        boxes = detect_people(pictures, detector, detection.threshold, detection.most)
    return detect_points(pictures, boxes, open_annotator(detection.model, "pose", memory))
