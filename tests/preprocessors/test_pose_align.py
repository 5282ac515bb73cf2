"""A clip's poses on a reference's place: the published fit, the torso, and the edge of the canvas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from host_models import GOLDENS
from nextcontrol.preprocessors.pose_align import (
    MARGIN,
    MODES,
    Shape,
    align,
    fit_crop,
    fit_official,
    keep_on_canvas,
)
from nextcontrol.preprocessors.pose_draw import Drawing, draw_pose
from nextcontrol.preprocessors.pose_track import flatten, to_track, unflatten
from poses import CANVAS, DRIVING, golden_clip, golden_reference, standing

GOLDEN = np.load(GOLDENS / "hints" / "pose_alignment.npz")
SQUARE = Shape(400, 400)
BODY = slice(0, 18)


def torso_of(body):
    """Height of the torso, and its middle."""
    hips = body[[8, 11], :2].mean(axis=0)
    return hips[1] - body[1, 1], (hips + body[1, :2]) / 2


def test_the_official_fit_is_the_references_to_float_precision():
    track, reference = to_track(golden_clip()), flatten(golden_reference(), 0)
    fit = fit_official(track, reference, Shape(*DRIVING), Shape(*CANVAS))
    np.testing.assert_allclose([*fit.scale, *fit.shift], [2.5195, 0.7972, -0.7166, 0.1211], atol=5e-5)
    aligned = align(track, reference, Shape(*DRIVING), Shape(*CANVAS), "official")
    np.testing.assert_allclose(aligned[:, BODY, :2], GOLDEN["aligned_bodies"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(aligned[:, 60:128, :2], GOLDEN["aligned_faces"][:, 0], rtol=0, atol=1e-12)
    assert np.array_equal(aligned[..., 2], track[..., 2])


def test_the_aligned_clip_is_drawn_as_the_reference_draws_it():
    track, reference = to_track(golden_clip()), flatten(golden_reference(), 0)
    aligned = align(track, reference, Shape(*DRIVING), Shape(*CANVAS), "official")
    drawn = draw_pose([unflatten(points, *CANVAS) for points in aligned], CANVAS, Drawing("svd_v2"))
    assert torch.equal((drawn * 255).round().byte(), torch.from_numpy(GOLDEN["frames"]))


@pytest.mark.parametrize("mode", ["official", "torso"])
@pytest.mark.parametrize("size", [(400, 400), (360, 640), (640, 360)])
def test_the_same_pose_elsewhere_and_smaller_comes_to_the_references_place(mode, size):
    reference, frames = flatten(standing((0.5, 0.5, 1)), 0), [standing((0.3, 0.6, 0.5), size=size)] * 3
    aligned = align(to_track(frames), reference, Shape(*size), SQUARE, mode)
    np.testing.assert_allclose(aligned[:, BODY, :2], np.broadcast_to(reference[BODY, :2], (3, 18, 2)), atol=1e-9)


def test_the_torso_counts_where_legs_are_cut_off_and_the_official_fit_does_not_care():
    # A clip with hidden legs, and one frame in which wrong points lie on the floor.
    reference, clip = flatten(standing((0.5, 0.5, 1)), 0), [standing((0.5, 0.7, 1.0), hidden=(9, 10, 12, 13))] * 4
    torso = align(to_track(clip), reference, SQUARE, SQUARE, "torso")
    assert torso_of(torso[0])[0] == pytest.approx(torso_of(reference)[0])
    np.testing.assert_allclose(torso_of(torso[0])[1], torso_of(reference)[1])
    assert not torso[0, [9, 10, 12, 13]].any()


@pytest.mark.parametrize("hidden", [(8, 11), (8, 11, 2, 5), (1, 8, 11, 2, 5), (1, 8, 11, 2, 5, 16, 17)])
def test_shoulders_or_head_stand_in_for_a_torso_that_is_not_seen(hidden):
    reference = flatten(standing((0.5, 0.5, 1), hidden=hidden), 0)
    aligned = align(to_track([standing((0.4, 0.4, 0.6))]), reference, SQUARE, SQUARE, "torso")
    seen = reference[BODY, 2] > 0
    np.testing.assert_allclose(aligned[0, BODY, :2][seen], reference[BODY, :2][seen], atol=1e-9)


def test_someone_seen_from_the_side_is_no_giant():
    # The reference shows no hips, and the clip's shoulders lie nearly one behind the other.
    reference, side = flatten(standing((0.5, 0.5, 1), hidden=(8, 11)), 0), standing((0.5, 0.5, 1))
    side.bodies[0, [2, 5], 0] = 0.49, 0.51
    aligned = align(to_track([side]), reference, SQUARE, SQUARE, "torso")
    assert torso_of(aligned[0])[0] == pytest.approx(torso_of(flatten(standing((0.5, 0.5, 1)), 0))[0], rel=0.2)


def test_someone_who_walks_across_a_wide_clip_stays_on_a_narrow_canvas():
    size, canvas = (360, 640), Shape(640, 360)
    walk = to_track([standing((x, 0.5, 1), size=size) for x in np.linspace(0.05, 0.95, 9)])
    reference = flatten(standing((0.5, 0.5, 0.9), size=tuple(canvas)), 0)
    official, torso = (align(walk, reference, Shape(*size), canvas, mode) for mode in ("official", "torso"))
    assert official[..., 0].max() > 1 + 2 * MARGIN  # what people complain about
    seen = torso[torso[..., 2] > 0]
    assert seen[:, :2].min() >= -MARGIN - 1e-9
    assert seen[:, :2].max() <= 1 + MARGIN + 1e-9
    middles = np.array([torso_of(frame)[1][0] for frame in torso])
    assert (np.diff(middles) > 0).all()
    assert torso_of(torso[4])[0] == pytest.approx(torso_of(reference)[0])


def test_a_limb_is_cut_at_the_margin_and_what_hangs_on_it_is_left_out():
    track = to_track([standing((0.5, 1.05, 1))])
    cut = keep_on_canvas(track)
    ankle, knee = track[0, 10], track[0, 9]
    assert knee[1] > 1 + MARGIN
    hip = track[0, 8, :2]
    share = (1 + MARGIN - cut[0, 8, 1]) / (knee[1] - hip[1])
    assert cut[0, 9, 1] == pytest.approx(1 + MARGIN)
    assert 0 < share < 1
    assert ankle[1] > knee[1]
    assert not cut[0, 10].any()


def test_nothing_moves_when_everything_is_on_the_canvas():
    track = to_track([standing((0.5, 0.5, 1)), standing((0.45, 0.5, 1))])
    assert np.array_equal(keep_on_canvas(track), track)


def test_without_a_mode_the_clip_is_cut_to_the_canvas():
    fit = fit_crop(Shape(360, 640), Shape(640, 360))
    np.testing.assert_allclose(fit.scale, [(640 / 360) ** 2, 1])
    np.testing.assert_allclose(fit.scale * 0.5 + fit.shift, [0.5, 0.5])
    track = to_track([standing((0.3, 0.6, 0.5))])
    assert np.array_equal(align(track, track[0], SQUARE, SQUARE, "none"), track)


@pytest.mark.parametrize("mode", MODES)
def test_missing_points_stay_missing(mode):
    clip = [standing((0.5, 0.5, 1), hidden=(4, 7))]
    aligned = align(to_track(clip), flatten(standing((0.6, 0.4, 0.8)), 0), SQUARE, Shape(640, 360), mode)
    assert not aligned[0, [4, 7]].any()
    assert not aligned[0, 18:].any()


def test_too_little_to_fit_is_said():
    nearly = flatten(standing((0.5, 0.5, 1), hidden=tuple(range(1, 18))), 0)
    track = to_track([standing((0.5, 0.5, 1))])
    with pytest.raises(ValueError, match="The reference shows 1 of the 14 points of the official fit"):
        align(track, nearly, SQUARE, SQUARE, "official")
    with pytest.raises(ValueError, match="no common part of torso, shoulders or head"):
        align(track, nearly, SQUARE, SQUARE, "torso")
    upside_down = flatten(standing((0.5, 0.5, -1)), 0)
    with pytest.raises(ValueError, match="turns the clip upside down"):
        align(track, upside_down, SQUARE, SQUARE, "official")
