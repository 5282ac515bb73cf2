"""`POSE_KEYPOINT` as other nodes write it, and as we do."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
from nextcontrol.preprocessors.pose_json import from_json, to_json
from nextcontrol.preprocessors.pose_points import People, from_coco, nobody, to_people

HEIGHT, WIDTH = 480, 640
PARTS = ("bodies", "hands", "faces", "feet")


def some_people(count: int = 2) -> People:
    rng = np.random.default_rng(0)
    bodies, hands, faces, feet = (rng.uniform(0.1, 0.9, (count, *shape, 3)) for shape in ((18,), (2, 21), (68,), (6,)))
    bodies[0, 5] = 0
    return to_people(bodies, HEIGHT, WIDTH, hands, faces, feet)


def flat(numbers: np.ndarray) -> list[float]:
    return [float(number) for number in numbers.ravel()]


def frame(body: object, size: tuple[int, int] | None = (HEIGHT, WIDTH), **parts: object) -> dict:
    canvas = {} if size is None else {"canvas_height": size[0], "canvas_width": size[1]}
    return {"people": [{"pose_keypoints_2d": body, **parts}], **canvas}


def assert_same(found: People, expected: People) -> None:
    assert (found.height, found.width) == (expected.height, expected.width)
    for name in PARTS:
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-12, err_msg=name)


def test_people_survive_the_way_through_json():
    clip = [some_people(), nobody(HEIGHT, WIDTH), some_people(1)]
    text = json.dumps(to_json(clip))
    for found, expected in zip(from_json(json.loads(text)), clip, strict=True):
        assert_same(found, expected)


def test_we_write_pixels_in_the_shape_that_core_writes():
    (written,) = to_json([some_people(1)])
    assert (written["canvas_height"], written["canvas_width"]) == (HEIGHT, WIDTH)
    (person,) = written["people"]
    assert {key: len(value) for key, value in person.items()} == {
        "pose_keypoints_2d": 54, "foot_keypoints_2d": 18, "face_keypoints_2d": 210, "hand_left_keypoints_2d": 63,
        "hand_right_keypoints_2d": 63,
    }  # fmt: skip
    body = some_people(1).bodies[0]
    assert person["pose_keypoints_2d"][:3] == pytest.approx([body[0, 0] * WIDTH, body[0, 1] * HEIGHT, body[0, 2]])
    assert person["pose_keypoints_2d"][15:18] == [0, 0, 0]
    assert person["face_keypoints_2d"][-6:] == pytest.approx([*person["pose_keypoints_2d"][42:48]]), "the eyes"
    assert all(type(number) is float for number in person["pose_keypoints_2d"])


def test_certain_scores_are_ones_and_unseen_points_zeros():
    people = some_people(1)
    people.bodies[0, 0, 2], people.bodies[0, 1, 2] = 0.31, 0.29
    numbers = np.reshape(to_json([people], is_certain=True)[0]["people"][0]["pose_keypoints_2d"], (18, 3))
    assert set(numbers[:, 2]) == {0.0, 1.0}
    assert numbers[0, 2] == 1
    assert not numbers[1].any()


def test_a_part_that_nobody_saw_is_all_zeros():
    (person,) = to_json([to_people(some_people(1).bodies, HEIGHT, WIDTH)])[0]["people"]
    assert not any(person["face_keypoints_2d"])
    assert not any(person["hand_left_keypoints_2d"])


def test_fractions_and_pixels_are_told_apart():
    body = some_people(1).bodies[0]
    in_pixels = body * (WIDTH, HEIGHT, 1)
    found = [from_json([frame(flat(numbers))])[0] for numbers in (body, in_pixels)]
    assert_same(found[0], found[1])
    np.testing.assert_allclose(found[0].bodies[0], body)


def test_fractions_may_lie_a_little_outside_the_picture():
    body = some_people(1).bodies[0]
    body[10, :2] = 0.5, 1.4
    np.testing.assert_allclose(from_json([frame(flat(body))])[0].bodies[0], body)


def test_one_frame_decides_the_unit_for_the_whole_clip():
    """Someone in the corner of a picture in pixels would be taken for fractions otherwise."""
    corner = np.zeros((18, 3))
    corner[0] = 1, 1.5, 1
    clip = from_json([frame(flat(corner)), frame(flat(some_people(1).bodies[0] * (WIDTH, HEIGHT, 1)))])
    np.testing.assert_allclose(clip[0].bodies[0, 0], (1 / WIDTH, 1.5 / HEIGHT, 1))


def test_25_points_become_18_and_feet():
    numbers = np.arange(75, dtype=float).reshape(25, 3) / 75
    numbers[:, 2] = 0.5
    (people,) = from_json([frame(flat(numbers))])
    order = [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18]
    np.testing.assert_allclose(people.bodies[0], np.where(numbers[order, :2].any(1, keepdims=True), numbers[order], 0))
    np.testing.assert_allclose(people.feet[0], numbers[19:])


def test_17_points_of_coco_get_a_neck():
    numbers = np.zeros((17, 3))
    numbers[5], numbers[6] = (0.6, 0.4, 0.9), (0.4, 0.2, 0.5)
    (people,) = from_json([frame(flat(numbers))])
    np.testing.assert_allclose(people.bodies[0, 1], (0.5, 0.3, 1))


def test_coco_is_reordered_as_the_reference_does():
    """The reference's two index lists, with the neck appended as point 17."""
    mmpose, openpose = (
        [17, 6, 8, 10, 7, 9, 12, 14, 16, 13, 15, 2, 1, 4, 3],
        [1, 2, 3, 4, 6, 7, 8, 9, 10, 12, 13, 14, 15, 16, 17],
    )
    coco = np.random.default_rng(1).uniform(0.4, 1, (2, 17, 3))
    neck = (coco[:, 5] + coco[:, 6]) / 2
    neck[:, 2] = 1
    expected = np.concatenate([coco, neck[:, None]], axis=1)
    expected[:, openpose] = expected[:, mmpose].copy()
    np.testing.assert_allclose(from_coco(coco, 8, 8).bodies, expected)


