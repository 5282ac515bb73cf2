"""Long SVD clips from latents to pictures: in chunks of bounded memory that fade into each other."""

from __future__ import annotations

import logging
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from ...models.windows import check_windows, window_starts, window_weights
from .video_conditioning import SVD_LOADER

log = logging.getLogger("nextcontrol")


def decode_video(vae: Any, samples: Tensor, frames: int, overlap: int) -> Tensor:
    """Decode a clip chunk by chunk, with progress and cancel.

    The host's own decoder takes as many frames at once as fit into memory by its reckoning, and where two such chunks meet
    there is a seam, as SVD's decoder looks at neighbouring frames. Its tiled decoder shows it one frame at a time.

    Args:
        vae: The host's, of SVD.
        samples: (N, 4, h, w).
        frames: In a chunk; fewer where memory is short.
        overlap: Frames that two chunks share and fade across.

    Returns:
        (N, 8 * h, 8 * w, 3) in [0, 1]. The peak is the result and one chunk.

    Raises:
        ValueError: The numbers do not fit, or the latents are not those of a clip of pictures.
    """
    check_windows(frames, overlap)
    if vae is None:
        raise ValueError(f"vae is missing in the checkpoint: load an SVD checkpoint with {SVD_LOADER}.")
    if samples.ndim != 4 or len(samples) == 0:
        raise ValueError(
            f"samples has the shape {tuple(samples.shape)} and a clip of SVD has (frames, 4, h, w): use VAE Decode for other "
            "models."
        )
    frames, overlap = _fitting(vae, samples, frames, overlap)
    starts = window_starts(len(samples), frames, overlap)
    bar, result, total = comfy.utils.ProgressBar(len(starts)), None, torch.zeros(len(samples))
    for start, weights in zip(starts, window_weights(starts, min(frames, len(samples)), "linear"), strict=True):
        pictures = vae.decode(samples[start : start + frames])
        if result is None:
            result = pictures.new_zeros((len(samples), *pictures.shape[1:]))
        # Frame by frame: a chunk's pictures are large, and no second copy is needed.
        for place, (picture, weight) in enumerate(zip(pictures, weights, strict=True), start):
            result[place].add_(picture, alpha=weight)
            total[place] += weight
        del pictures
        bar.update(1)
        comfy.model_management.throw_exception_if_processing_interrupted()
    assert result is not None
    for picture, weight in zip(result, total.tolist(), strict=True):
        if weight != 1:
            picture.div_(weight)
    return result


def _fitting(vae: Any, samples: Tensor, frames: int, overlap: int) -> tuple[int, int]:
    """Chunk and overlap that the host does not cut again for want of memory."""
    comfy.model_management.load_models_gpu([vae.patcher])
    one = vae.memory_used_decode(samples[:1].shape, vae.vae_dtype)
    most = max(int(comfy.model_management.get_free_memory(vae.device) // max(one, 1)), 2)
    if most >= min(frames, len(samples)):
        return frames, overlap
    log.warning("Memory is short: %d frames are decoded at a time in place of %d.", most, frames)
    return most, min(overlap, most - 1)
