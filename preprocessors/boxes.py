"""Things as filled rectangles, one fixed colour for each of COCO's classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .annotator import Annotator, evaluate
from .canvas import hint_size, to_pictures
from .class_colours import ALIASES, COCO, Colour

CONFIDENCE = 0.4
"""Source: xyfJASON/ctrlora@b4422b4 annotator/bbox/__init__.py, `__call__`."""
OVERLAP = 0.5
"""Source: as above, `nms_thresh`."""


class Box(NamedTuple):
    """A thing in a picture."""

    label: str
    """Its class, by the network's name."""
    score: float
    """0 to 1."""
    left: int
    top: int
    right: int
    """First column behind it."""
    bottom: int
    """First row below it."""
    colour: Colour


def boxes(
    frames: Tensor,
    resolution: int,
    annotator: Annotator,
    confidence: float = CONFIDENCE,
    overlap: float = OVERLAP,
    found: Callable[[list[Box]], None] | None = None,
) -> Tensor:
    """Rectangles around things, drawn on black as CtrLoRA draws them.

    Args:
        frames: (B, H, W, 3), RGB in [0, 1].
        resolution: Shorter side of the result in pixels, 0 for the pictures' own size; see `hint_size`.
        annotator: For "detection".
        confidence: 0 to 1; less certain things are left out.
        overlap: 0 to 1; of two boxes whose intersection is more than this part of their union, the more certain one stays.
        found: Called with the boxes of each picture.

    Returns:
        (B, H', W', 3) in [0, 1].
    """
    height, width = hint_size(frames.shape[1], frames.shape[2], resolution)
    pictures = to_pictures(frames, (height, width))
    sizes = [(height, width)] * len(pictures)
    output = evaluate(annotator, pictures)
    results = annotator.processor.post_process_object_detection(output, threshold=confidence, target_sizes=sizes)
    names = annotator.config.id2label
    hints = torch.empty((len(pictures), height, width, 3))
    for hint, result in zip(hints, results, strict=True):
        things = keep_distinct(result["boxes"].float().cpu(), result["scores"].float().cpu(), overlap)
        corners = to_pixels(result["boxes"].cpu()[things], height, width)
        labels, scores = result["labels"].tolist(), result["scores"].tolist()
        drawn = [
            Box(names.get(labels[thing], str(labels[thing])), scores[thing], *corner, colour_of(names, labels[thing]))
            for thing, corner in zip(things, corners, strict=True)
        ]
        hint[:] = draw_boxes(drawn, height, width)
        if found is not None:
            found(drawn)
    return hints


def keep_distinct(corners: Tensor, scores: Tensor, overlap: float) -> list[int]:
    """Indices of the boxes that are left when the less certain of two that overlap is dropped, the most certain first.

    Args:
        corners: (N, 4): left, top, right, bottom.
        scores: (N,).
        overlap: As for `boxes`. Classes are not looked at, as in the reference.

    Returns:
        Indices into `corners`.
    """
    order = scores.argsort(descending=True, stable=True).tolist()
    kept: list[int] = []
    for thing in order:
        if all(_overlap(corners[thing], corners[other]) <= overlap for other in kept):
            kept.append(thing)
    return kept


def to_pixels(corners: Tensor, height: int, width: int) -> list[tuple[int, int, int, int]]:
    """Corners (N, 4) cut off to whole pixels and to the picture."""
    limits = torch.tensor([width, height, width, height])
    cut = torch.minimum(corners.trunc().long().clamp(min=0), limits).tolist()
    return [(left, top, right, bottom) for left, top, right, bottom in cut]


def draw_boxes(things: Sequence[Box], height: int, width: int) -> Tensor:
    """Filled rectangles on black, the largest first and the smaller ones over it.

    Args:
        things: In any order.
        height: Of the picture.
        width: Of the picture.

    Returns:
        (height, width, 3) in [0, 1].
    """
    picture = torch.zeros((height, width, 3))
    for box in sorted(things, key=lambda box: -(box.right - box.left) * (box.bottom - box.top)):
        picture[box.top : box.bottom, box.left : box.right] = torch.tensor(box.colour) / 255
    return picture


def colour_of(names: dict[int, str], label: int) -> Colour:
    """A class's colour: by its name where COCO knows it, else by its number, counted around COCO's colours."""
    name = str(names.get(label, "")).lower()
    colour = COCO.get(ALIASES.get(name, name))
    return colour or tuple(COCO.values())[label % len(COCO)]


def _overlap(one: Tensor, other: Tensor) -> float:
    """Intersection over union of two boxes."""
    sides = (torch.minimum(one[2:], other[2:]) - torch.maximum(one[:2], other[:2])).clamp(min=0)
    shared = float(sides.prod())
    total = sum(float((box[2:] - box[:2]).prod()) for box in (one, other)) - shared
    return shared / total if total > 0 else 0.0