@pytest.mark.parametrize(("left", "right", "score"), [(0.31, 0.31, 1), (0.3, 0.9, 0), (0.9, 0.1, 0), (0, 0, 0)])
def test_a_neck_is_as_sure_as_both_shoulders(left, right, score):
    coco = np.zeros((1, 17, 3))
    coco[0, 5], coco[0, 6] = (0.6, 0.4, left), (0.4, 0.4, right)
    assert from_coco(coco, 8, 8).bodies[0, 1].tolist() == pytest.approx([0.5, 0.4, score])


def test_whole_body_points_are_split_into_parts():
    whole = np.random.default_rng(2).uniform(0.4, 1, (1, 133, 3))
    people = from_coco(whole, 8, 8)
    np.testing.assert_array_equal(people.feet, whole[:, 17:23])
    np.testing.assert_array_equal(people.faces, whole[:, 23:91])
    np.testing.assert_array_equal(people.hands[:, 0], whole[:, 91:112])
    np.testing.assert_array_equal(people.hands[:, 1], whole[:, 112:133])


def test_another_number_of_points_is_refused():
    with pytest.raises(ValueError, match=r"finds 21 points and 17 \(COCO\) or 133"):
        from_coco(np.zeros((1, 21, 3)), 8, 8)


@pytest.mark.parametrize("nothing", [None, [], [0.0] * 63])
def test_missing_hands_are_missing(nothing):
    body = flat(some_people(1).bodies[0])
    (people,) = from_json(
        [frame(body, hand_left_keypoints_2d=nothing, hand_right_keypoints_2d=nothing, face_keypoints_2d=None)]
    )
    assert not people.hands.any()
    assert not people.faces.any()
    assert people.bodies.any()


def test_points_that_others_mark_as_missing_are_missing():
    body = np.full((18, 3), 0.5)
    body[0], body[1], body[2], body[3] = (0.2, 0.2, 0), (0, 0, 1), (-1, -1, 0.9), (0.2, 0.2, -1)
    (people,) = from_json([frame(flat(body))])
    assert not people.bodies[0, :4].any()
    assert people.bodies[0, 4:].all()


def test_frames_without_people_and_a_single_frame_are_fine():
    empty = {"people": [], "canvas_height": HEIGHT, "canvas_width": WIDTH}
    assert [len(people) for people in from_json([empty, {**empty, "people": None}])] == [0, 0]
    (people,) = from_json(empty)
    assert (people.height, people.width) == (HEIGHT, WIDTH)


