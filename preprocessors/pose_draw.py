"""Pictures of people's key points, in the manner that each family was trained with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .pose_draw_body25 import draw_body25
from .pose_draw_parts import draw_body, draw_faces, draw_hands
from .pose_points import VISIBLE, People

Canvas = NDArray[np.uint8]
StyleName = Literal["openpose", "dwpose", "body25", "svd_v2"]
LineWidth = Literal["reference", "resolution"]
LINE_WIDTHS: tuple[LineWidth, ...] = get_args(LineWidth)
SVD_SIDE = 2160
"""Shorter side of the canvas that ControlNeXt-SVD draws on. Source: ControlNeXt-SVD-v2/dwpose/util.py, `ref_w`."""
LARGEST_SIDE = 8 * SVD_SIDE
"""Longest side of that canvas. The reference has no limit; of a narrow strip it would make gigabytes."""
PLAIN_SIDE = 512
"""Shorter side at which lines that follow the resolution have the reference's width."""


@dataclass(frozen=True)
class Drawing:
    """How key points become a picture."""

    style: str = "openpose"
    """A key of `STYLES`."""
    has_body: bool = True
    has_hands: bool = True
    """Only for the styles with hands."""
    has_face: bool = True
    """Only for the styles with faces."""
    line_width: LineWidth = "reference"
    """"reference": as many pixels as the reference has at every size. "resolution": that at 512, more on larger pictures."""
    threshold: float = VISIBLE
    """Points with a score up to this are left out."""


@dataclass(frozen=True)
class Style:
    """One manner of drawing."""

    draw: Callable[[Canvas, People, Drawing, float], Any]
    """Draws on a black canvas, RGB; the number multiplies the widths of lines."""
    side: int = 0
    """Shorter side of the canvas, which is resized to the picture; 0 draws on the picture itself."""
    is_exchanged: bool = False
    """Red and blue change places at the end."""


def draw_pose(clip: Sequence[People], size: tuple[int, int], drawing: Drawing) -> Tensor:
    """Draw the people of every frame on black.

    Args:
        clip: The people of each frame, one frame or more.
        size: (height, width) of the result. Points are fractions of it, whatever the picture's own size was.
        drawing: Style and options.

    Returns:
        (B, *size, 3) in [0, 1], RGB. Beside it there is one canvas in memory.

    Source: xyfJASON/ctrlora@b4422b4 annotator/openpose/util.py; dvlab-research/ControlNeXt@ab4b3ac
        ControlNeXt-SVD-v2/dwpose/util.py. Their limbs are dimmed by darkening the whole canvas before anything else is on
        it; here they are drawn in the darker colour, which gives the same pixels.
    """
    import cv2

    style, short = STYLES[drawing.style], min(size)
    scale = min(style.side / short, LARGEST_SIDE / max(size)) if style.side and style.side != short else 1
    canvas = np.zeros((int(size[0] * scale), int(size[1] * scale), 3), np.uint8)
    widen = short / PLAIN_SIDE if drawing.line_width == "resolution" and not style.side else 1.0
    pictures = torch.empty((len(clip), *size, 3))
    floats = np.arange(256, dtype=np.float32) / np.float32(255)
    for target, people in zip(pictures.numpy(), clip, strict=True):
        canvas.fill(0)
        style.draw(canvas, people, drawing, widen)
        drawn = canvas if canvas.shape[:2] == size else cv2.resize(canvas, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
        cv2.LUT(cv2.cvtColor(drawn, cv2.COLOR_BGR2RGB) if style.is_exchanged else drawn, floats, dst=target)
    return pictures


def _draw_openpose(canvas: Canvas, people: People, drawing: Drawing, widen: float) -> None:
    if drawing.has_body:
        draw_body(canvas, people.bodies, drawing.threshold, widen)


def _draw_dwpose(canvas: Canvas, people: People, drawing: Drawing, widen: float, is_scored: bool = False) -> None:
    if drawing.has_body:
        draw_body(canvas, people.bodies, drawing.threshold, widen, is_scored)
    if drawing.has_hands:
        draw_hands(canvas, people.hands, drawing.threshold, widen, is_scored)
    if drawing.has_face:
        draw_faces(canvas, people.faces, drawing.threshold, widen, is_scored)


def _draw_svd(canvas: Canvas, people: People, drawing: Drawing, widen: float) -> None:
    _draw_dwpose(canvas, people, drawing, widen, is_scored=True)


def _draw_body25(canvas: Canvas, people: People, drawing: Drawing, widen: float) -> None:
    if drawing.has_body:
        draw_body25(canvas, people, drawing.threshold, widen)


STYLES: Mapping[str, Style] = {
    "openpose": Style(_draw_openpose),
    "dwpose": Style(_draw_dwpose),
    "body25": Style(_draw_body25),
    "svd_v2": Style(_draw_svd, SVD_SIDE, is_exchanged=True),
}
