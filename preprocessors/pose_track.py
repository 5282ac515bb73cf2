"""One person through a clip: chosen, followed, with short gaps filled and jitter taken out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .pose_points import BODY, FACE, FEET, HAND, LEFT_HIP, NECK, RIGHT_HIP, VISIBLE, People, Points, to_people

Choice = Literal["largest", "index"]
CHOICES: tuple[Choice, ...] = get_args(Choice)
POINTS = BODY + 2 * HAND + FACE + FEET
"""Of one person: body, left and right hand, face, feet, one behind the other."""
LEAST_OVERLAP = 0.05
"""Of two boxes, as a part of their union, to be the same person in the next frame."""
GROWTH, MOST_GROWTH = 0.25, 4
"""How much further, as a part of its size, a person may be away for each frame without it, and for how many frames."""
STEADY = 0.3
"""How much of a person's last movement goes into the one that is expected."""
LOST = 15
"""Frames without the person after which the clip goes on with whoever is largest."""
SLOWEST = 0.02
"""Cutoff of the filter at its strongest for points at rest, in cycles per frame."""
SPEED = 1.0
"""What a speed of one torso per frame adds to the cutoff: fast points are followed closely."""


def to_track(clip: Sequence[People], choice: Choice = "largest", index: int = 0) -> Points:
    """Follow one person through a clip.

    Args:
        clip: The people of each frame.
        choice: "largest" in the first frame with anyone, or the one of a number in the first frame with so many.
        index: That number, from 0, in the order of the frame.

    Returns:
        (F, POINTS, 3), x and y as fractions of each frame's picture. Zeros where the person is not there.
    """
    track = np.zeros((len(clip), POINTS, 3))
    last: NDArray[np.float64] | None = None
    speed, lost = np.zeros(4), 0
    for frame, people in enumerate(clip):
        boxes = [_box(body) for body in people.bodies]
        found = _choose(boxes, choice, index) if last is None else _follow(boxes, last + speed * (lost + 1), lost)
        if found is None:
            lost += 1
            continue
        if last is not None:
            # Where the person goes on to, so that people who cross are not exchanged; the size counts for nothing.
            moved = (boxes[found] - last).reshape(2, 2).mean(axis=0) / (lost + 1)
            speed = 0.0 * speed if lost >= LOST else speed + STEADY * (np.tile(moved, 2) - speed)
        last, lost = boxes[found], 0
        track[frame] = flatten(people, found)
    return track


def flatten(people: People, person: int) -> Points:
    """(POINTS, 3), all parts of one person."""
    parts = (people.bodies, people.hands, people.faces, people.feet)
    return np.concatenate([part[person].reshape(-1, 3) for part in parts])


def unflatten(points: Points, height: int, width: int) -> People:
    """The person of one frame of a track as `People`; nobody where no point is left."""
    rows = points[None] if (points[:, 2] > 0).any() else points[None][:0]
    bodies, hands, faces, feet = np.split(rows, np.cumsum([BODY, 2 * HAND, FACE]), axis=1)
    return to_people(bodies, height, width, hands.reshape(-1, 2, HAND, 3), faces, feet)


def fill_gaps(track: Points, longest: int) -> Points:
    """Interpolate points that are missing for a few frames.

    Args:
        track: (F, POINTS, 3).
        longest: Gaps of up to this many frames between two frames where the point is seen are filled; 0 fills none.

    Returns:
        A copy. A filled point gets the smaller of its neighbours' scores; longer gaps, and those at the ends, stay.
    """
    filled, seen = track.copy(), track[..., 2] > VISIBLE
    for point in np.flatnonzero(seen.any(axis=0) & ~seen.all(axis=0)) if longest > 0 else ():
        frames = np.flatnonzero(seen[:, point])
        for before, after in pairwise(frames):
            if 1 < after - before <= longest + 1:
                share = (np.arange(before + 1, after) - before)[:, None] / (after - before)
                ends = track[before, point], track[after, point]
                filled[before + 1 : after, point, :2] = (1 - share) * ends[0][:2] + share * ends[1][:2]
                filled[before + 1 : after, point, 2] = min(ends[0][2], ends[1][2])
    return filled


