"""People of the golden alignment, and simple ones, for tests of pose video."""

from __future__ import annotations

import numpy as np
from nextcontrol.preprocessors.pose_points import People, Points, to_people
from seeded import seeded_tensor

CANVAS, DRIVING = (512, 288), (360, 640)
"""(height, width) of the golden reference and of the golden clip."""
STANDING = np.array([
    (0.50, 0.15), (0.50, 0.25), (0.42, 0.25), (0.38, 0.38), (0.36, 0.50), (0.58, 0.25), (0.62, 0.38), (0.64, 0.50),
    (0.45, 0.52), (0.45, 0.70), (0.45, 0.88), (0.55, 0.52), (0.55, 0.70), (0.55, 0.88), (0.48, 0.13), (0.52, 0.13),
    (0.46, 0.14), (0.54, 0.14),
])  # fmt: skip
"""Body points of someone who stands in the middle of a square picture, fractions."""


def kp(name: str, count: int) -> Points:
    """(count, 2) of the golden files."""
    return np.clip(0.18 * seeded_tensor(name, [count, 2]).numpy().astype(np.float64) + 0.5, 0.03, 0.97)


def sc(name: str, count: int) -> Points:
    """(count,) scores of the golden files."""
    return np.clip(0.5 + 0.25 * seeded_tensor(name, [count]).numpy().astype(np.float64), 0, 1)


def scored(places: Points, scores: Points | None = None) -> Points:
    """(n, 3)."""
    scores = np.ones(len(places)) if scores is None else scores
    return np.concatenate([places, scores[:, None]], axis=1)


def golden_reference() -> People:
    """The reference of `pose_alignment.npz`."""
    body = scored(kp("body", 18) * [0.9, 0.8] + [0.06, 0.12], sc("ref_score", 18))
    return to_people(body[None], *CANVAS)


def golden_clip() -> list[People]:
    """The four frames of `pose_alignment.npz`."""
    clip = []
    for i in range(4):
        moved = kp("body", 18) + 0.01 * seeded_tensor(f"drive{i}", [18, 2]).numpy().astype(np.float64)
        hand, face = scored(kp(f"dh{i}", 21)), scored(kp(f"df{i}", 68))
        body = scored(moved, sc(f"drive{i}_score", 18))
        clip.append(to_people(body[None], *DRIVING, np.stack([hand, hand])[None], face[None]))
    return clip


def standing(*people: tuple[float, float, float], size: tuple[int, int] = (400, 400), hidden: tuple[int, ...] = ()) -> People:
    """People who stand at (x, y), a number of times as large as `STANDING`; `hidden` points are missing."""
    bodies = np.zeros((len(people), 18, 3))
    for body, (x, y, scale) in zip(bodies, people, strict=True):
        body[:] = scored((STANDING - 0.5) * scale * [size[0] / size[1], 1] + [x, y])
        body[list(hidden)] = 0
    return to_people(bodies, *size)
