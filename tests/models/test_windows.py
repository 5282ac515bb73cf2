"""Windows over a clip: the reference's places, and weights that leave no frame out."""

from __future__ import annotations

import pytest
from nextcontrol.models.windows import BLENDS, check_windows, window_starts, window_weights

CLIPS = [(48, 24, 6), (60, 24, 6), (240, 24, 6), (50, 14, 4), (25, 24, 6), (42, 24, 6), (20, 24, 6), (10, 4, 2), (7, 3, 1)]


@pytest.mark.parametrize(
    ("clip", "expected"),
    [
        ((48, 24, 6), [0, 18, 24]),
        ((60, 24, 6), [0, 18, 36]),
        ((240, 24, 6), [*range(0, 217, 18)]),
        ((50, 14, 4), [0, 10, 20, 30, 36]),
        ((25, 24, 6), [0, 1]),
        ((42, 24, 6), [0, 18]),
        ((24, 24, 6), [0]),
        ((20, 24, 6), [0]),
        ((1, 14, 4), [0]),
        ((4, 14, 4), [0]),
    ],
)
def test_windows_begin_where_the_references_do(clip, expected):
    assert window_starts(*clip) == expected


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("clip", CLIPS)
def test_every_frame_counts_somewhere_and_a_later_windows_first_frame_nowhere(clip, blend):
    frames, window, overlap = clip
    starts = window_starts(*clip)
    weights = window_weights(starts, min(window, frames), blend)
    totals = [0.0] * frames
    for start, row in zip(starts, weights, strict=True):
        assert row[0] == (1.0 if start == 0 else 0.0)
        assert all(0 <= weight <= 1 for weight in row)
        for place, weight in enumerate(row):
            totals[start + place] += weight
    assert min(totals) > 0
    if blend == "linear" and (frames - window) % (window - overlap) == 0 and overlap * 2 <= window:
        assert totals == pytest.approx([1.0] * frames)


def test_the_average_counts_windows_alike():
    assert window_weights([0, 2], 4, "average") == [[1, 1, 1, 1], [0, 1, 1, 1]]


def test_the_linear_blend_fades_across_what_two_windows_share():
    assert window_weights([0, 4], 8, "linear") == [
        [1, 1, 1, 1, 1, 0.75, 0.5, 0.25],
        [0, 0.25, 0.5, 0.75, 1, 1, 1, 1],
    ]


@pytest.mark.parametrize(("window", "overlap"), [(14, 0), (14, 14), (14, 20), (1, 1), (14, -1)])
def test_windows_that_leave_frames_out_are_refused(window, overlap):
    with pytest.raises(ValueError, match=f"overlap is {overlap} and window is {window} frames: overlap must be from 1"):
        check_windows(window, overlap)
