"""Key points in OpenPose's JSON shape, which ComfyUI's nodes exchange as `POSE_KEYPOINT`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..models.foreign import shown
from .pose_draw_body25 import MID_HIP
from .pose_points import BODY, COCO, FACE, FEET, HAND, VISIBLE, People, Points, nobody, to_openpose, to_people

BODY_25 = 25
LEFT_EYE, RIGHT_EYE = 15, 14
LARGEST_FRACTION = 2.0
"""Coordinates up to this are fractions of the canvas, larger ones pixels. Both occur: core and the newer detectors of
comfyui_controlnet_aux write pixels, older ones fractions."""
HANDS = ("hand_left_keypoints_2d", "hand_right_keypoints_2d")


def to_json(clip: Sequence[People], is_certain: bool = False) -> list[dict[str, Any]]:
    """Write the people of every frame.

    Args:
        clip: The people of each frame.
        is_certain: Write the score 1 for every point over `VISIBLE` and leave the others out.

    Returns:
        One dictionary for each frame, in pixels of its canvas. A missing point is three zeros. Faces have 70 points as
        OpenPose's own do, the eyes of the body at the end.
    """
    return [_frame_to_json(people, is_certain) for people in clip]


def from_json(keypoints: Any, canvas: tuple[int, int] | None = None) -> list[People]:
    """Read the people of every frame.

    Args:
        keypoints: A list with one dictionary for each frame, or one alone. Points may be in pixels or fractions; bodies may
            have 17 (COCO), 18 or 25 (BODY_25) points, faces 68 or 70; parts may be missing, None or empty.
        canvas: (height, width) where the frames do not say theirs.

    Returns:
        One `People` for each frame.

    Raises:
        ValueError: It has another shape; the message says where.
    """
    frames = [keypoints] if isinstance(keypoints, Mapping) else keypoints
    if not isinstance(frames, Sequence) or isinstance(frames, str) or not frames:
        raise ValueError(
            f"keypoints is {_name(keypoints)} and a list of one dictionary for each frame is expected: use a POSE_KEYPOINT."
        )
    sizes = [_canvas_of(frame, place, canvas) for place, frame in enumerate(frames)]
    raw = [
        [_Person(person, f"{place}.{i}") for i, person in enumerate(frame["people"] or ())]
        for place, frame in enumerate(frames)
    ]
    parts = [part for people in raw for person in people for part in person.parts()]
    largest = max((float(np.abs(part[..., :2]).max(initial=0)) for part in parts), default=0.0)
    return [_to_people(people, size, largest > LARGEST_FRACTION) for people, size in zip(raw, sizes, strict=True)]


class _Person:
    """One person's parts as they are in the JSON: any unit, missing points zeros."""

    def __init__(self, person: Any, place: str) -> None:
        if not isinstance(person, Mapping):
            raise ValueError(f"keypoints' person {place} is {_name(person)}: a dictionary is expected, see OpenPose's JSON.")
        self.place = place
        body = self._read(person, "pose_keypoints_2d", (COCO, BODY, BODY_25))
        self.feet = self._read(person, "foot_keypoints_2d", (FEET,))
        if len(body) == BODY_25:
            body, self.feet = np.delete(body[:-FEET], MID_HIP, axis=0), body[-FEET:]
        self.body = to_openpose(body[None])[0] if len(body) == COCO else body
        self.face = self._read(person, "face_keypoints_2d", (FACE, FACE + 2))[:FACE]
        self.hands = np.stack([self._read(person, side, (HAND,)) for side in HANDS])

    def parts(self) -> tuple[Points, ...]:
        return self.body, self.feet, self.face, self.hands

    def _read(self, person: Mapping[str, Any], key: str, counts: tuple[int, ...]) -> Points:
        """(n, 3) with n one of `counts`; if there is nothing, zeros for a body of ours or the smallest of another part."""
        try:
            points = np.asarray([] if person.get(key) is None else person[key], dtype=np.float64).reshape(-1, 3)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ValueError(
                f"keypoints' {key} of person {self.place} is no list of x, y, score triples: repair its node."
            ) from error
        if len(points) == 0:
            return np.zeros((BODY if BODY in counts else counts[0], 3))
        if len(points) not in counts:
            expected = " or ".join(str(count) for count in counts)
            raise ValueError(f"keypoints' {key} of person {self.place} has {len(points)} points and {expected} are expected.")
        if not np.isfinite(points).all():
            raise ValueError(f"keypoints' {key} of person {self.place} has NaN or infinite values: repair its node.")
        # Packs mark a missing point by its score, by the corner (0, 0) or, as core does, by (-1, -1).
        xy = points[:, :2]
        is_missing = (points[:, 2] <= 0) | (xy == 0).all(1) | (xy == -1).all(1)
        return np.where(is_missing[:, None], 0, np.concatenate([xy, points[:, 2:].clip(0, 1)], axis=1))


def _to_people(people: list[_Person], size: tuple[int, int], is_pixels: bool) -> People:
    if not people:
        return nobody(*size)
    unit = np.array([size[1], size[0], 1.0] if is_pixels else [1.0, 1.0, 1.0])
    bodies, feet, faces, hands = (np.stack(parts) / unit for parts in zip(*(person.parts() for person in people), strict=True))
    return to_people(bodies, *size, hands, faces, feet)


def _canvas_of(frame: Any, place: int, canvas: tuple[int, int] | None) -> tuple[int, int]:
    if not isinstance(frame, Mapping) or not isinstance(frame.get("people", 0), Sequence | None):
        raise ValueError(f"keypoints' frame {place} has no list 'people': connect a POSE_KEYPOINT of persons.")
    sides: list[Any] = [frame.get("canvas_height"), frame.get("canvas_width")]
    if None in sides:
        if canvas is None:
            raise ValueError(f"keypoints' frame {place} has no 'canvas_height' and 'canvas_width': give height and width.")
        return canvas
    if not all(isinstance(side, int | float) and 1 <= side < 1e6 for side in sides):
        found = f"{shown(sides[1], 40)}x{shown(sides[0], 40)}"
        raise ValueError(f"keypoints' frame {place} has a canvas of {found}: two positive numbers are expected.")
    return int(sides[0]), int(sides[1])


def _frame_to_json(people: People, is_certain: bool) -> dict[str, Any]:
    unit = np.array([people.width, people.height, 1.0])

    def flat(points: Points) -> list[float]:
        seen = points[..., 2:] > (VISIBLE if is_certain else 0)
        scored = np.concatenate([points[..., :2], np.where(seen, 1, 0) if is_certain else points[..., 2:]], axis=-1)
        return [float(number) for number in np.where(seen, scored * unit, 0).ravel()]

    has_face = (people.faces[..., 2:] > 0).any(axis=1, keepdims=True)
    faces = np.concatenate([people.faces, np.where(has_face, people.bodies[:, [RIGHT_EYE, LEFT_EYE]], 0)], axis=1)
    persons = [
        {
            "pose_keypoints_2d": flat(people.bodies[i]),
            "foot_keypoints_2d": flat(people.feet[i]),
            "face_keypoints_2d": flat(faces[i]),
            "hand_left_keypoints_2d": flat(people.hands[i, 0]),
            "hand_right_keypoints_2d": flat(people.hands[i, 1]),
        }
        for i in range(len(people))
    ]
    return {"people": persons, "canvas_height": people.height, "canvas_width": people.width}


def _name(value: Any) -> str:
    return "an empty list" if isinstance(value, list | tuple) and not value else f"a {type(value).__name__}"
