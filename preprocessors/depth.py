"""Depth: bright is near, or the viridis colours of ControlNeXt's depth controls."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .annotator import Annotator, evaluate
from .canvas import HintFor, hint_size, to_pictures

DISTANCE_NETWORKS = frozenset({"depth_pro", "glpn", "tipsv2_dpt", "zoedepth"})
"""Values of `model_type` in config.json whose networks give metres; most others give something like 1 / metres."""
NEAREST = 1e-3
"""Metres; no nearer surface is believed."""


def depth(frames: Tensor, resolution: int, annotator: Annotator, hint_for: HintFor = "ctrlora", invert: bool = False) -> Tensor:
    """How near every pixel is, each picture from its nearest to its farthest point.

    Args:
        frames: (B, H, W, 3), RGB in [0, 1].
        resolution: Shorter side of the result in pixels, 0 for the pictures' own size; see `hint_size`.
        annotator: For "depth".
        hint_for: "ctrlora" is grey with near = 1, in steps of 1/255 as in its training pictures; "plain" the same without
            steps; "controlnext" colours the distance, near = dark violet, far = yellow. VIDIT's colours begin anew at some
            long range that is not known; these do not.
        invert: Exchange near and far.

    Returns:
        (B, H', W', 3) in [0, 1].

    Source: xyfJASON/ctrlora@b4422b4 annotator/midas/__init__.py.
    """
    nearness = estimate_nearness(frames, resolution, annotator)
    if hint_for == "controlnext":
        values = stretch(1 / nearness if gives_distance(annotator) else -nearness)
    else:
        values = stretch(nearness)
    values = (1 - values if invert else values).cpu()
    if hint_for == "plain":
        return values[..., None].repeat(1, 1, 1, 3)
    # Cut off, not rounded, as the reference turns floats into bytes.
    steps = (values * 255).floor()
    if hint_for == "controlnext":
        return torch.from_numpy(_viridis(steps.to(torch.uint8).numpy())).float() / 255
    return (steps / 255)[..., None].repeat(1, 1, 1, 3)


def estimate_nearness(frames: Tensor, resolution: int, annotator: Annotator) -> Tensor:
    """What a depth network says, in its own units and the larger the nearer.

    Args:
        frames: (B, H, W, 3), RGB in [0, 1].
        resolution: As for `depth`.
        annotator: For "depth". A network that gives metres is turned into one that gives 1 / metres.

    Returns:
        (B, H', W'), on the annotator's device.
    """
    height, width = hint_size(frames.shape[1], frames.shape[2], resolution)
    pictures = to_pictures(frames, (height, width))
    sizes = [(height, width)] * len(pictures)
    with contextlib.ExitStack() as stack:
        options = stack.enter_context(_at_full_size(annotator, height, width)) if is_midas(annotator) else {}
        output = evaluate(annotator, pictures, **options)
    # ZoeDepth takes the pictures' sizes as its second argument, the others take the results'; both are the same here.
    found = annotator.processor.post_process_depth_estimation(output, sizes)
    depths = torch.stack([result["predicted_depth"].float() for result in found])
    return 1 / depths.clamp(min=NEAREST) if gives_distance(annotator) else depths


def gives_distance(annotator: Annotator) -> bool:
    """Whether a network's values grow with the distance, by its configuration.

    Args:
        annotator: For "depth".

    Returns:
        Depth Anything's files say so themselves. Of the networks of the type "dpt" those with `add_projection` (DINOv2's, for
        NYU and KITTI) give metres, MiDaS's do not.
    """
    config = annotator.config
    return (
        getattr(config, "depth_estimation_type", None) == "metric"
        or config.model_type in DISTANCE_NETWORKS
        or (config.model_type == "dpt" and bool(config.add_projection))
    )


def is_midas(annotator: Annotator) -> bool:
    """Whether a network is a plain DPT of MiDaS, such as DPT-Large, which CtrLoRA was trained with."""
    config = annotator.config
    return config.model_type == "dpt" and not (config.is_hybrid or config.backbone_config or config.add_projection)


def stretch(values: Tensor) -> Tensor:
    """(B, H, W) to [0, 1], each picture from its smallest to its largest value; a flat one is 0."""
    low, high = values.amin(dim=(1, 2), keepdim=True), values.amax(dim=(1, 2), keepdim=True)
    return (values - low) / (high - low).clamp(min=torch.finfo(values.dtype).tiny)


@contextlib.contextmanager
def _at_full_size(annotator: Annotator, height: int, width: int) -> Iterator[dict[str, Any]]:
    """Options that show a MiDaS network the hint's own pixels, as CtrLoRA does, in place of 384x384 of them."""
    patch = int(annotator.config.patch_size)
    rows, columns = max(round(height / patch), 1), max(round(width / patch), 1)
    size = {"height": rows * patch, "width": columns * patch}
    # Without this transformers takes every grid of tokens for a square.
    grid = {"patch_height": rows, "patch_width": columns}
    hook = annotator.network.neck.register_forward_pre_hook(  # type: ignore[union-attr]
        lambda _, inputs, named: (inputs[:1], named | grid), with_kwargs=True
    )
    try:
        yield {"size": size, "keep_aspect_ratio": False, "ensure_multiple_of": 1}
    finally:
        hook.remove()


def _viridis(steps: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bytes (B, H, W) to RGB (B, H, W, 3)."""
    import cv2

    # OpenCV colours pictures of two dimensions, in BGR.
    flat = cv2.applyColorMap(steps.reshape(len(steps), -1), cv2.COLORMAP_VIRIDIS)
    return np.ascontiguousarray(flat[..., ::-1].reshape(*steps.shape, 3), dtype=np.uint8)
