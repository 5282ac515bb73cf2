"""A clip's poses brought to a reference's, drawn, written as JSON and shown over the reference picture."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...preprocessors.pose_align import Mode, Shape, align, fit_crop
from ...preprocessors.pose_draw import Drawing, draw_pose
from ...preprocessors.pose_json import from_json, to_json
from ...preprocessors.pose_points import VISIBLE, People, Points
from ...preprocessors.pose_track import Choice, fill_gaps, smooth, to_track, unflatten
from .hint_output import SHOWN
from .hints import LATENT_SCALE, check_image
from .layout import Size
from .progress import in_chunks
from .video_conditioning import fit_reference

log = logging.getLogger("nextcontrol")

SHADE = 0.6
"""Brightness of the reference picture below the poses of the preview."""
PREVIEW = Drawing("dwpose", line_width="resolution")


@dataclass(frozen=True)
class Alignment:
    """How a clip is aligned."""

    mode: Mode
    person: Choice
    index: int
    """Of the person, where `person` is "index"."""
    smooth: float
    """From 0, off, to 1."""
    fill_gaps: int
    """Longest gap that is filled, in frames."""
    style: str
    """A key of `STYLES`."""


class Aligned(NamedTuple):
    """What comes out."""

    hints: Tensor
    """(1 + F, H, W, 3), the reference's pose first."""
    keypoints: list[dict[str, Any]]
    """The same as `POSE_KEYPOINT`."""
    preview: Tensor
    """Up to `SHOWN` of the poses over the reference picture."""


def align_clip(reference: Any, poses: Any, size: tuple[int, int], options: Alignment, image: Tensor | None = None) -> Aligned:
    """Align a clip, with progress and cancel while it is drawn.

    Args:
        reference: `POSE_KEYPOINT` of the reference picture; the first of several frames, the largest of several people.
        poses: `POSE_KEYPOINT` of the clip.
        size: (height, width) of the hints.
        options: See `Alignment`.
        image: (B, H, W, 3), the reference picture for the preview.

    Returns:
        One hint more than the clip has frames.

    Raises:
        ValueError: Key points are malformed, nobody is in them, or too little to align is seen.
    """
    canvas = _check_size(size)
    if image is not None:
        check_image(image, "image")
    wanted = _reference_points(from_json(reference, canvas)[0], canvas, is_needed=options.mode != "none")
    clip = from_json(poses, canvas)
    driving = _check_clip(clip)
    track = fill_gaps(to_track(clip, options.person, options.index), options.fill_gaps)
    _check_track(track, options)
    track = smooth(track, options.smooth, driving.width / driving.height)
    aligned = align(track, wanted, driving, canvas, options.mode)
    people = [unflatten(points, *canvas) for points in (wanted, *aligned)]
    drawing = Drawing(options.style)
    hints = in_chunks(people, lambda some: draw_pose(some, canvas, drawing))
    return Aligned(hints, to_json(people), _preview(people, canvas, image))


def _check_size(size: tuple[int, int]) -> Shape:
    if any(side < LATENT_SCALE or side % LATENT_SCALE for side in size):
        better = [max(side // LATENT_SCALE, 1) * LATENT_SCALE for side in size]
        raise ValueError(
            f"width {size[1]} and height {size[0]} must be multiples of {LATENT_SCALE}: use {better[1]} and {better[0]}."
        )
    return Shape(*size)


def _check_clip(clip: list[People]) -> Shape:
    sizes = sorted({(people.height, people.width) for people in clip})
    if len(sizes) > 1:
        names = " and ".join(f"{width}x{height}" for height, width in sizes[:2])
        raise ValueError(f"poses has frames of several sizes ({names}) and a clip has one: detect all frames at one size.")
    return Shape(*sizes[0])


def _check_track(track: Points, options: Alignment) -> None:
    present = (track[..., 2] > VISIBLE).any(axis=1)
    if not present.any():
        who = "person" if options.person == "largest" else f"person of the index {options.index}"
        raise ValueError(
            f"poses has no {who} in any of its {len(track)} frames: use a clip in which Pose Hint finds someone, or set "
            "person to largest."
        )
    if not present.all():
        log.warning("The person is not in %d of %d frames: their hints are black.", int((~present).sum()), len(track))


def _reference_points(people: People, canvas: Shape, is_needed: bool) -> Points:
    points = to_track([people])[0]
    if not (points[:, 2] > VISIBLE).any():
        if is_needed:
            raise ValueError(
                "reference has no person: use a picture in which Pose Hint finds someone, or set mode to none for poses that "
                "are in place already."
            )
        log.warning("The reference has no person: the first hint is black.")
    # The reference picture is cut in the centre to the clip's shape, and its pose with it.
    return fit_crop(Shape(people.height, people.width), canvas).move(points)


def _preview(people: list[People], canvas: Shape, image: Tensor | None) -> Tensor:
    """Poses over the picture, in lines that can be seen: those of `svd_v2` are thinner than a pixel on small canvases."""
    places = torch.linspace(0, len(people) - 1, min(len(people), SHOWN)).round().int().tolist()
    shown = draw_pose([people[place] for place in places], canvas, PREVIEW)
    if image is None:
        return shown
    below = fit_reference(image[:1], Size(canvas.height // LATENT_SCALE, canvas.width // LATENT_SCALE)).to(shown)
    return torch.where(shown.amax(dim=-1, keepdim=True) > 0, shown, below * SHADE)
