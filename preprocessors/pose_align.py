"""A clip's poses brought to the place and size of a reference's, so that they fit the picture that they animate."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from .pose_points import BODY, LEFT_HIP, NECK, RIGHT_HIP, VISIBLE, Points

Mode = Literal["official", "torso", "none"]
MODES: tuple[Mode, ...] = get_args(Mode)
FITTED = (0, 1, 2, 5, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17)
"""Body points of the official fit. Source: dvlab-research/ControlNeXt@ab4b3ac ControlNeXt-SVD-v2/dwpose/preprocess.py."""
MARGIN = 0.1
"""How far outside the canvas a limb may end in mode `torso`, as a part of each side."""
RIGHT_SHOULDER, LEFT_SHOULDER, NOSE = 2, 5, 0
RIGHT_EYE, LEFT_EYE, RIGHT_EAR, LEFT_EAR = 14, 15, 16, 17
PARENTS = (1, 1, 1, 2, 3, 1, 5, 6, 1, 8, 9, 1, 11, 12, 0, 0, 14, 15)
"""The point that each body point hangs on, towards the neck."""


class Shape(NamedTuple):
    """Of a picture, in pixels."""

    height: int
    width: int


class Fit(NamedTuple):
    """x' = scale_x * x + shift_x and y' alike, from fractions of one picture to fractions of another."""

    scale: NDArray[np.float64]
    """(2,), x and y."""
    shift: NDArray[np.float64]
    """(2,), x and y."""

    def move(self, points: Points) -> Points:
        """Points (..., 3) in the other picture; missing ones stay missing."""
        moved = points.copy()
        moved[..., :2] = np.where(_is_missing(points)[..., None], 0, points[..., :2] * self.scale + self.shift)
        return moved


def align(track: Points, reference: Points, driving: Shape, canvas: Shape, mode: Mode) -> Points:
    """Bring a person's poses to those of a reference.

    Args:
        track: (F, POINTS, 3), fractions of the driving picture; see `pose_track.to_track`.
        reference: (POINTS, 3), fractions of the canvas.
        driving: Of the pictures that the track is from.
        canvas: Of the result.
        mode: "official" is the reference implementation's fit, see `fit_official`. "torso" gives the person the reference's
            size and place by the torso and keeps the limbs on the canvas, see `fit_torso` and `keep_on_canvas`. "none" cuts
            the driving picture to the canvas' shape and leaves the person where it is.

    Returns:
        (F, POINTS, 3), fractions of the canvas.

    Raises:
        ValueError: Too few points are seen to fit.
    """
    if mode == "official":
        return fit_official(track, reference, driving, canvas).move(track)
    if mode == "torso":
        return keep_on_canvas(fit_torso(track, reference, driving, canvas).move(track))
    return fit_crop(driving, canvas).move(track)


def fit_official(track: Points, reference: Points, driving: Shape, canvas: Shape) -> Fit:
    """The published fit: heights by least squares over the whole clip, widths by the same scale in pixels.

    Args:
        track: (F, POINTS, 3).
        reference: (POINTS, 3).
        driving: Of the pictures that the track is from.
        canvas: Of the result.

    Returns:
        One transform for the clip.

    Raises:
        ValueError: Fewer than two of the points in question are seen, or they say nothing about the size.

    Source: dvlab-research/ControlNeXt@ab4b3ac ControlNeXt-SVD-v2/dwpose/preprocess.py. As there, points of the clip count
        whatever their score; those without any place do not.
    """
    used = [point for point in FITTED if reference[point, 2] > VISIBLE]
    ours, theirs = track[:, used], np.broadcast_to(reference[used], (len(track), len(used), 3))
    known = ~_is_missing(ours)
    (x, y), (x_wanted, y_wanted) = ours[known].T[:2], theirs[known].T[:2]
    if len(set(y.tolist())) < 2:
        raise ValueError(
            f"The reference shows {len(used)} of the {len(FITTED)} points of the official fit and the clip has {known.sum()} "
            "of them in all: two different heights are needed, use pictures with more of the body, or mode torso or none."
        )
    scale_y, shift_y = np.polyfit(y, y_wanted, 1)
    if scale_y <= 0:
        raise ValueError(
            "The official fit turns the clip upside down, as its poses are too unlike the reference's: use mode torso."
        )
    scale_x = scale_y / (driving.height / driving.width * (canvas.width / canvas.height))
    shift_x = np.mean(x_wanted - scale_x * x)
    return Fit(np.array([scale_x, scale_y]), np.array([shift_x, shift_y]))


def fit_torso(track: Points, reference: Points, driving: Shape, canvas: Shape) -> Fit:
    """Size and place by what both show of the torso: neck to hips, else the shoulders, else the head; see `_sizes`.

    Args:
        track: (F, POINTS, 3).
        reference: (POINTS, 3).
        driving: Of the pictures that the track is from.
        canvas: Of the result.

    Returns:
        One transform for the clip: the same scale in pixels for both directions, no rotation. The person's usual place
        over the clip becomes the reference's.

    Raises:
        ValueError: They show no such part in common.
    """
    ours, wanted = track * [driving.width, driving.height, 1], reference * [canvas.width, canvas.height, 1]
    for (near, far, _), size, usual in zip(_MEASURES, _sizes(wanted[None]), _sizes(ours), strict=True):
        if np.isfinite(size) and np.isfinite(usual):
            scale = size / usual
            place, places = _middle(wanted, (*near, *far)), _middle(ours, (*near, *far))
            unit = np.array([canvas.width, canvas.height])
            shift = (place - scale * np.nanmedian(places, axis=0)) / unit
            return Fit(scale * np.array([driving.width, driving.height]) / unit, shift)
    raise ValueError(
        "The reference and the clip show no common part of torso, shoulders or head: use pictures with more of the body, or "
        "mode none."
    )


def fit_crop(picture: Shape, canvas: Shape) -> Fit:
    """How points move when a picture is cut in the centre to the canvas' shape and resized to it."""
    scale = max(canvas.width / picture.width, canvas.height / picture.height)
    size = np.array([scale * picture.width / canvas.width, scale * picture.height / canvas.height])
    return Fit(size, (1 - size) / 2)


