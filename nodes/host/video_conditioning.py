"""What SVD is told about a clip: its reference picture, as the host's CLIP vision and VAE read it, and three numbers."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import comfy.model_management
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .hints import LATENT_SCALE, center_crop, check_image
from .layout import Size

ClipPreprocess = Literal["official", "host"]
CLIP_PREPROCESS: tuple[ClipPreprocess, ...] = get_args(ClipPreprocess)
EMBEDDING_WIDTH = 1024
"""Of the CLIP that SVD was trained with."""
LATENT_CHANNELS = 4
SVD_LOADER = "'Image Only Checkpoint Loader' ('Load Checkpoint Image Only' in newer ComfyUI)"
"""ComfyUI's node for SVD checkpoints, under its names before and after it was renamed; for errors."""


class VideoConditioning(NamedTuple):
    """What goes to a sampler."""

    positive: list[list[Any]]
    negative: list[list[Any]]
    latent: dict[str, Tensor]


def condition_video(
    clip_vision: Any,
    image: Tensor,
    vae: Any,
    hints: Tensor,
    numbers: tuple[int, int, float],
    clip_preprocess: ClipPreprocess,
    seed: int,
) -> VideoConditioning:
    """Conditioning for one clip.

    Args:
        clip_vision: The host's, of an SVD checkpoint.
        image: (B, H, W, 3), the reference picture; the first of several.
        vae: The host's, of SVD.
        hints: (N, H, W, 3); give the number of frames and their size.
        numbers: Motion bucket, frames per second, augmentation level, in the host's terms: it subtracts 1 from the second.
        clip_preprocess: "official" squashes the picture for CLIP as the reference does, "host" cuts it to a square.
        seed: Of the augmentation noise.

    Returns:
        Positive and negative prompt, and an empty latent of N frames.

    Raises:
        ValueError: An input is malformed or belongs to another model.
    """
    check_image(image, "init_image")
    check_image(hints, "hints")
    for name, model in (("clip_vision", clip_vision), ("vae", vae)):
        if model is None:
            raise ValueError(f"{name} is missing in the checkpoint: load an SVD checkpoint with {SVD_LOADER}.")
    size = _latent_size(hints)
    picture = fit_reference(image[:1], size)
    embedding = embed_picture(clip_vision, picture, clip_preprocess)
    motion_bucket_id, fps, augmentation_level = numbers
    encoded = _encode(vae, picture, augmentation_level, seed)
    options = {"motion_bucket_id": motion_bucket_id, "fps": fps, "augmentation_level": augmentation_level}
    latent = torch.zeros(
        len(hints), LATENT_CHANNELS, size.height, size.width, device=comfy.model_management.intermediate_device()
    )
    return VideoConditioning(
        [[embedding, {**options, "concat_latent_image": encoded}]],
        [[torch.zeros_like(embedding), {**options, "concat_latent_image": torch.zeros_like(encoded)}]],
        {"samples": latent},
    )


