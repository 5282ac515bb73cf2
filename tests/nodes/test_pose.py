"""Pose Hint and Draw Pose Hint as the host runs them."""

from __future__ import annotations

import json
import logging

import comfy.model_management
import numpy as np
import pytest
import torch
from hint_pictures import ASTRONAUT
from nextcontrol.preprocessors.pose_draw import Drawing, draw_pose
from nextcontrol.preprocessors.pose_json import from_json, to_json
from nextcontrol.preprocessors.pose_points import nobody, to_people
from tiny_annotators import save_segformer, save_vitpose, save_yolos

FLAGS = {"body": True, "hands": True, "face": True}


@pytest.fixture(scope="module")
def folder(base_folder):
    place = base_folder / "models" / "annotators"
    with torch.inference_mode():
        save_yolos(place / "pose-people", names=dict.fromkeys(range(4), "person"))
        save_yolos(place / "pose-cars", names=dict.fromkeys(range(4), "car"))
        save_vitpose(place / "pose-17")
        save_vitpose(place / "pose-133", points=133)
        save_vitpose(place / "pose-21", points=21)
        save_segformer(place / "pose-no")
    return place


@pytest.fixture
def detect(pack_nodes, folder):
    def run(image=ASTRONAUT[:, ::4, ::4], resolution=128, detector="pose-people", model="pose-133", style="dwpose", **options):
        given = {"person_threshold": 0.05, "point_threshold": 0.01, **FLAGS, **options}
        return pack_nodes["NextControlPose"].execute(image, resolution, detector, model, style, **given)

    return run


@pytest.fixture
def draw(pack_nodes):
    def run(keypoints, resolution=128, style="openpose", **options):
        return pack_nodes["NextControlDrawPose"].execute(keypoints, resolution, style, **{**FLAGS, **options})

    return run


def a_person(height: int = 96, width: int = 128):
    points = np.random.default_rng(0).uniform(0.1, 0.9, (1, 18, 3))
    points[..., 2] = 0.9
    return to_people(points, height, width)


@pytest.mark.parametrize("model", ["pose-17", "pose-133"])
def test_people_are_found_drawn_and_given_as_json(detect, model):
    frames = torch.cat([ASTRONAUT, ASTRONAUT.flip(2)])[:, ::4, ::3]
    hints, keypoints = detect(frames, model=model).result
    assert hints.shape == (2, 128, 192, 3)
    assert hints.max() > 0.5
    assert [(frame["canvas_height"], frame["canvas_width"]) for frame in keypoints] == [(128, 171)] * 2
    assert all(frame["people"] for frame in keypoints)
    assert any(keypoints[0]["people"][0]["face_keypoints_2d"]) == (model == "pose-133")
    assert json.loads(json.dumps(keypoints)) == keypoints


def test_drawing_the_keypoints_gives_the_same_hint(detect, draw):
    hints, keypoints = detect(style="svd_v2").result
    (drawn,) = draw(keypoints, style="svd_v2", point_threshold=0.01).result
    assert hints.max() > 0
    torch.testing.assert_close(drawn, hints, atol=3 / 255, rtol=0)


def test_a_long_clip_goes_in_pieces_and_every_frame_has_its_people(detect):
    frames = torch.cat([ASTRONAUT[:, ::8, ::8].roll(i, 2) for i in range(11)])
    hints, keypoints = detect(frames, 64).result
    assert (len(hints), len(keypoints)) == (11, 11)
    hint, (frame,) = detect(frames[7:8], 64).result
    torch.testing.assert_close(hints[7:8], hint, atol=0.02, rtol=0)
    found, alone = (np.array(of["people"][0]["pose_keypoints_2d"]) for of in (keypoints[7], frame))
    np.testing.assert_allclose(found, alone, atol=0.05)


def test_without_a_detector_the_whole_picture_is_one_person(detect):
    _, keypoints = detect(detector="none").result
    assert [len(frame["people"]) for frame in keypoints] == [1]


def test_nobody_is_black_with_a_warning_and_no_people(detect, caplog):
    with caplog.at_level(logging.WARNING, "nextcontrol"):
        hints, keypoints = detect(person_threshold=1.0).result
    assert hints.max() == 0
    assert keypoints == [{"people": [], "canvas_height": 128, "canvas_width": 128}]
    assert "No person in 1 of 1 pictures" in caplog.text


def test_the_most_people_and_plain_scores(detect):
    _, (everyone,) = detect().result
    assert len(everyone["people"]) > 1
    _, (one,) = detect(max_people=1, scores="ones").result
    assert len(one["people"]) == 1
    scores = set(np.reshape(one["people"][0]["pose_keypoints_2d"], (18, 3))[:, 2])
    assert scores <= {0.0, 1.0}


