"""The autoencoder of the demo model: factor 8, 4 channels, small enough for a laptop's processor."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

PATCH = 4
"""Side of the cells that become channels before the first convolution, and pixels after the last."""
WIDTHS = (64, 128)
"""Channels at a quarter and at an eighth of the picture's side."""
ENCODER_BLOCKS = 2
DECODER_BLOCKS = 3
"""Residual blocks at each of the two widths."""
LATENT_CHANNELS = 4
GROUPS = 32


class DemoAutoencoder(nn.Module):
    """Pictures in [-1, 1] to latents of SD1.5's shape and deviation, and back.

    The parts have the names that SD1.5's autoencoder has for them.

    Args:
        operations: Layer classes: `torch.nn`, or the host's.
    """

    def __init__(self, operations: Any = nn) -> None:
        super().__init__()
        narrow, wide = WIDTHS
        cells = 3 * PATCH**2
        conv = operations.Conv2d
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(PATCH),
            conv(cells, narrow, 3, padding=1),
            *(Residual(narrow, operations) for _ in range(ENCODER_BLOCKS)),
            conv(narrow, wide, 3, stride=2, padding=1),
            *(Residual(wide, operations) for _ in range(ENCODER_BLOCKS)),
            *_head(wide, 2 * LATENT_CHANNELS, operations),
        )
        self.quant_conv = conv(2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS, 1)
        self.post_quant_conv = conv(LATENT_CHANNELS, LATENT_CHANNELS, 1)
        self.decoder = nn.Sequential(
            conv(LATENT_CHANNELS, wide, 3, padding=1),
            *(Residual(wide, operations) for _ in range(DECODER_BLOCKS)),
            nn.Upsample(scale_factor=2),
            conv(wide, narrow, 3, padding=1),
            *(Residual(narrow, operations) for _ in range(DECODER_BLOCKS)),
            *_head(narrow, cells, operations),
            nn.PixelShuffle(PATCH),
        )

    def distribution(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, 3, H, W) to the mean and the log variance of latents, each (B, 4, H/8, W/8)."""
        mean, log_variance = self.quant_conv(self.encoder(pictures)).chunk(2, dim=1)
        return mean, log_variance

    def encode(self, pictures: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [-1, 1] to the mean, (B, 4, H/8, W/8)."""
        return self.distribution(pictures)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Map (B, 4, h, w) to pictures (B, 3, 8h, 8w), about in [-1, 1]."""
        return self.decoder(self.post_quant_conv(latents))


class Residual(nn.Module):
    """Two convolutions, each behind a norm, and a way around them."""

    def __init__(self, channels: int, operations: Any) -> None:
        super().__init__()
        self.norm1 = operations.GroupNorm(GROUPS, channels)
        self.conv1 = operations.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = operations.GroupNorm(GROUPS, channels)
        self.conv2 = operations.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(hidden)))


def _head(channels: int, channels_out: int, operations: Any) -> list[nn.Module]:
    norm = operations.GroupNorm(GROUPS, channels)
    return [norm, nn.SiLU(), operations.Conv2d(channels, channels_out, 3, padding=1)]
