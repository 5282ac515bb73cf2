"""A picture in three steps of brightness, in which a scene can be hidden."""

from __future__ import annotations

from typing import Literal

import numpy as np
from torch import Tensor

from .canvas import Picture, draw_each, hint_size

Channel = Literal["blue", "value"]


def illusion(frames: Tensor, resolution: int = 512, channel: Channel = "blue") -> Tensor:
    """Black, grey and white areas of each picture, without small ones.

    Args:
        frames: (B, H, W, 3), RGB in [0, 1].
        resolution: Shorter side of the result in pixels, 0 for the pictures' own size; see `hint_size`.
        channel: What is divided at 85 and 170: "blue", which the released LoRA was trained with because the reference
            overwrites its conversion to HSV; or "value", the largest of the three, which it meant.

    Returns:
        (B, H', W', 3) of 0, 127 / 255 and 1, three equal channels.

    Source: xyfJASON/ctrlora@b4422b4 annotator/illusion.
    """
    table = np.repeat(np.array([0, 127, 255], dtype=np.uint8), (85, 86, 85))

    def draw(picture: Picture) -> Picture:
        import cv2

        red, green, blue = cv2.split(picture)
        levels = cv2.LUT(blue if channel == "blue" else cv2.max(cv2.max(red, green), blue), table)
        for operation, side in ((cv2.MORPH_CLOSE, 11), (cv2.MORPH_OPEN, 3)):
            levels = cv2.morphologyEx(levels, operation, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))
        return np.asarray(levels, dtype=np.uint8)

    return draw_each(frames, hint_size(frames.shape[1], frames.shape[2], resolution), draw)