@pytest.mark.parametrize(
    ("detector", "model", "message"),
    [
        ("pose-people", "nothing", "models/annotators/nothing is not there: .*hf download usyd-community/vitpose-base-simple"),
        ("nothing", "pose-17", "models/annotators/nothing is not there: .*hf download PekingU/rtdetr"),
        ("rtdetr_r50vd_coco_o365", "pose-17", "fetch it with 'hf download PekingU/rtdetr_r50vd_coco_o365"),
        ("pose-17", "pose-17", "a network for pose estimation and one for object detection is needed"),
        ("pose-people", "pose-no", "a network for semantic segmentation and one for pose estimation is needed"),
    ],
)
def test_a_network_that_cannot_be_used_is_named_before_anything_runs(pack_nodes, folder, detect, detector, model, message):
    said = pack_nodes["NextControlPose"].validate_inputs(detector, model)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        detect(detector=detector, model=model)
    assert said == str(error.value)


def test_networks_that_can_be_used_pass(pack_nodes, folder):
    assert pack_nodes["NextControlPose"].validate_inputs("pose-people", "pose-17") is True
    assert pack_nodes["NextControlPose"].validate_inputs("none", "pose-17") is True


def test_a_changed_folder_is_read_again(pack_nodes, folder):
    def stamp():
        return pack_nodes["NextControlPose"].fingerprint_inputs("pose-people", "pose-17", style="dwpose")

    before = stamp()
    assert stamp() == before
    (folder / "pose-17" / "note.txt").write_text("new", encoding="utf-8")
    assert stamp() != before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"detector": "pose-cars"}, "'pose-cars' has no class 'person' among 4"),
        ({"model": "pose-21"}, "finds 21 points"),
        ({"style": "x"}, "style is 'x' and must be one of openpose, dwpose, body25, svd_v2"),
        ({"line_width": "x"}, "line_width is 'x'"),
        ({"scores": "x"}, "scores is 'x'"),
        ({"image": torch.zeros(0, 64, 64, 3)}, "has no frames"),
        ({"image": torch.zeros(1, 64, 64, 4)}, "RGB with alpha"),
        ({"image": torch.full((1, 64, 64, 3), torch.nan)}, "NaN"),
    ],
)
def test_bad_input_gets_one_sentence(detect, options, message):
    with pytest.raises(ValueError, match=message) as error:
        detect(**options)
    assert "\n" not in str(error.value)


def test_a_run_can_be_cancelled_between_pieces(detect, cancel_at):
    told = cancel_at(1, 300)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        detect(ASTRONAUT[:, ::8, ::8].expand(300, -1, -1, -1), 64)
    assert told == [4]


# Draw Pose Hint


def test_a_drawing_has_the_canvas_at_the_resolution(draw):
    person = a_person()
    (hint,) = draw(to_json([person]), 512).result
    assert hint.shape == (1, 512, 704, 3)
    torch.testing.assert_close(hint, draw_pose([person], (512, 704), Drawing()), atol=1 / 255, rtol=0)
    assert draw(to_json([person]), 0).result[0].shape == (1, 96, 128, 3)


def test_width_and_height_replace_the_canvas(draw):
    person = a_person()
    keypoints = to_json([person])
    (hint,) = draw(keypoints, 0, width=64, height=256).result
    torch.testing.assert_close(hint, draw_pose(from_json(keypoints), (256, 64), Drawing()))
    for frame in keypoints:
        del frame["canvas_width"]
    (hint,) = draw(keypoints, 0, width=128, height=96).result
    torch.testing.assert_close(hint, draw_pose([person], (96, 128), Drawing()), atol=1 / 255, rtol=0)


def test_the_preview_is_on_the_node(draw):
    output = draw(to_json([a_person(), nobody(96, 128)]), 64)
    assert len(output.ui.as_dict()["images"]) == 2


def test_switches_leave_parts_out(draw):
    keypoints = to_json([a_person()])
    for style in ("openpose", "dwpose", "body25", "svd_v2"):
        assert draw(keypoints, style=style).result[0].max() > 0
        assert draw(keypoints, style=style, body=False).result[0].max() == 0


def test_a_clip_longer_than_a_piece_is_its_frames(draw):
    clip = [a_person() if i % 3 else nobody(96, 128) for i in range(37)]
    (hints,) = draw(to_json(clip), 64).result
    assert len(hints) == 37
    assert [bool(hint.max() > 0) for hint in hints] == [bool(i % 3) for i in range(37)]


@pytest.mark.parametrize(
    ("keypoints", "options", "message"),
    [
        ([], {}, "keypoints is an empty list"),
        ("text", {}, "keypoints is a str"),
        (to_json([nobody(64, 64)]), {"width": 5}, r"width \(5\) and height \(0\) are given together"),
        (to_json([nobody(64, 64), nobody(64, 96)]), {}, "frames of several sizes .64x64 and 96x64.: give width and height"),
        (to_json([nobody(8, 900000)]), {"resolution": 512}, "16384 is the longest side"),
        (to_json([nobody(64, 64)]), {"style": "x"}, "style is 'x'"),
    ],
)
def test_bad_keypoints_get_one_sentence(draw, keypoints, options, message):
    with pytest.raises(ValueError, match=message):
        draw(keypoints, **options)
