"""What every pixel belongs to, in the colours of ADE20K."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .annotator import Annotator, evaluate
from .canvas import hint_size, to_pictures
from .class_colours import ADE20K

CLASSES_AT_ONCE = 16
"""Of 150, that are at the hint's size at the same time."""


def segment(frames: Tensor, resolution: int, annotator: Annotator) -> Tensor:
    """One colour for each kind of thing.

    Args:
        frames: (B, H, W, 3), RGB in [0, 1].
        resolution: Shorter side of the result in pixels, 0 for the pictures' own size; see `hint_size`.
        annotator: For "segmentation", trained with ADE20K's 150 classes.

    Returns:
        (B, H', W', 3) in [0, 1], colours of `ADE20K` and no others.

    Raises:
        ValueError: The network knows other classes.
    """
    count = annotator.config.num_labels
    if count != len(ADE20K):
        raise ValueError(
            f"'{annotator.name}' knows {count} classes and the {len(ADE20K)} of ADE20K are needed: choose a network that was "
            "trained with ADE20K."
        )
    size = hint_size(frames.shape[1], frames.shape[2], resolution)
    classes = best_classes(evaluate(annotator, to_pictures(frames, size)).logits, size).cpu()
    return (torch.tensor(ADE20K, dtype=torch.uint8)[classes]).float() / 255


def best_classes(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """The class with the highest score at every pixel.

    Args:
        scores: (B, C, h, w).
        size: Height and width of the result; the scores are interpolated, not the classes.

    Returns:
        (B, H, W), integers. Of equal scores the first class wins. All 150 enlarged scores of one picture of 2048x2048 would
        take 2.5 GB, hence the groups.
    """
    best, classes = None, torch.empty(0)
    for start in range(0, scores.shape[1], CLASSES_AT_ONCE):
        group = scores[:, start : start + CLASSES_AT_ONCE].float()
        value, index = F.interpolate(group, size, mode="bilinear", align_corners=False).max(dim=1)
        if best is None:
            best, classes = value, index
            continue
        is_better = value > best
        best, classes = torch.where(is_better, value, best), torch.where(is_better, index + start, classes)
    return classes
