"""Long clips in pieces, with the host's progress bar and cancel button."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_management
import comfy.utils
from torch import Tensor

FRAMES_PER_CHUNK = 16


def in_chunks(
    frames: Tensor | Sequence[Any], make: Callable[..., Tensor], size: int = FRAMES_PER_CHUNK, *beside: Any
) -> Tensor:
    """Apply `make` to a clip piece by piece; between pieces the run can be cancelled.

    Args:
        frames: (B, H, W, 3) with B of 1 or more, or a list of B things.
        make: Maps b of them, and b rows of each `beside`, to (b, H', W', 3), each frame for itself.
        size: Frames in a piece.
        beside: Sequences or tensors of B rows.

    Returns:
        (B, H', W', 3), filled in place: the peak is the result and one piece.
    """
    bar = comfy.utils.ProgressBar(len(frames))
    result: Tensor | None = None
    for start in range(0, len(frames), size):
        piece = make(frames[start : start + size], *(rows[start : start + size] for rows in beside))
        if result is None:
            result = piece.new_empty((len(frames), *piece.shape[1:]))
        result[start : start + len(piece)] = piece
        bar.update(len(piece))
        comfy.model_management.throw_exception_if_processing_interrupted()
    assert result is not None
    return result