def fit_reference(image: Tensor, size: Size) -> Tensor:
    """Bring the reference picture to the clip's size.

    Args:
        image: (1, H, W, 3) in [0, 1].
        size: Of the latent.

    Returns:
        (1, h, w, 3) in [0, 1] and fp32: cut in the centre to the clip's shape, then resized. Bytes of a picture of the right
        size stay as they are. The reference cuts alike and resizes without antialiasing first, which we leave out.
    """
    from PIL import Image

    target = (size.width * LATENT_SCALE, size.height * LATENT_SCALE)
    cut = center_crop(image.movedim(-1, 1).float(), size).movedim(1, -1)  # BHWC -> BCHW -> BHWC
    if (cut.shape[2], cut.shape[1]) == target:
        return cut
    picture = Image.fromarray((cut[0].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())
    # Source: diffusers 0.30.3 image_processor.py, the default filter of VaeImageProcessor.
    resized = np.asarray(picture.resize(target, Image.Resampling.LANCZOS), dtype=np.float32) / 255
    return torch.from_numpy(resized)[None].to(image.device)


def squash_for_clip(pixels: Tensor, side: int) -> Tensor:
    """Resize to a square for CLIP as the reference does: Gaussian blur against aliasing, then a bicubic filter.

    Args:
        pixels: (B, 3, H, W).
        side: Of the square.

    Returns:
        (B, 3, side, side); the bicubic filter may leave the range a little.

    Source: diffusers 0.30.3 pipeline_stable_video_diffusion.py, `_resize_with_antialiasing`.
    """
    for dim in (-2, -1):
        pixels = _blur(pixels, dim, pixels.shape[dim] / side)
    return F.interpolate(pixels, (side, side), mode="bicubic", align_corners=True)


def _blur(pixels: Tensor, dim: int, factor: float) -> Tensor:
    """Gaussian blur along one dimension, reflected at the border, with the width that a reduction by `factor` needs."""
    sigma = max((factor - 1) / 2, 0.001)
    width = int(max(4 * sigma, 3)) // 2 * 2 + 1
    places = torch.arange(width, device=pixels.device, dtype=pixels.dtype) - width // 2
    kernel = torch.exp(-(places**2) / (2 * sigma**2))
    rows = pixels.movedim(dim, -1)
    flat = rows.reshape(1, -1, rows.shape[-1])
    padded = F.pad(flat, (width // 2, width // 2), mode="reflect").movedim(0, 1)
    blurred = F.conv1d(padded, (kernel / kernel.sum())[None, None])
    return blurred.reshape(rows.shape).movedim(-1, dim)


def _latent_size(hints: Tensor) -> Size:
    height, width = hints.shape[1:3]
    if height % LATENT_SCALE or width % LATENT_SCALE:
        better = (width // LATENT_SCALE * LATENT_SCALE, height // LATENT_SCALE * LATENT_SCALE)
        raise ValueError(
            f"hints are {width}x{height} pixels and the latent needs multiples of {LATENT_SCALE}: make them "
            f"{better[0]}x{better[1]}."
        )
    return Size(height // LATENT_SCALE, width // LATENT_SCALE)


def embed_picture(clip_vision: Any, picture: Tensor, clip_preprocess: ClipPreprocess) -> Tensor:
    """What SVD reads of the reference in the place of text.

    Args:
        clip_vision: The host's, of an SVD checkpoint.
        picture: (1, H, W, 3) in [0, 1].
        clip_preprocess: See `condition_video`.

    Returns:
        (1, 1, 1024).

    Raises:
        ValueError: It is of another model.
    """
    if clip_preprocess == "official":
        squashed = squash_for_clip(picture.movedim(-1, 1), getattr(clip_vision, "image_size", 224))
        # The host rounds to bytes before CLIP's own scaling, which the reference does not.
        output = clip_vision.encode_image(squashed.movedim(1, -1), crop=False)
    else:
        output = clip_vision.encode_image(picture)
    embedding: Tensor = output.image_embeds.unsqueeze(0)
    if embedding.shape[-1] != EMBEDDING_WIDTH:
        raise ValueError(
            f"clip_vision makes embeddings of {embedding.shape[-1]} numbers and SVD reads {EMBEDDING_WIDTH}: use the one of an "
            f"SVD checkpoint, from {SVD_LOADER}."
        )
    return embedding


def _encode(vae: Any, picture: Tensor, augmentation_level: float, seed: int) -> Tensor:
    """(1, 4, h, w), the mode and not scaled, as SVD takes it."""
    if augmentation_level > 0:
        noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(seed))
        # The reference adds it to pixels in [-1, 1]; these are in [0, 1].
        picture = picture + noise.to(picture) * (augmentation_level / 2)
    encoded: Tensor = vae.encode(picture[..., :3])
    if encoded.ndim != 4 or encoded.shape[1] != LATENT_CHANNELS:
        raise ValueError(
            f"vae makes latents of the shape {tuple(encoded.shape)} and SVD's are (1, {LATENT_CHANNELS}, h, w): use the VAE of "
            f"an SVD checkpoint, from {SVD_LOADER}."
        )
    return encoded
