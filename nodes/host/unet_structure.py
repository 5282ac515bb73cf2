"""What the host's UNet is, and where in it a control enters: found from its structure, never from literal numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, UNetModel
from comfy.model_patcher import ModelPatcher

from ...models.injection import FAMILY_TITLES, Family, Site

DEMO_TEXT_WIDTH = 96
"""Of the demo model, which is SD1.5 in small."""
_TEXT_WIDTHS: dict[int, Family] = {768: "sd15", DEMO_TEXT_WIDTH: "sd15", 2048: "sdxl"}


@dataclass(frozen=True)
class Place:
    """A hook of the host's UNet that sees one feature."""

    hook: str
    """Name of the patch list in `transformer_options["patches"]`."""
    block: tuple[str, int]
    """Of `transformer_options["block"]` when the feature passes."""
    channels: int
    """Of the feature."""


def family_of(model: ModelPatcher) -> Family:
    """The family of a loaded model.

    Args:
        model: From any loader.

    Returns:
        A family that ControlNeXt exists for.

    Raises:
        ValueError: It is of another family.
    """
    unet = getattr(model.model, "diffusion_model", None)
    config = unet_config_of(model) if isinstance(unet, UNetModel) else {}
    if config.get("use_temporal_attention"):
        return "svd"
    family = _TEXT_WIDTHS.get(config.get("context_dim") or 0)
    if family is None:
        kind = type(getattr(model.model, "model_config", model.model)).__name__
        raise ValueError(
            f"The model is of the family {kind}: ControlNeXt exists for {', '.join(FAMILY_TITLES.values())}, "
            "load a checkpoint of one of these."
        )
    return family


def reads_pooled_text(model: ModelPatcher) -> bool:
    """Whether the UNet reads a pooled text beside the text, as SDXL's does."""
    config = unet_config_of(model)
    return config.get("num_classes") is not None and not config.get("use_temporal_attention")


def is_video(model: ModelPatcher) -> bool:
    """Whether the UNet has a time axis, as SVD's does."""
    is_unet = isinstance(getattr(model.model, "diffusion_model", None), UNetModel)
    return is_unet and bool(unet_config_of(model).get("use_temporal_attention"))


def unet_config_of(model: ModelPatcher) -> dict[str, Any]:
    """The arguments that the host built the UNet with."""
    return dict(model.model.model_config.unet_config)


def check_channels(model: ModelPatcher) -> None:
    """Refuse a model that reads something beside the noisy latent, or returns something else than a latent.

    Raises:
        ValueError: Such as an inpainting or an InstructPix2Pix checkpoint, which read more channels than a latent has.
    """
    unet: UNetModel = model.model.diffusion_model
    own = model.model.latent_format.latent_channels
    read = unet.input_blocks[0][0].in_channels
    if read != own:
        raise ValueError(
            f"The model reads {read} channels and its latents have {own}, as with inpainting and InstructPix2Pix checkpoints, "
            "which training does not know: load the ordinary checkpoint."
        )
    if unet.out_channels != own:
        raise ValueError(
            f"The model returns {unet.out_channels} channels and its latents have {own}, which training does not know: load "
            "another checkpoint."
        )


def find_place(unet: UNetModel, site: Site) -> Place:
    """Where the feature of a site passes a hook.

    Args:
        unet: The host's, with any number of levels and blocks.
        site: A place in the papers' terms.

    Returns:
        The hook, the block's id and the feature's channels.

    Raises:
        ValueError: The UNet has a single level and so no such place.
    """
    blocks = unet.input_blocks
    if site == "after_conv_in":
        return Place("input_block_patch_after_skip", ("input", 0), blocks[0][0].out_channels)
    if site == "after_conv_in_and_skip":
        return Place("input_block_patch", ("input", 0), blocks[0][0].out_channels)
    if site == "before_mid":
        return Place("input_block_patch_after_skip", ("input", len(blocks) - 1), unet.middle_block[0].channels)
    if site == "after_mid":
        # No hook lies between the middle block and the first output block; the first skip is left alone there.
        return Place("output_block_patch", ("output", 0), unet.middle_block[0].out_channels)
    for index, block in enumerate(blocks):
        if isinstance(block[0], Downsample):
            return Place("input_block_patch_after_skip", ("input", index), block[0].out_channels)
    raise ValueError("The UNet has one level only and ControlNeXt enters after the first: use a complete model.")