def keep_on_canvas(track: Points) -> Points:
    """Keep a person on the canvas.

    Args:
        track: (F, POINTS, 3), fractions of the canvas.

    Returns:
        A copy. Where the torso's way leaves the canvas it is shifted, and made shorter if it is too long. Then a limb that
        ends more than `MARGIN` outside is cut off there, and points that hang on its end are left out, so that no point is
        further out.
    """
    result = track.copy()
    seen = (track[..., 2] > VISIBLE) & ~_is_missing(track)
    torso = np.where(seen[..., None], track[..., :2], np.nan)[:, [NECK, RIGHT_SHOULDER, LEFT_SHOULDER, RIGHT_HIP, LEFT_HIP]]
    has_torso = np.any(np.isfinite(torso[..., 0]), axis=1)
    if has_torso.any():
        way = np.nanmean(torso[has_torso], axis=1)
        moved = _squeeze(way) - way
        frames = np.arange(len(track))
        shift = np.stack([np.interp(frames, frames[has_torso], moved[:, axis]) for axis in (0, 1)], axis=1)
        result[..., :2] += np.where(_is_missing(track)[..., None], 0, shift[:, None])
    for person in result:
        _cut_limbs(person)
    return result


def _squeeze(way: NDArray[np.float64]) -> NDArray[np.float64]:
    """A way (F, 2) that stays within the canvas: shifted, and shortened where it is longer than the canvas."""
    low, high = way.min(axis=0), way.max(axis=0)
    length = high - low
    factor = np.minimum(1, 1 / np.maximum(length, 1e-9))
    short = (way - low) * factor
    return short + np.clip(low, 0, 1 - length * factor)


def _cut_limbs(person: Points) -> None:
    """Cut the limbs of one person (POINTS, 3) at the margin, in place."""
    places, missing = person[:, :2].copy(), _is_missing(person)
    outside = ~missing & ((places < -MARGIN) | (places > 1 + MARGIN)).any(axis=1)
    for point in np.flatnonzero(outside):
        parent = PARENTS[point] if point < BODY and point != NECK else None
        if parent is None or missing[parent] or outside[parent]:
            person[point] = 0
        else:
            person[point, :2] = _border(places[parent], places[point])


def _border(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where the line between two places crosses the margin."""
    step = outside - inside
    limits = np.where(step > 0, 1 + MARGIN, -MARGIN)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(step == 0, np.inf, (limits - inside) / step)
    return inside + step * shares.min()


def _is_missing(points: Points) -> NDArray[np.bool_]:
    return (points == 0).all(axis=-1)


_MEASURES = (
    ((NECK,), (RIGHT_HIP, LEFT_HIP), 1.0),
    ((RIGHT_SHOULDER,), (LEFT_SHOULDER,), 0.72),
    ((NECK,), (NOSE,), 0.45),
    ((RIGHT_EAR,), (LEFT_EAR,), 0.3),
    ((RIGHT_EYE,), (LEFT_EYE,), 0.12),
)
"""Lengths that tell a person's size, the most reliable first: from the middle of some points to the middle of others, and how
long that is on most people who face the camera, over the torso."""
LEAST = 0.8
"""Of what a length should be after the others; below, it is seen from the side."""


def _sizes(track: Points) -> list[float]:
    """Each of `_MEASURES` on a person (F, POINTS, 3) in pixels; NaN where it is never seen.

    A shoulder that points at the camera makes the shoulders short, and dividing by them would make a giant. So a length that
    is too short for the longest of the others is taken from that one.

    Returns:
        One number for each of `_MEASURES`.
    """
    lengths = []
    for near, far, _ in _MEASURES:
        seen = _length(track, near, far)
        seen = seen[np.isfinite(seen) & (seen > 0)]
        lengths.append(float(np.percentile(seen, 75)) if len(seen) else float("nan"))
    shares = [share for _, _, share in _MEASURES]
    torso = max((length / share for length, share in zip(lengths, shares, strict=True) if np.isfinite(length)), default=0.0)
    return [share * torso if length < LEAST * share * torso else length for length, share in zip(lengths, shares, strict=True)]


def _middle(points: Points, which: tuple[int, ...]) -> NDArray[np.float64]:
    """(..., 2), the middle of some points; NaN where one of them is not seen."""
    parts = points[..., list(which), :]
    middle: NDArray[np.float64] = parts[..., :2].mean(axis=-2)
    worst: NDArray[np.float64] = parts[..., 2].min(axis=-1)
    return np.where(worst[..., None] > VISIBLE, middle, np.nan)


def _length(points: Points, near: tuple[int, ...], far: tuple[int, ...]) -> NDArray[np.float64]:
    distance: NDArray[np.float64] = np.linalg.norm(_middle(points, near) - _middle(points, far), axis=-1)
    return distance
