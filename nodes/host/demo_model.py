"""The demo model: the host's own UNet, text encoder, tokenizer and VAE objects around the small networks in demo/."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import comfy.clip_model
import comfy.model_management
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.model_patcher import ModelPatcher
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ...models.demo_autoencoder import DemoAutoencoder
from .folders import DEMO
from .managed import patcher_class
from .unet_structure import DEMO_TEXT_WIDTH

LOG = logging.getLogger("nextcontrol")
UNET_FILE, TEXT_FILE, VAE_FILE = "demo_unet.safetensors", "demo_text_encoder.safetensors", "demo_vae.safetensors"
VOCABULARY = "vocabulary"
"""In the text encoder's file: the tokens that have an embedding of their own."""
# SD1.5's topology, without what costs most on a processor: one residual block a level, not two, and no attention on the
# finest of the four levels.
UNET_CONFIG: dict[str, Any] = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 64, "channel_mult": [1, 2, 2, 1],
    "num_res_blocks": [1, 1, 1, 1], "transformer_depth": [0, 1, 1, 0], "transformer_depth_output": [0, 0, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1, "context_dim": DEMO_TEXT_WIDTH, "use_spatial_transformer": True,
    "use_linear_in_transformer": False, "adm_in_channels": None, "use_temporal_attention": False, "legacy": False,
}  # fmt: skip
END_TOKEN = 49407
"""The last of SD1.5's vocabulary."""
TEXT_CONFIG: dict[str, Any] = {
    "num_hidden_layers": 2, "hidden_size": DEMO_TEXT_WIDTH, "num_attention_heads": 4,
    "intermediate_size": 4 * DEMO_TEXT_WIDTH, "hidden_act": "quick_gelu", "max_position_embeddings": 77,
    "eos_token_id": END_TOKEN,
}  # fmt: skip
# The host makes a VAE object for networks that it knows; this is the smallest, and the object then gets the demo's.
_DONOR: dict[str, Any] = {
    "embed_dim": 4,
    "ddconfig": {
        "double_z": True, "z_channels": 4, "resolution": 128, "in_channels": 3, "out_ch": 3, "ch": 32,
        "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
    },
}  # fmt: skip


class DemoSD15(comfy.supported_models.SD15):
    """SD1.5's noise schedule, prediction and latents, for a UNet of other widths."""


class VocabularyEmbedding(nn.Module):
    """Embeddings of some tokens of SD1.5's vocabulary; all others share the first row.

    Args:
        vocabulary: (K,), the tokens that have a row of their own.
        operations: Layer classes.
        factory: Device and dtype.
    """

    rows: Tensor

    def __init__(self, vocabulary: Tensor, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.table = operations.Embedding(len(vocabulary) + 1, DEMO_TEXT_WIDTH, **factory)
        rows = torch.zeros(END_TOKEN + 1, dtype=torch.long)
        rows[vocabulary.long()] = torch.arange(1, len(vocabulary) + 1)
        self.register_buffer("rows", rows, persistent=False)

    @property
    def weight(self) -> Tensor:
        """(K + 1, C)."""
        return self.table.weight

    def forward(self, tokens: Tensor, **options: Any) -> Tensor:
        """Map tokens (B, T) to (B, T, C)."""
        return self.table(self.rows[tokens.to(self.rows.device)], **options)


class DemoTextModel(comfy.clip_model.CLIPTextModel):
    """The host's CLIP text model with few layers and a small vocabulary, filled at once: the host may load it at once."""

    def __init__(
        self,
        config: dict[str, Any],
        dtype: Any,
        device: Any,
        operations: Any,
        *,
        vocabulary: Tensor,
        fill: Callable[[nn.Module, torch.dtype], None] = lambda _network, _dtype: None,
    ) -> None:
        super().__init__(config, dtype, device, operations)
        self.set_input_embeddings(VocabularyEmbedding(vocabulary, operations, dtype=dtype, device=device))
        fill(self, dtype)


def load_demo_model(folder: Path = DEMO, disable_dynamic: bool = False) -> tuple[ModelPatcher, Any, Any]:
    """Load the demo model.

    Args:
        folder: With the three files.
        disable_dynamic: Load each network whole, also where the host has dynamic VRAM.

    Returns:
        The host's MODEL, CLIP and VAE.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged or of another model.
    """
    unet, text, vae = (_read(folder / name) for name in (UNET_FILE, TEXT_FILE, VAE_FILE))
    vocabulary = text.pop(VOCABULARY, None)
    if vocabulary is None or vocabulary.ndim != 1 or vocabulary.dtype != torch.int32:
        raise ValueError(_damaged(folder / TEXT_FILE, f"its list of tokens, '{VOCABULARY}', is missing or no list"))
    model = build_model(unet, folder / UNET_FILE, disable_dynamic)
    clip = build_clip(text, vocabulary, folder / TEXT_FILE, disable_dynamic)
    loaded = model, clip, build_vae(vae, folder / VAE_FILE, disable_dynamic)
    for index, patcher in enumerate(patchers_of(loaded)):
        # The host calls this to make the model anew: on another device, or without dynamic VRAM.
        patcher.cached_patcher_init = (load_demo_patchers, (folder,), index)
    count = sum(tensor.numel() for part in (unet, text, vae) for tensor in part.values())
    LOG.info("Demo model: %.1f million parameters, SD1.5's topology, 128x128 pictures; a demo, no replacement.", count / 1e6)
    return loaded


def load_demo_patchers(folder: Path, disable_dynamic: bool = False) -> list[ModelPatcher]:
    """As `load_demo_model`; the patchers of the three alone."""
    return patchers_of(load_demo_model(folder, disable_dynamic))


def patchers_of(loaded: tuple[ModelPatcher, Any, Any]) -> list[ModelPatcher]:
    """What the host manages memory with, of MODEL, CLIP and VAE."""
    model, clip, vae = loaded
    return [model, clip.patcher, vae.patcher]


def build_model(weights: Mapping[str, Tensor], source: Path, disable_dynamic: bool = False) -> ModelPatcher:
    """The MODEL of a UNet's weights; `source` is named in errors."""
    management = comfy.model_management
    device, offload = management.get_torch_device(), management.unet_offload_device()
    config = DemoSD15(UNET_CONFIG)
    types = list(config.supported_inference_dtypes)
    size = sum(tensor.numel() for tensor in weights.values())
    dtype = management.unet_dtype(model_params=size, supported_dtypes=types, weight_dtype=torch.float16)
    config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, types))
    model = config.get_model({}, "").to(offload)
    _fill(model.diffusion_model, dtype, weights, source)
    return patcher_class(disable_dynamic)(model, load_device=device, offload_device=offload)


