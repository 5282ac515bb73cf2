"""Align Pose as a node: what goes in as key points comes out as hints, key points and a preview, or as one sentence."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from host_models import GOLDENS
from narrow import hints
from nextcontrol.preprocessors.pose_json import from_json, to_json
from nextcontrol.preprocessors.pose_points import nobody
from poses import golden_clip, golden_reference, standing

GOLDEN = np.load(GOLDENS / "hints" / "pose_alignment.npz")
OPTIONS = {"mode": "official", "person": "largest", "person_index": 0, "smooth": 0.0, "fill_gaps": 0, "style": "svd_v2"}


def align(pack_nodes, reference, poses, width=288, height=512, **options):
    node = pack_nodes["NextControlAlignPose"]
    arguments = {**OPTIONS, **options}
    return node.execute(reference=reference, poses=poses, width=width, height=height, **arguments).result


def test_the_hints_are_the_references_pose_and_then_the_golden_frames(pack_nodes):
    clip = golden_clip()
    for frame in clip:
        # JSON has no place for a point with a score of 0, and the reference's fit uses it; no detector gives one.
        frame.bodies[..., 2] = frame.bodies[..., 2].clip(1e-6)
    drawn, keypoints, preview = align(pack_nodes, to_json([golden_reference()]), to_json(clip))
    assert drawn.shape == (5, 512, 288, 3)
    pixels = (drawn * 255).round().byte()
    assert torch.equal(pixels[1:], torch.from_numpy(GOLDEN["frames"]))
    assert pixels[0].any()
    (first, *others) = from_json(keypoints)
    np.testing.assert_allclose(first.bodies[0, 0], golden_reference().bodies[0, 0], atol=1e-12)
    np.testing.assert_allclose([frame.bodies[0, :, :2] for frame in others], GOLDEN["aligned_bodies"], atol=1e-12)
    assert {(frame.height, frame.width) for frame in (first, *others)} == {(512, 288)}
    assert preview.shape == drawn.shape


def test_the_preview_lies_over_the_reference_and_shows_up_to_eight_frames(pack_nodes):
    picture, clip = hints(1, 64, 64), to_json([standing((0.5, 0.5, 1))] * 20)
    _, _, alone = align(pack_nodes, clip[0], clip, 64, 64)
    _, _, preview = align(pack_nodes, clip[0], clip, 64, 64, image=picture)
    assert len(preview) == len(alone) == 8
    is_drawn = alone.amax(dim=-1) > 0
    assert is_drawn.any()
    assert torch.equal(preview[is_drawn], alone[is_drawn])
    assert torch.equal(preview[~is_drawn], (picture * 0.6).expand_as(preview)[~is_drawn])


def test_the_references_pose_is_cut_as_its_picture_is(pack_nodes):
    wide = standing((0.5, 0.5, 0.8), size=(360, 640))
    drawn, keypoints, _ = align(pack_nodes, to_json([wide]), to_json([wide]), 360, 640)
    cut = from_json(keypoints)[0].bodies[0]
    # A third of the width is left, and the height is stretched to the canvas by the same factor.
    np.testing.assert_allclose((wide.bodies[0, :, 0] - 0.5) * (640 / 360) ** 2 + 0.5, cut[:, 0])
    np.testing.assert_allclose(wide.bodies[0, :, 1], cut[:, 1])
    assert torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("mode", ["official", "torso", "none"])
def test_a_clip_of_one_frame_gives_two_hints(mode, pack_nodes):
    clip = to_json([standing((0.5, 0.5, 1))])
    assert len(align(pack_nodes, clip, clip[0], 64, 64, mode=mode)[0]) == 2


def test_one_of_several_people_is_aligned(pack_nodes):
    clip = to_json([standing((0.3, 0.5, 0.8), (0.8, 0.5, 0.4))] * 2)
    for options, x in (({}, 0.3), ({"person": "index", "person_index": 1}, 0.8)):
        _, keypoints, _ = align(pack_nodes, clip, clip, 64, 64, mode="none", **options)
        assert [len(frame) for frame in from_json(keypoints)] == [1, 1, 1]
        assert from_json(keypoints)[1].bodies[0, 1, 0] == pytest.approx(x)


def test_frames_without_the_person_are_filled_or_black_and_counted(pack_nodes, caplog):
    someone = standing((0.5, 0.5, 1))
    clip = to_json([someone, nobody(400, 400), someone])
    with caplog.at_level(logging.WARNING, "nextcontrol"):
        assert align(pack_nodes, clip, clip, 64, 64, fill_gaps=1)[0][2].any()
        assert not caplog.records
        assert not align(pack_nodes, clip, clip, 64, 64)[0][2].any()
    assert "The person is not in 1 of 3 frames: their hints are black." in caplog.text


def test_a_reference_without_anyone_is_allowed_where_nothing_is_aligned(pack_nodes, caplog):
    clip = to_json([standing((0.5, 0.5, 1))])
    drawn, _, _ = align(pack_nodes, to_json([nobody(64, 64)]), clip, 64, 64, mode="none")
    assert not drawn[0].any()
    assert drawn[1].any()
    assert "The reference has no person" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": to_json([nobody(64, 64)])}, "reference has no person: use a picture in which Pose Hint finds someone"),
        ({"poses": to_json([nobody(64, 64)] * 3)}, "poses has no person in any of its 3 frames"),
        ({"person": "index", "person_index": 7}, "poses has no person of the index 7 in any of its 1 frames"),
        ({"poses": to_json([nobody(64, 64), nobody(64, 96)])}, "poses has frames of several sizes"),
        ({"width": 100}, "width 100 and height 64 must be multiples of 8: use 96 and 64"),
        ({"mode": "affine"}, "mode is 'affine' and must be one of official, torso, none"),
        ({"style": "x"}, "style is 'x' and must be one of"),
        ({"person": "all"}, "person is 'all' and must be one of largest, index"),
        ({"poses": []}, "keypoints is an empty list"),
        ({"image": torch.zeros(1, 64, 64, 4)}, "image has 4 channels"),
    ],
)
def test_a_wrong_input_gets_one_sentence(change, message, pack_nodes):
    clip = to_json([standing((0.5, 0.5, 1))])
    with pytest.raises(ValueError, match=message):
        align(pack_nodes, **{"reference": clip, "poses": clip, "width": 64, "height": 64, **change})
