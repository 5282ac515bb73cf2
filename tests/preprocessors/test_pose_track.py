"""One person of a clip: whom, where, and between two frames."""

from __future__ import annotations

import numpy as np
import pytest
from nextcontrol.preprocessors.pose_points import nobody
from nextcontrol.preprocessors.pose_track import LOST, POINTS, fill_gaps, flatten, smooth, to_track, unflatten
from poses import golden_clip, standing

NECK = 1


def necks(track):
    """Where the neck is in each frame, from left to right."""
    return [round(float(x), 3) for x in track[:, NECK, 0]]


def test_the_largest_person_is_followed_when_another_comes_nearer_and_the_order_changes():
    clip = [
        standing((0.3, 0.5, 0.6), (0.7, 0.5, 0.5)),
        standing((0.69, 0.5, 0.8), (0.32, 0.5, 0.6)),
        standing((0.34, 0.5, 0.6), (0.68, 0.5, 1.0)),
    ]
    assert necks(to_track(clip)) == [0.3, 0.32, 0.34]


def test_two_people_who_cross_are_not_exchanged():
    right, left = np.linspace(0.2, 0.8, 25), np.linspace(0.78, 0.18, 25)
    clip = [standing((b, 0.5, 0.45), (a, 0.5, 0.5)) for a, b in zip(right, left, strict=True)]
    # In the middle only one of them is found, behind or before the other.
    clip[12] = standing((left[12], 0.5, 0.45))
    track = to_track(clip)
    np.testing.assert_allclose(np.delete(track, 12, axis=0)[:, NECK, 0], np.delete(right, 12), atol=1e-9)


def test_a_person_chosen_by_number_is_followed():
    clip = [nobody(400, 400), standing((0.3, 0.5, 0.6)), standing((0.3, 0.5, 0.6), (0.7, 0.5, 0.3)), standing((0.7, 0.5, 0.3))]
    assert necks(to_track(clip, "index", 1)) == [0, 0, 0.7, 0.7]


def test_whoever_is_largest_takes_over_when_the_person_is_gone_for_long():
    clip = [standing((0.2, 0.5, 0.3))] + [standing((0.8, 0.5, 0.3))] * (LOST + 2)
    assert necks(to_track(clip)) == [0.2] + [0] * LOST + [0.8] * 2


def test_a_person_of_all_parts_comes_back_from_a_track():
    (people, *_) = golden_clip()
    again = unflatten(flatten(people, 0), 360, 640)
    for part in ("bodies", "hands", "faces", "feet"):
        assert np.array_equal(getattr(again, part), getattr(people, part))
    assert flatten(people, 0).shape == (POINTS, 3)
    assert len(unflatten(np.zeros((POINTS, 3)), 360, 640)) == 0


@pytest.mark.parametrize(("longest", "filled"), [(0, False), (1, False), (2, True), (9, True)])
def test_short_gaps_are_filled_evenly_and_longer_ones_stay(longest, filled):
    clip = [standing((0.3, 0.5, 1)), nobody(400, 400), nobody(400, 400), standing((0.6, 0.5, 1))]
    found = fill_gaps(to_track(clip), longest)
    assert necks(found) == ([0.3, 0.4, 0.5, 0.6] if filled else [0.3, 0, 0, 0.6])


def test_a_filled_point_is_as_sure_as_the_less_sure_of_its_neighbours_and_ends_stay():
    track = to_track([nobody(400, 400), standing((0.3, 0.5, 1)), nobody(400, 400), standing((0.5, 0.5, 1)), nobody(400, 400)])
    track[1, NECK, 2] = 0.4
    filled = fill_gaps(track, 5)
    assert filled[2, NECK, 2] == 0.4
    assert not filled[[0, 4]].any()
    assert not track[2].any()  # a copy


def test_points_of_low_score_are_gaps_of_their_own():
    track = to_track([standing((x, 0.5, 1)) for x in (0.3, 0.45, 0.5)])
    track[1, NECK, 2] = 0.2
    filled = fill_gaps(track, 1)
    assert filled[1, NECK, 0] == pytest.approx(0.4)
    assert filled[1, 0, 0] == pytest.approx(0.45)


def jittery(speed):
    """A walk with noise of half a percent of the picture, and the walk itself."""
    noise = np.random.default_rng(0).normal(0, 0.005, (60, POINTS, 2))
    walk = to_track([standing((0.2 + speed * frame, 0.5, 1)) for frame in range(60)])
    noisy = walk.copy()
    noisy[..., :2] += np.where(walk[..., 2:] > 0, noise, 0)
    return noisy, walk


def errors(track, walk):
    """Root mean square distance from the walk, in the middle of the clip."""
    return float(np.sqrt(((track - walk)[10:50, :18, :2] ** 2).sum(-1).mean()))


def test_smoothing_takes_jitter_out_of_someone_at_rest():
    noisy, walk = jittery(0.0)
    assert errors(smooth(noisy, 0.5, 1.0), walk) < 0.5 * errors(noisy, walk)
    assert errors(smooth(noisy, 1.0, 1.0), walk) < errors(smooth(noisy, 0.3, 1.0), walk)


def test_smoothing_does_not_lag_behind_a_walk():
    noisy, walk = jittery(0.01)
    smoothed = smooth(noisy, 0.5, 1.0)
    assert errors(smoothed, walk) < errors(noisy, walk)
    assert abs((smoothed - walk)[10:50, :18, 0].mean()) < 0.001


def test_smoothing_off_and_points_that_are_not_seen_stay_as_they_are():
    noisy, _ = jittery(0.0)
    assert np.array_equal(smooth(noisy, 0, 1.0), noisy)
    noisy[20, NECK, 2] = 0.1
    smoothed = smooth(noisy, 1.0, 1.0)
    assert np.array_equal(smoothed[20, NECK], noisy[20, NECK])
    assert np.array_equal(smoothed[..., 2], noisy[..., 2])
    assert np.array_equal(smooth(noisy[:1], 1.0, 1.0), noisy[:1])
