"""People and their key points in pictures: a person detector, then a pose network for each person it found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .annotator import Annotator, evaluate
from .boxes import keep_distinct
from .canvas import hint_size, to_bytes
from .pose_draw import Drawing, LineWidth, StyleName, draw_pose
from .pose_points import VISIBLE, WHOLE_BODY, People, from_coco, nobody

PERSON = "person"
LARGEST_OVERLAP = 0.65
"""Of two boxes that share more than this part of their union the less sure one is a double. The reference's 0.45 is for a
detector that fires many times on everyone; the ones here seldom do, and people do stand before each other."""
PEOPLE_PER_BATCH = 32
EXPERTS = {"COCO": 0, "COCO-WholeBody": 5}
"""Rows of ViTPose++'s mixture of experts, by what its head was trained for. Source: transformers, documentation of ViTPose."""


def pose(
    frames: Tensor,
    resolution: int,
    annotator: Annotator,
    detector: Annotator | None = None,
    style: StyleName = "openpose",
    body: bool = True,
    hands: bool = True,
    face: bool = True,
    line_width: LineWidth = "reference",
    point_threshold: float = VISIBLE,
    person_threshold: float = VISIBLE,
    max_people: int = 0,
) -> Tensor:
    """Drawings of the people in each picture.

    Args:
        frames: (B, H, W, 3), RGB in [0, 1].
        resolution: Shorter side of the result in pixels, 0 for the pictures' own size; see `hint_size`.
        annotator: A ViTPose.
        detector: Finds the people; without one the whole picture is one person.
        style: See `Drawing`, as for those that follow.
        body: Draw bodies.
        hands: Draw hands.
        face: Draw faces.
        line_width: See `Drawing`.
        point_threshold: Points with a score up to this are left out.
        person_threshold: Persons that the detector is less sure of are left out.
        max_people: Keep that many of a picture, the surest ones; 0 keeps all.

    Returns:
        (B, H', W', 3), black where nobody is.
    """
    size, pictures = hint_size(frames.shape[1], frames.shape[2], resolution), to_bytes(frames)
    boxes = whole_pictures(frames) if detector is None else detect_people(pictures, detector, person_threshold, max_people)
    drawing = Drawing(style, body, hands, face, line_width, point_threshold)
    return draw_pose(detect_points(pictures, boxes, annotator), size, drawing)


def whole_pictures(frames: Tensor) -> list[NDArray[np.float32]]:
    """For each of (B, H, W, 3) one box with everything in it, as `detect_people` gives them."""
    return [np.array([[0, 0, frames.shape[2], frames.shape[1]]], np.float32)] * len(frames)


def detect_people(
    pictures: NDArray[np.uint8], detector: Annotator, threshold: float = VISIBLE, most: int = 0
) -> list[NDArray[np.float32]]:
    """Where people are.

    Args:
        pictures: (B, H, W, 3).
        detector: A network for object detection that knows the class "person".
        threshold: Boxes with a score below are left out.
        most: Keep that many people of a picture, the surest ones; 0 keeps all.

    Returns:
        For each picture (N, 4): left, top, right and bottom in pixels, the surest first.

    Raises:
        ValueError: The detector knows no persons.
    """
    height, width = pictures.shape[1:3]
    labels = torch.tensor(person_labels(detector))
    outputs = evaluate(detector, pictures)
    found = detector.processor.post_process_object_detection(outputs, threshold, [(height, width)] * len(pictures))
    people: list[NDArray[np.float32]] = []
    for result in found:
        is_person = torch.isin(result["labels"].cpu(), labels)
        boxes, scores = result["boxes"].float().cpu()[is_person], result["scores"].float().cpu()[is_person]
        boxes = torch.minimum(boxes.clamp(min=0), torch.tensor([width, height, width, height]))
        is_large = (boxes[:, 2:] - boxes[:, :2] >= 1).all(dim=1)
        boxes, scores = boxes[is_large], scores[is_large]
        people.append(boxes[keep_distinct(boxes, scores, LARGEST_OVERLAP)[: most or None]].numpy())
    return people


def person_labels(detector: Annotator) -> list[int]:
    """The classes that are persons, by a detector's own names; the only class of one that has no other."""
    config: Any = detector.network.config
    names: dict[int, str] = {int(label): name for label, name in config.id2label.items()}
    labels = list(names) if len(names) == 1 else [label for label, name in names.items() if name.lower() == PERSON]
    if not labels:
        raise ValueError(f"The detector '{detector.name}' has no class '{PERSON}' among {len(names)}: choose another one.")
    return labels


def detect_points(pictures: NDArray[np.uint8], boxes: Sequence[NDArray[np.float32]], annotator: Annotator) -> list[People]:
    """The key points of people whose boxes are known.

    Args:
        pictures: (B, H, W, 3).
        boxes: For each picture (N, 4), as from `detect_people`.
        annotator: A ViTPose for 17 points (COCO) or 133 (COCO-WholeBody).

    Returns:
        The people of each picture, in the order of their boxes.

    Raises:
        ValueError: The network finds another number of points.
    """
    height, width = pictures.shape[1:3]
    rows = [(place, box) for place, found in enumerate(boxes) for box in found]
    points = [point for batch in _batches(rows) for point in _points_of(pictures, batch, annotator)]
    clip: list[People] = []
    for found in boxes:
        mine, points = points[: len(found)], points[len(found) :]
        clip.append(from_coco(np.stack(mine) / (width, height, 1), height, width) if mine else nobody(height, width))
    return clip


def _points_of(
    pictures: NDArray[np.uint8], batch: list[tuple[int, NDArray[np.float32]]], annotator: Annotator
) -> Iterator[NDArray[np.float64]]:
    """(K, 3) in pixels for each (picture's place, box)."""
    boxes = [[float(left), float(top), float(right - left), float(bottom - top)] for _, (left, top, right, bottom) in batch]
    shown = [pictures[place] for place, _ in batch]
    inputs = annotator.processor(shown, boxes=[[box] for box in boxes], return_tensors="pt", input_data_format="channels_last")
    arguments = {"pixel_values": inputs["pixel_values"].to(annotator.device)}
    config: Any = annotator.network.config
    if getattr(config.backbone_config, "num_experts", 1) > 1:
        expert = EXPERTS["COCO-WholeBody" if config.num_labels == WHOLE_BODY else "COCO"]
        arguments["dataset_index"] = torch.full((len(batch),), expert, device=annotator.device)
    heatmaps = annotator.network(**arguments).heatmaps.float().cpu()
    (found,) = annotator.processor.post_process_pose_estimation(SimpleNamespace(heatmaps=heatmaps), boxes=[boxes])
    for person in found:
        scores = person["scores"].double().clamp(0, 1).reshape(-1, 1)
        points = torch.cat([person["keypoints"].double(), scores], dim=1).numpy()
        # A flat heat map has no peak: its point is nowhere.
        yield np.where((points[:, 2:] > 0) & np.isfinite(points).all(1, keepdims=True), points, 0)


def _batches(rows: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(rows), PEOPLE_PER_BATCH):
        yield rows[start : start + PEOPLE_PER_BATCH]
