"""What every hint node does around its preprocessor: check, go through the clip in pieces, show."""

from __future__ import annotations

from collections.abc import Callable

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from .hints import check_image
from .progress import FRAMES_PER_CHUNK, in_chunks

SHOWN = 8
"""Pictures of a clip that the node shows; writing all of 500 would take longer than making them."""


def make_hints(image: Tensor, make: Callable[[Tensor], Tensor], size: int = FRAMES_PER_CHUNK) -> Tensor:
    """Turn pictures into hints, with progress and cancel.

    Args:
        image: From an `IMAGE` socket.
        make: A preprocessor with its options bound; maps (b, H, W, 3) to (b, H', W', 3).
        size: Frames in a piece.

    Returns:
        (B, H', W', 3) in [0, 1].

    Raises:
        ValueError: `image` is no batch of RGB pictures; see `check_image`.
    """
    check_image(image, "image")
    return in_chunks(image, make, size)


def show(images: Tensor, *more: object) -> io.NodeOutput:
    """A node's output that also appears on the node: up to `SHOWN` pictures, spread evenly over a clip.

    Args:
        images: The node's first output, (B, H, W, 3) in [0, 1].
        more: Its other outputs.

    Returns:
        All of them, with the preview.
    """
    count = min(len(images), SHOWN)
    places = torch.linspace(0, len(images) - 1, count).round().long()
    return io.NodeOutput(images, *more, ui=ui.PreviewImage(images[places.to(images.device)]))
