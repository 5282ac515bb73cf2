"""The encoder of the host's UNet as the start of a control network.

Source: arXiv:2302.05543, section 3.1; xyfJASON/ctrlora@b4422b4 scripts/tool_add_control.py.
"""

from __future__ import annotations

import comfy.lora
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...models.ctrlora import CtrLoRAConfig
from ...models.ctrlora_file import check_base
from ...models.detect import UnsupportedCheckpointError
from .ctrlora_hint import LATENT_CHANNELS
from .unet_keys import HOST_PREFIX
from .unet_structure import check_channels, unet_config_of

PARTS = ("time_embed.", "input_blocks.", "middle_block.")


def copy_encoder(model: ModelPatcher) -> tuple[dict[str, Tensor], CtrLoRAConfig]:
    """Copy the encoder: time embedding, encoder blocks and middle block, with zero convolutions that are zero.

    Args:
        model: From any loader, loaded or not; LoRAs on it count.

    Returns:
        fp32 copies on the CPU, keys as a control network has them, without `control_model.`; and the sizes. The weights are
        those before the host rounds them to the type that it keeps them in.

    Raises:
        ValueError: The UNet is not of SD1.5's kind.
    """
    config = encoder_config(model)
    with torch.inference_mode(mode=False), torch.no_grad():
        tensors = _patched_weights(model)
        return tensors | _zero_convolutions(tensors), config


def encoder_config(model: ModelPatcher) -> CtrLoRAConfig:
    """The sizes that a copy has, before anything is copied: errors as in `copy_encoder`."""
    check_topology(model)
    own = model.model.diffusion_model.state_dict()
    tensors = {key: tensor.to("meta") for key, tensor in own.items() if key.startswith(PARTS)}
    try:
        return check_base(tensors | _zero_convolutions(tensors), "the model")
    except UnsupportedCheckpointError as error:
        raise ValueError(
            "The encoder of the model is built otherwise than SD1.5's and cannot become a control network here: load an SD1.5 "
            "checkpoint with all its blocks."
        ) from error


def check_topology(model: ModelPatcher) -> None:
    """Refuse a UNet whose encoder is no control network for pictures, before anything is copied: see `copy_encoder`."""
    unet = getattr(model.model, "diffusion_model", None)
    if not isinstance(unet, UNetModel):
        raise ValueError(_refusal(model))
    config = unet_config_of(model)
    is_other = config.get("use_temporal_attention") or config.get("use_linear_in_transformer") or unet.num_classes is not None
    has_own_heads = config.get("num_heads", -1) > 0
    if is_other or not has_own_heads:
        raise ValueError(_refusal(model))
    check_channels(model)
    if unet.input_blocks[0][0].in_channels != LATENT_CHANNELS:
        raise ValueError(_refusal(model))


def _refusal(model: ModelPatcher) -> str:
    kind = type(getattr(model.model, "model_config", model.model)).__name__
    return (
        f"The model is of the family {kind}, whose encoder cannot become a control network here: load an SD1.5 checkpoint "
        f"whose latents have {LATENT_CHANNELS} channels."
    )


def _patched_weights(model: ModelPatcher) -> dict[str, Tensor]:
    tensors = {}
    for part in PARTS:
        for key, ((weight, convert), *patches) in model.get_key_patches(HOST_PREFIX + part).items():
            own = convert(weight.detach().to("cpu", torch.float32, copy=True), inplace=True)
            tensors[key.removeprefix(HOST_PREFIX)] = comfy.lora.calculate_weight(patches, own, key)
    return tensors


def _zero_convolutions(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """One for the output of each block, of its channels."""
    blocks = len({key.split(".")[1] for key in tensors if key.startswith("input_blocks.")})
    widths = {f"zero_convs.{number}.0": _width(tensors, f"input_blocks.{number}.") for number in range(blocks)}
    widths["middle_block_out.0"] = _width(tensors, "middle_block.")
    zeros = {}
    for name, width in widths.items():
        zeros[f"{name}.weight"] = torch.zeros(width, width, 1, 1)
        zeros[f"{name}.bias"] = torch.zeros(width)
    return zeros


def _width(tensors: dict[str, Tensor], block: str) -> int:
    for last in ("0.out_layers.3.bias", "0.op.bias", "0.bias"):
        if block + last in tensors:
            return len(tensors[block + last])
    raise ValueError(f"The model's '{block}' is of an unknown kind: load an SD1.5 checkpoint.")
