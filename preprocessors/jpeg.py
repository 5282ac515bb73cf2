"""A picture that JPEG has damaged."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from .canvas import Picture, check_range, draw_each, hint_size


def jpeg(frames: Tensor, resolution: int = 512, quality: int = 20) -> Tensor:
    """Each picture after it was written as JPEG and read again.

    Args:
        frames: (B, H, W, 3), RGB in [0, 1].
        resolution: Shorter side of the result in pixels, 0 for the pictures' own size; see `hint_size`.
        quality: 1 to 100. Trained with 10 to 30; 20 is the middle.

    Returns:
        (B, H', W', 3) in [0, 1].

    Raises:
        ValueError: `quality` is out of range.

    Source: xyfJASON/ctrlora@b4422b4 annotator/jpeg.
    """
    check_range("quality", quality, 1, 100)

    def draw(picture: Picture) -> Picture:
        import cv2

        _, content = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
        damaged = cv2.imdecode(content, cv2.IMREAD_COLOR)
        assert damaged is not None
        return np.asarray(cv2.cvtColor(damaged, cv2.COLOR_BGR2RGB), dtype=np.uint8)

    return draw_each(frames, hint_size(frames.shape[1], frames.shape[2], resolution), draw)
