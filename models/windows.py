"""Long clips in overlapping windows: where they begin, and how much each counts for a frame.

Source: dvlab-research/ControlNeXt@ab4b3ac ControlNeXt-SVD-v2/pipeline/pipeline_stable_video_diffusion_controlnext.py.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, get_args

Blend = Literal["average", "linear"]
BLENDS: tuple[Blend, ...] = get_args(Blend)


def check_windows(window: int, overlap: int) -> None:
    """Refuse windows that leave frames without a prediction.

    Args:
        window: Frames in a window.
        overlap: Frames that a window shares with the one before it.

    Raises:
        ValueError: The overlap is not from 1 to window - 1.
    """
    if not 1 <= overlap < window:
        raise ValueError(
            f"overlap is {overlap} and window is {window} frames: overlap must be from 1 to window - 1, as each window after "
            f"the first drops its first frame; set it to about a quarter of the window ({max(window // 4, 1)})."
        )


def window_starts(frames: int, window: int, overlap: int) -> list[int]:
    """The first frame of each window.

    Args:
        frames: In the clip, 1 or more.
        window: Frames in a window.
        overlap: See `check_windows`.

    Returns:
        Ascending; the last window ends with the clip. [0] for a clip of up to one window.
    """
    if frames <= window:
        return [0]
    return [min(start, frames - window) for start in range(0, frames - overlap, window - overlap)]


def window_weights(starts: list[int], window: int, blend: Blend) -> list[list[float]]:
    """How much each frame of each window counts; a frame's prediction is the weighted mean over the windows that show it.

    Args:
        starts: Of `window_starts`.
        window: Frames in a window.
        blend: "average", the reference's: every window counts alike, but the first frame of later windows does not count.
            "linear", ours: windows fade into each other across what they share; here too a later window begins at 0.

    Returns:
        One list of `window` numbers for each start. For every frame the sum over the windows is above 0.
    """
    shared = [before + window - start for before, start in pairwise(starts)]
    weights = []
    for index in range(len(starts)):
        fade_in = shared[index - 1] if index > 0 else 0
        fade_out = shared[index] if index + 1 < len(starts) else 0
        weights.append([_weight(place, window, fade_in, fade_out, blend) for place in range(window)])
    return weights


def _weight(place: int, window: int, fade_in: int, fade_out: int, blend: Blend) -> float:
    if blend == "average":
        return 0.0 if place == 0 and fade_in else 1.0
    rise = place / fade_in if fade_in else 1.0
    fall = (window - place) / fade_out if fade_out else 1.0
    return min(rise, fall, 1.0)
