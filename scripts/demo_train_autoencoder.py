"""Train the demo model's autoencoder: pictures on white and other grounds, and their edges as hints show them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from demo_train_kit import Run, indices
from demo_train_pictures import SIDE, SUBJECTS, load_pictures
from provide import say

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from torch import Tensor

STATE = "autoencoder_state.pt"
RESULT = "demo_vae.safetensors"
BATCH, PART = 16, 4
"""Pictures of a step, and of the parts that threads take in turn."""
AT_ONCE = 64
"""Pictures that are encoded together when nothing is trained."""
LATENT_CHANNELS, FACTOR = 4, 8
PLAIN, COLORED = 13, 2
"""Pictures of a batch on white, and on another ground; the rest are edges, white on black, in [0, 1]."""
LEARNING_RATE = 2e-3
KL_WEIGHT = 1e-4
GRADIENT_WEIGHT = 1.0
SCALE = 0.18215
"""Of SD1.5's latents: what the autoencoder gives has a deviation of one over this."""


def train_autoencoder(folder: Path, threads: int, minutes: float, total: int) -> None:
    """Train, and in the end write the autoencoder in half precision.

    Args:
        folder: With the pictures; takes state and result.
        threads: That work at once.
        minutes: After which it stops and can go on later.
        total: Steps of the whole training.
    """
    import torch
    from nextcontrol.models.demo_autoencoder import DemoAutoencoder
    from safetensors.torch import save_file

    torch.manual_seed(0)
    pictures, captions = load_pictures(folder)
    network = DemoAutoencoder()
    run = Run(folder / STATE, total, LEARNING_RATE, {"autoencoder": network}, decay=1e-4)
    run.train(lambda step: [partial(loss_of, network, *part) for part in parts_of(pictures, step)], threads, minutes)
    if not run.is_finished:
        return
    run.use_average()
    network.requires_grad_(requires_grad=False).eval()
    plain = pictures[[row["group"] in SUBJECTS for row in captions]]
    normalise(network, plain)
    save_file({key: tensor.half().contiguous() for key, tensor in network.state_dict().items()}, folder / RESULT)
    say(f"Autoencoder: {psnr_of(network, plain[::8]):.2f} dB on pictures on white.")


def on_ground(pictures: np.ndarray, ground: Tensor | float = 1.0) -> Tensor:
    """Map pictures with opacity, bytes (N, H, W, 4), and a ground, one or (N, 3, 1, 1), to (N, 3, H, W) in [0, 1]."""
    import torch

    given = torch.from_numpy(pictures).movedim(-1, 1).float() / 255
    color, opacity = given[:, :3], given[:, 3:]
    return color * opacity + ground * (1 - opacity)