def smooth(track: Points, amount: float, aspect: float) -> Points:
    """Take jitter out with a one-euro filter (Casiez et al., CHI 2012), forwards and backwards so that nothing lags.

    Args:
        track: (F, POINTS, 3).
        amount: 0 changes nothing, 1 is the strongest.
        aspect: Width over height of the pictures.

    Returns:
        A copy; scores, and points that are not seen, stay.
    """
    if amount <= 0 or len(track) < 2:
        return track.copy()
    seen, unit = track[..., 2] > VISIBLE, np.array([aspect, 1.0])
    places, torso = track[..., :2] * unit, _torso(track, aspect)
    both = (_one_euro(places, seen, amount, torso) + _one_euro(places[::-1], seen[::-1], amount, torso)[::-1]) / 2
    result = track.copy()
    result[..., :2] = np.where(seen[..., None], both / unit, track[..., :2])
    return result


def _one_euro(places: Points, seen: NDArray[np.bool_], amount: float, torso: float) -> Points:
    """The filter itself: a low pass whose cutoff rises with the speed. It begins anew where a point comes back."""
    slowest = SLOWEST / amount**2
    result, speed = places.copy(), np.zeros(places.shape[1:])
    for frame in range(1, len(places)):
        is_new = ~seen[frame - 1][:, None]
        moved = np.where(is_new, 0, places[frame] - places[frame - 1])
        speed = np.where(is_new, 0, speed + _share(1.0) * (moved - speed))
        cutoff = slowest + SPEED * np.linalg.norm(speed, axis=-1, keepdims=True) / torso
        step = _share(cutoff) * (places[frame] - result[frame - 1])
        result[frame] = np.where(is_new, places[frame], result[frame - 1] + step)
    return result


def _share(cutoff: Any) -> Any:
    """How much of a new value an exponential low pass takes at one frame a step."""
    return 1 / (1 + 1 / (2 * np.pi * cutoff))


def _torso(track: Points, aspect: float) -> float:
    """Usual distance from neck to hips, in picture heights; a quarter where it is never seen."""
    parts = track[:, [NECK, RIGHT_HIP, LEFT_HIP]]
    whole = parts[(parts[..., 2] > VISIBLE).all(axis=1)][..., :2] * [aspect, 1.0]
    lengths = np.linalg.norm(whole[:, 0] - whole[:, 1:].mean(axis=1), axis=-1)
    return max(float(np.median(lengths)), 1e-3) if len(lengths) else 0.25


def _box(body: Points) -> NDArray[np.float64]:
    """(left, top, right, bottom) of the points that are seen; an empty box where there are fewer than two."""
    seen = body[body[:, 2] > VISIBLE, :2]
    return np.concatenate([seen.min(axis=0), seen.max(axis=0)]) if len(seen) > 1 else np.zeros(4)


def _area(box: NDArray[np.float64]) -> float:
    return float(max(box[2] - box[0], 0) * max(box[3] - box[1], 0))


def _choose(boxes: list[NDArray[np.float64]], choice: Choice, index: int) -> int | None:
    if choice == "index":
        return index if index < len(boxes) else None
    real = [person for person, box in enumerate(boxes) if box.any()]
    return max(real, key=lambda person: _area(boxes[person]), default=None)


def _follow(boxes: list[NDArray[np.float64]], expected: NDArray[np.float64], lost: int) -> int | None:
    """The person whose box shares most with the expected one, which grows while the person is lost."""
    margin = GROWTH * min(lost, MOST_GROWTH) * (expected[2:] - expected[:2])
    overlaps = [_overlap(box, expected + np.concatenate([-margin, margin])) for box in boxes]
    best = max(range(len(boxes)), key=overlaps.__getitem__, default=None)
    if best is not None and overlaps[best] >= LEAST_OVERLAP:
        return best
    return _choose(boxes, "largest", 0) if lost >= LOST else None


def _overlap(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Shared area over the area of both."""
    shared = _area(np.concatenate([np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])]))
    total = _area(a) + _area(b) - shared
    return shared / total if total > 0 else 0.0
