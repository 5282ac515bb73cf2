"""Where and how each ControlNeXt variant adds its control: one table, one formula.

Source: arXiv:2408.06070 (cross normalization); dvlab-research/ControlNeXt@ab4b3ac, the `unet.py` of each folder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Family = Literal["sd15", "sdxl", "svd"]
Site = Literal["after_conv_in", "after_conv_in_and_skip", "after_down0", "before_mid", "after_mid"]
Uncond = Literal["auto", "on", "off"]

NORMALIZATIONS = ("cross", "zero_convolution")
"""How a control meets the feature, as a file's header has it; the second is the paper's ablation, without statistics."""
FAMILY_TITLES: dict[Family, str] = {"sd15": "SD1.5", "sdxl": "SDXL", "svd": "SVD"}

# Source: ControlNeXt-SVD/models/unet_spatio_temporal_condition_controlnext.py, the scale passes through sigmoid * 1.3.
SVD_V1_GAIN = 1.3
# Source: ControlNeXt-SVD-v2/models/unet_spatio_temporal_condition_controlnext.py, a literal 0.2.
SVD_V2_GAIN = 0.2


@dataclass(frozen=True)
class Injection:
    """How one variant's control meets the UNet."""

    family: Family
    """Of the UNet it was trained with."""
    generation: int
    """Of the control module; see `ControlNeXtConfig.generation`."""
    site: Site
    """`after_conv_in_and_skip` also changes the first skip connection."""
    is_pooled_first: bool
    """Resize before taking statistics, or after normalising."""
    epsilon: float
    """Added to the control's standard deviation."""
    gain: float
    """Constant multiplier, or the factor behind the sigmoid of the learned scale."""
    has_sigmoid: bool = False
    """The learned scale passes through a sigmoid."""
    has_uncond: bool = True
    """Unconditional rows are controlled as the conditional ones are."""
    stem_padding: int = 1
    """Of the reference's inference code."""
    is_normalized: bool = True
    """The control takes on the feature's statistics; else it is added as it is, as the paper's ablation does."""

    def multiplier(self, scale: float | None, is_uncond: bool, rule: Uncond = "auto") -> float:
        """The factor of the normalised control, without the user's strength.

        Args:
            scale: The learned scale from the file, if it has one.
            is_uncond: For a row of the negative prompt under classifier-free guidance.
            rule: `auto` is the reference's, `on` treats the row as a conditional one, `off` gives 0.

        Returns:
            0 where nothing is added.
        """
        is_quiet = is_uncond and (rule == "off" or (rule == "auto" and not self.has_uncond))
        scale = 1.0 if scale is None else scale
        if not self.has_sigmoid:
            return 0.0 if is_quiet else self.gain * scale
        if is_uncond and rule == "off":
            return 0.0
        # The reference zeroes the scale before the sigmoid: with `auto`, 0.65 is left for unconditional rows.
        return self.gain / (1 + math.exp(-(0.0 if is_quiet else scale)))


INJECTIONS: Mapping[str, Injection] = {
    # ControlNeXt-SD1.5-Training/models/unet.py:1236
    "sd15": Injection("sd15", 3, "after_down0", is_pooled_first=True, epsilon=1e-12, gain=1.0),
    # ControlNeXt-SD1.5/models/unet.py:1270
    "sd15_v0": Injection("sd15", 1, "after_mid", is_pooled_first=True, epsilon=1e-12, gain=1.0),
    # ControlNeXt-SDXL/models/unet.py:1205
    "sdxl": Injection("sdxl", 3, "after_conv_in", is_pooled_first=False, epsilon=1e-12, gain=1.0),
    # The same file from 2024-08-10 (0f97c42) to 2024-08-20 (8ac4b73)
    "sdxl_skip": Injection("sdxl", 3, "after_conv_in_and_skip", is_pooled_first=False, epsilon=1e-12, gain=1.0),
    "svd_v1": Injection(
        "svd", 2, "before_mid", is_pooled_first=False, epsilon=1e-5, gain=SVD_V1_GAIN,
        has_sigmoid=True, has_uncond=False, stem_padding=0,
    ),
    # ControlNeXt-SVD-v2/models/unet_spatio_temporal_condition_controlnext.py:456
    "svd_v2": Injection(
        "svd", 3, "after_down0", is_pooled_first=False, epsilon=1e-5, gain=SVD_V2_GAIN,
        has_uncond=False, stem_padding=0,
    ),
}  # fmt: skip


def variants_of(generation: int) -> tuple[str, ...]:
    """The variants whose control module is of this generation."""
    return tuple(name for name, injection in INJECTIONS.items() if injection.generation == generation)


def _exact(x: Tensor) -> Tensor:
    """In fp32, or in fp64 as given: half precision has no room for epsilon."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Unbiased standard deviation and mean over C, H, W, kept as (N, 1, 1, 1)."""
    return torch.std_mean(x, dim=(1, 2, 3), keepdim=True, correction=1)


def standardize(control: Tensor, size: tuple[int, int], injection: Injection) -> Tensor:
    """Bring each control to mean 0, deviation 1 and the feature's size: what cross normalization can do without it.

    Args:
        control: (N, C, H, W), any scale.
        size: Height and width of the feature.
        injection: Its order of pooling and its epsilon count. One without normalization leaves the control's scale.

    Returns:
        (N, C, *size) in fp32, or in fp64 as given.
    """
    control = _exact(control)
    if not injection.is_normalized:
        return F.adaptive_avg_pool2d(control, size)
    if injection.is_pooled_first:
        control = F.adaptive_avg_pool2d(control, size)
    deviation, mean = _statistics(control)
    control = (control - mean) / (deviation + injection.epsilon)
    # Pooling is linear and keeps constants, so it commutes with the feature's scale and shift that follow.
    return control if injection.is_pooled_first else F.adaptive_avg_pool2d(control, size)


def match_statistics(standard: Tensor, feature: Tensor, injection: Injection) -> Tensor:
    """Give a standardized control the mean and deviation of the feature, sample by sample.

    Args:
        standard: (N, C, H, W) or broadcastable, from `standardize`.
        feature: (N, C, H, W), the activation it will be added to, any dtype.
        injection: As for `standardize`. One without normalization leaves the control as it is.

    Returns:
        (N, C, H, W) in fp32, or in fp64 as given; gradients flow through the statistics of both, as in the reference.
    """
    if not injection.is_normalized:
        return standard.expand(len(feature), -1, -1, -1)
    deviation, mean = _statistics(_exact(feature))
    return torch.addcmul(mean, standard, deviation)


def cross_normalize(control: Tensor, feature: Tensor, injection: Injection) -> Tensor:
    """Give `control` the size, mean and standard deviation of `feature`, sample by sample.

    Args:
        control: (N, C, H, W), any scale. Statistics are over C, H, W.
        feature: (N, C, h, w), the UNet activation it will be added to.
        injection: Order of pooling, epsilon, and whether there are statistics at all.

    Returns:
        (N, C, h, w) in fp32, or in fp64 as given.

    Raises:
        ValueError: The batch or channel counts differ.

    Source: arXiv:2408.06070; dvlab-research/ControlNeXt@ab4b3ac ControlNeXt-SDXL/models/unet.py:1208-1210.
    """
    if control.shape[:2] != feature.shape[:2]:
        raise ValueError(
            f"The control is {tuple(control.shape)} and the feature {tuple(feature.shape)}: "
            "batch and channels must be equal, use the module that belongs to this model."
        )
    return match_statistics(standardize(control, (feature.shape[-2], feature.shape[-1]), injection), feature, injection)