def parts_of(pictures: np.ndarray, step: int) -> list[tuple[Tensor, Tensor]]:
    """The pictures of a step, in parts of (4, 3, 128, 128) as the encoder gets them, and noise for their latents."""
    import numpy as np
    import torch

    draw = torch.Generator().manual_seed(step)
    rows = np.fromiter(indices(len(pictures), BATCH, step), int)
    chosen = pictures[rows]
    flipped = torch.rand(BATCH, generator=draw).numpy() < 0.5
    chosen = np.where(flipped[:, None, None, None], chosen[:, :, ::-1], chosen)
    grounds = torch.ones(BATCH, 3, 1, 1)
    grounds[PLAIN:] = torch.rand(BATCH - PLAIN, 3, 1, 1, generator=draw)
    flat = on_ground(chosen, grounds)
    hints = edges(flat[PLAIN + COLORED :])
    batch = torch.cat([flat[: PLAIN + COLORED] * 2 - 1, hints])
    noise = torch.randn(BATCH, LATENT_CHANNELS, SIDE // FACTOR, SIDE // FACTOR, generator=draw)
    order = torch.arange(BATCH).view(PART, -1).T.flatten()  # a bit of each kind in every part
    return list(zip(batch[order].split(PART), noise.split(PART), strict=True))


def edges(pictures: Tensor) -> Tensor:
    """Thin white lines on black where brightness changes, (N, 3, H, W): what canny hints look like."""
    import torch
    from torch.nn import functional as F

    gray = pictures.mean(dim=1, keepdim=True)
    dx, dy = (F.pad(gray, pad, mode="replicate") for pad in ((0, 1, 0, 0), (0, 0, 0, 1)))
    change = torch.hypot(dx[..., 1:] - gray, dy[..., 1:, :] - gray)
    peak = change == F.max_pool2d(change, 3, stride=1, padding=1)
    return ((change > 0.08) & peak | (change > 0.3)).float().expand(-1, 3, -1, -1)


def loss_of(network: Any, batch: Tensor, noise: Tensor) -> Tensor:
    """Absolute error of pixels and of their differences, and a little divergence from a normal distribution."""
    mean, log_variance = network.distribution(batch)
    log_variance = log_variance.clamp(-30, 20)
    error = network.decode(mean + (0.5 * log_variance).exp() * noise) - batch
    slopes = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return error.abs().mean() + GRADIENT_WEIGHT * slopes + KL_WEIGHT * divergence


def encoded(network: Any, pictures: Tensor) -> Tensor:
    """Map pictures (N, 3, 128, 128) in [0, 1] to latents (N, 4, 16, 16)."""
    import torch

    with torch.inference_mode():
        return torch.cat([network.encode(part * 2 - 1) for part in pictures.split(AT_ONCE)])


def normalise(network: Any, pictures: np.ndarray) -> None:
    """Give latents zero mean, SD1.5's deviation and no correlation, by the two 1x1 convolutions.

    They are also turned so that the colours that the host's previews make of SD1.5's latents are about right.
    """
    import comfy.latent_formats
    import torch
    from torch.nn import functional as F

    flat = on_ground(pictures)
    latents = encoded(network, flat).clone()
    rows = latents.movedim(1, -1).flatten(0, 2).double()
    mean = rows.mean(dim=0)
    values, vectors = torch.linalg.eigh(torch.cov(rows.T))
    whitening = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    colors = F.avg_pool2d(flat * 2 - 1, FACTOR).movedim(1, -1).flatten(0, 2).double()
    factors = torch.tensor(comfy.latent_formats.SD15().latent_rgb_factors).double()
    # The rotation that brings white latents nearest to those whose preview has the true colours (Procrustes).
    wanted = (colors - colors.mean(dim=0)) @ torch.linalg.pinv(factors)
    left, _, right = torch.linalg.svd(((rows - mean) @ whitening).T @ wanted)
    forward = (whitening @ left @ right).T / SCALE
    _fold(network, mean, forward)


def _fold(network: Any, mean: Tensor, forward: Tensor) -> None:
    """Put `forward @ (latent - mean)` behind the encoder, and its inverse before the decoder."""
    import torch

    quant, post = network.quant_conv, network.post_quant_conv
    weight, bias = quant.weight.data[:, :, 0, 0].double(), quant.bias.data.double()
    # Noise of equal strength in each old channel becomes noise of the new channels' mean strength.
    change = torch.log(forward.square().sum(dim=1).mean())
    quant.weight.data[:4, :, 0, 0] = (forward @ weight[:4]).float()
    quant.bias.data[:4] = (forward @ (bias[:4] - mean)).float()
    quant.bias.data[4:] = (bias[4:] + change).float()
    back = torch.linalg.inv(forward)
    post_weight = post.weight.data[:, :, 0, 0].double()
    post.weight.data[:, :, 0, 0] = (post_weight @ back).float()
    post.bias.data[:] = (post.bias.data.double() + post_weight @ mean).float()


def psnr_of(network: Any, pictures: np.ndarray) -> float:
    """Mean over pictures of the decibels between picture and reconstruction."""
    import torch

    found = []
    with torch.inference_mode():
        for part in on_ground(pictures).split(AT_ONCE):
            back = ((network.decode(network.encode(part * 2 - 1)) + 1) / 2).clamp(0, 1)
            found.append(-10 * (back - part).square().mean(dim=(1, 2, 3)).log10())
    return float(torch.cat(found).mean())
