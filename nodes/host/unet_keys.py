"""Names of UNet weights: from diffusers or ldm to the host's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import comfy.utils

HOST_PREFIX = "diffusion_model."

# Parts of a video block that the host's own table lacks: (diffusers name, a neighbour that the table has, the host's name).
# A neighbour gives the block's place; what follows it is the same on both sides.
_TEMPORAL = (
    (r"^(.*\.resnets\.\d+)\.temporal_res_block\.(.*)$", r"\1.\2", "time_stack."),
    (r"^(.*\.resnets\.\d+)\.spatial_res_block\.(.*)$", r"\1.\2", ""),
)
_PLACED = (
    (r"^(.*\.resnets\.\d+)\.(time_mixer\..*)$", "conv1.weight", "in_layers.2.weight", ""),
    (r"^(.*\.attentions\.\d+)\.(time_mixer\..*)$", "norm.weight", "norm.weight", ""),
    (r"^(.*\.attentions\.\d+)\.temporal_transformer_blocks\.(.*)$", "norm.weight", "norm.weight", "time_stack."),
    (r"^(.*\.attentions\.\d+)\.time_pos_embed\.linear_1\.(.*)$", "norm.weight", "norm.weight", "time_pos_embed.0."),
    (r"^(.*\.attentions\.\d+)\.time_pos_embed\.linear_2\.(.*)$", "norm.weight", "norm.weight", "time_pos_embed.2."),
)
_HOST_BLOCK = re.compile(r"^(?:(?:input|output)_blocks\.\d+|middle_block)\.\d+\.")
_LDM = re.compile(r"^(input_blocks|middle_block|output_blocks|time_embed|label_emb|out)\.")


def to_host_keys(keys: Iterable[str], unet_config: Mapping[str, Any]) -> dict[str, str | None]:
    """Find the host's name of each UNet weight.

    Args:
        keys: Diffusers names (`UNet2DConditionModel`, `UNetSpatioTemporalConditionModel`) or ldm names, without prefix.
        unet_config: Of the host's model, which fixes the numbering of the blocks.

    Returns:
        For each key the name in the model's state dict, or None where there is no counterpart.
    """
    table = comfy.utils.unet_to_diffusers(dict(unet_config))
    found = {key: key if _LDM.match(key) else _from_diffusers(key, table) for key in keys}
    return {key: None if name is None else HOST_PREFIX + name for key, name in found.items()}


def _from_diffusers(key: str, table: Mapping[str, str]) -> str | None:
    if key in table:
        return table[key]
    for pattern, neighbour, inside in _TEMPORAL:
        if (plain := re.sub(pattern, neighbour, key)) != key and plain in table:
            block = _HOST_BLOCK.match(table[plain])
            return table[plain] if block is None else block[0] + inside + table[plain][block.end() :]
    for pattern, neighbour, host_neighbour, inside in _PLACED:
        if (match := re.match(pattern, key)) and (place := table.get(f"{match[1]}.{neighbour}")):
            return place.removesuffix(host_neighbour) + inside + match[2]
    return None


def published_names(unet_config: Mapping[str, Any], keys: Iterable[str]) -> dict[str, str]:
    """The names under which weights of a UNet are published.

    Args:
        unet_config: Of the host's model.
        keys: The host's names, without prefix.

    Returns:
        For each key the diffusers name, or the key itself (an ldm name) where there is none; `to_host_keys` reads both.
    """
    table = {name: key for key, name in comfy.utils.unet_to_diffusers(dict(unet_config)).items()}
    return {key: table.get(key, key) for key in keys}