def build_clip(weights: Mapping[str, Tensor], vocabulary: Tensor, source: Path, disable_dynamic: bool = False) -> Any:
    """The CLIP of a text encoder's weights; `source` is named in errors."""
    target = comfy.supported_models_base.ClipTarget(lambda **_: _tokenizer(), comfy.sd1_clip.SD1ClipModel)
    target.params = {
        "clip_model": comfy.sd1_clip.SDClipModel,
        "textmodel_json_config": TEXT_CONFIG,
        "model_class": partial(DemoTextModel, vocabulary=vocabulary, fill=partial(_fill, weights=weights, source=source)),
        "return_projected_pooled": False,
    }
    # Only a host that would load it layer by layer knows the word.
    options = {"disable_dynamic": True} if patcher_class(disable_dynamic) is not patcher_class() else {}
    return comfy.sd.CLIP(target, parameters=sum(tensor.numel() for tensor in weights.values()), **options)


def build_vae(weights: Mapping[str, Tensor], source: Path, disable_dynamic: bool = False) -> Any:
    """The VAE of an autoencoder's weights; `source` is named in errors."""
    donor = AutoencoderKL(**_DONOR).state_dict()
    vae = comfy.sd.VAE(sd=donor, config={"params": _DONOR})
    network = DemoAutoencoder(comfy.ops.disable_weight_init).eval().requires_grad_(requires_grad=False)
    _fill(network, vae.vae_dtype, weights, source)
    vae.first_stage_model = network
    old = vae.patcher
    vae.patcher = patcher_class(disable_dynamic)(network, load_device=old.load_device, offload_device=old.offload_device)
    # What `VAE.model_size()` gives, which ComfyUI 0.3.64 does not have.
    vae.size = comfy.model_management.module_size(network)
    return vae


@cache
def _tokenizer() -> Any:
    """The host's, which takes longer to read than all weights: one for all."""
    return comfy.sd1_clip.SD1Tokenizer()


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(
            f"The demo model's '{path.name}' is not in '{path.parent}': install NextControl again, it is part of it."
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(_damaged(path, f"it cannot be read, {error}")) from error


def _fill(network: nn.Module, dtype: torch.dtype, weights: Mapping[str, Tensor], source: Path) -> None:
    wanted = dict(_shapes_of(network))
    found = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    if wanted != found:
        key = min(key for key in wanted | found if wanted.get(key) != found.get(key))
        shapes = [list(shapes[key]) if key in shapes else "missing" for shapes in (found, wanted)]
        raise ValueError(_damaged(source, f"'{key}' is {shapes[0]} in it and should be {shapes[1]}"))
    network.load_state_dict(weights)
    # Layers that were empty until now have taken the file's type.
    network.to(dtype)


def _shapes_of(network: nn.Module) -> Iterator[tuple[str, tuple[int, ...]]]:
    """What a state dict holds, layers included that the host leaves empty until they are filled, as under dynamic VRAM."""
    for key, tensor in network.state_dict().items():
        yield key, tuple(tensor.shape)
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear) and layer.weight is None:
            yield f"{name}.weight", (layer.out_features, layer.in_features)
            if layer.comfy_need_lazy_init_bias:
                yield f"{name}.bias", (layer.out_features,)


def _damaged(path: Path, fault: str) -> str:
    return f"The demo model's '{path.name}' is damaged ({fault}): install NextControl again, it is part of it."
