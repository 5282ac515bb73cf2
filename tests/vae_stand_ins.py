"""What stands in for the host's VAE and CLIP vision: simple, and remembers what it was shown."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from seeded import seeded_tensor
from torch.nn import functional as F


class Clip:
    """Stands for the host's CLIP vision: remembers the picture."""

    image_size = 32

    def __init__(self, width=1024):
        self.width, self.calls = width, []

    def encode_image(self, image, crop=True):
        """Remember, and return something."""
        self.calls.append((image, crop))
        return SimpleNamespace(image_embeds=seeded_tensor("embedding", [len(image), self.width]))


class Vae:
    """Stands for the host's VAE: means of 8x8 pixels, remembers the picture."""

    def __init__(self, channels=4):
        self.channels, self.seen = channels, []

    def encode(self, pixels):
        """Remember, and return something."""
        self.seen.append(pixels)
        return F.avg_pool2d(pixels.movedim(-1, 1), 8)[:, :1].repeat(1, self.channels, 1, 1)


class Means:
    """In the place of a VAE: means of 8x8 pixels, so that a part of the picture becomes that part of the latent."""

    latent_channels, latent_dim, downscale_ratio = 4, 2, 8

    def encode(self, pixels):
        """(N, 4, h, w)."""
        means = F.avg_pool2d(pixels.movedim(-1, 1), 8)
        return torch.cat([means, means.mean(dim=1, keepdim=True)], dim=1)