def test_nested_triples_numpy_and_70_face_points_are_read():
    person = some_people(1)
    face = np.concatenate([person.faces[0], np.ones((2, 3))])
    written = frame(person.bodies[0].tolist(), face_keypoints_2d=face)
    (people,) = from_json([written])
    np.testing.assert_allclose(people.bodies, person.bodies)
    np.testing.assert_allclose(people.faces, person.faces)


def test_a_canvas_is_asked_for_where_the_frames_have_none():
    body = flat(some_people(1).bodies[0] * (WIDTH, HEIGHT, 1))
    with pytest.raises(ValueError, match="frame 0 has no 'canvas_height' and 'canvas_width': give height and width"):
        from_json([frame(body, None)])
    (people,) = from_json([frame(body, None)], (HEIGHT, WIDTH))
    np.testing.assert_allclose(people.bodies, some_people(1).bodies)


def test_reading_leaves_the_json_as_it_was():
    given = to_json([some_people()])
    kept = copy.deepcopy(given)
    from_json(given)
    assert given == kept


GOOD = [0.5] * 54


@pytest.mark.parametrize(
    ("keypoints", "message"),
    [
        (None, "keypoints is a NoneType and a list"),
        ([], "keypoints is an empty list and a list"),
        ("[]", "keypoints is a str and a list"),
        (3, "keypoints is a int and a list"),
        ([None], "frame 0 has no list 'people'"),
        ([frame(GOOD), {"animals": []}], "frame 1 has no list 'people'"),
        ([{"people": 3, "canvas_height": 8, "canvas_width": 8}], "frame 0 has no list 'people'"),
        ([{"people": {"a": 1}, "canvas_height": 8, "canvas_width": 8}], "frame 0 has no list 'people'"),
        ([frame(GOOD, (0, 8))], "frame 0 has a canvas of 8x0"),
        ([frame(GOOD, ("8", 8))], "frame 0 has a canvas of 8x8: two positive numbers"),
        ([{"people": [3], "canvas_height": 8, "canvas_width": 8}], r"person 0\.0 is a int"),
        ([frame([0.5] * 55)], r"pose_keypoints_2d of person 0\.0 is no list of x, y, score triples"),
        ([frame([None] * 54)], r"NaN"),
        ([frame(["a"] * 54)], "no list of x, y, score triples"),
        ([frame(5)], "no list of x, y, score triples"),
        ([frame({"x": 1})], "no list of x, y, score triples"),
        ([frame([0.5] * 57)], "has 19 points and 17 or 18 or 25 are expected"),
        ([frame(GOOD), frame(GOOD, face_keypoints_2d=GOOD)], r"face_keypoints_2d of person 1\.0 has 18 points and 68 or 70"),
        ([frame(GOOD, hand_left_keypoints_2d=GOOD)], "hand_left_keypoints_2d of person 0.0 has 18 points and 21"),
        ([frame([math.nan, *GOOD[1:]])], "has NaN or infinite values"),
        ([frame([math.inf, *GOOD[1:]])], "has NaN or infinite values"),
    ],
)  # fmt: skip
def test_malformed_json_gets_one_sentence(keypoints, message):
    with pytest.raises(ValueError, match=message) as error:
        from_json(keypoints)
    assert "\n" not in str(error.value)


def test_real_key_points_lie_where_the_photograph_has_them():
    """Her nose is near the middle of the upper half, her right shoulder left of it, the hips are not in the picture."""
    file = Path(__file__).resolve().parents[2] / "demo" / "astronaut_pose.json"
    (people,) = from_json(json.loads(file.read_text(encoding="utf-8")))
    assert (people.height, people.width, len(people)) == (512, 512, 1)
    nose, shoulder, hip = people.bodies[0, [0, 2, 8]]
    np.testing.assert_allclose(nose[:2] * 512, (222, 128), atol=10)
    np.testing.assert_allclose(shoulder[:2] * 512, (112, 240), atol=10)
    assert not hip.any()
    assert (people.faces[0, :, 2] == 1).all()
    jaw, lips = people.faces[0, :17], people.faces[0, 48:]
    assert jaw[:, 0].min() < lips[:, 0].min() < lips[:, 0].max() < jaw[:, 0].max()
