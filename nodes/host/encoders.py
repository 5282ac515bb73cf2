"""The host's VAE and text encoder as a dataset sees them, and names for the content of networks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...models.injection import FAMILY_TITLES, Family
from .ctrlora_hint import LATENT_CHANNELS
from .vae_family import family_of_vae
from .video_conditioning import SVD_LOADER, embed_picture

TEXT_TOKENS = 77
"""What the reference cuts captions to."""
SAMPLED = 4096


def digest_of_weights(
    tensors: Mapping[str, Tensor], is_whole: bool = False, types: Mapping[str, torch.dtype] | None = None
) -> str:
    """A name for the content of some weights.

    Args:
        tensors: By key.
        is_whole: Read every number; else up to 4,096 of each tensor, evenly spread, which tells models apart in a moment.
        types: What a tensor is computed in, where that may not be its own type; see `types_of`.

    Returns:
        Hexadecimal digits.
    """
    digest, types = hashlib.blake2b(digest_size=20), types or {}
    for key in sorted(tensors):
        flat = tensors[key].detach().reshape(-1)
        if not is_whole:
            flat = flat[:: max(1, flat.numel() // SAMPLED)]
        flat = flat.to(types.get(key, flat.dtype))
        digest.update(f"{key} {tuple(tensors[key].shape)} {flat.dtype}".encode())
        digest.update(flat.contiguous().view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()


def types_of(network: nn.Module) -> dict[str, torch.dtype]:
    """What each weight is computed in, where the host has noted it.

    Under dynamic VRAM a weight keeps the type of its file and is converted on its way to the device; otherwise it is converted
    when it is loaded. Both are one model to a training that is resumed.

    Returns:
        Types by the key of the weight in the network's state dict.
    """
    return {
        f"{name}.{leaf}" if name else leaf: dtype
        for name, layer in network.named_modules()
        for leaf in layer._parameters
        if (dtype := getattr(layer, f"{leaf}_comfy_model_dtype", None)) is not None
    }


def identity_of(patcher: ModelPatcher, prefix: str = "", *more: object, unread: tuple[str, ...] = ()) -> str:
    """A name for a network of the host: its own weights, and the patches (LoRAs) on them.

    Not for what it computes: that differs in the last digits from one number of threads to another.

    Args:
        patcher: Loaded or not.
        prefix: Of the keys that count.
        more: Whatever else belongs to it.
        unread: Ends of keys that do not count.

    Returns:
        Hexadecimal digits.
    """
    state = patcher.model.state_dict()
    own = {key: tensor for key, tensor in state.items() if key.startswith(prefix) and not key.endswith(unread)}
    # What is patched at the moment has its own weight here.
    own |= {key: kept.weight for key, kept in patcher.backup.items() if key in own}
    parts = [digest_of_weights(own, types=types_of(patcher.model)), *map(repr, more)]
    parts += [f"{key} {_described(patcher.patches[key])}" for key in sorted(patcher.patches) if key.startswith(prefix)]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=20).hexdigest()


def _described(value: Any) -> str:
    """A patch as text: the host keeps tuples, lists and adapters that hold numbers and tensors."""
    if isinstance(value, Tensor):
        return digest_of_weights({"": value})
    if isinstance(value, (list, tuple)):
        return f"({', '.join(map(_described, value))})"
    if hasattr(value, "weights"):
        return f"{type(value).__name__}{_described(value.weights)}"
    return repr(value) if isinstance(value, (int, float, str, type(None))) else type(value).__name__


class HostPictures:
    """Mean and deviation of latents; the host's own `encode` gives the mode alone.

    Args:
        vae: From any loader.
        family: Of the model that reads the latents.

    Raises:
        ValueError: It is not of that family's kind.
    """

    def __init__(self, vae: Any, family: Family = "sd15") -> None:
        title = FAMILY_TITLES[family]
        if vae.latent_channels != LATENT_CHANNELS or getattr(vae, "latent_dim", 2) != 2:
            raise ValueError(
                f"The VAE has {vae.latent_channels} latent channels and training {title} needs {LATENT_CHANNELS} for pictures: "
                f"connect the VAE of an {title} checkpoint."
            )
        found = family_of_vae(vae)
        if found is not None and found != ("sd15" if family == "svd" else family):  # SVD's encoder is SD1.5's
            raise ValueError(
                f"The VAE is {FAMILY_TITLES[found]}'s, whose latents mean something else to {title}: connect the VAE of an "
                f"{title} checkpoint."
            )
        self.vae = vae
        stage = vae.first_stage_model
        own = {key: t for key, t in stage.state_dict().items() if key.startswith(("encoder.", "quant_conv."))}
        self.identity = digest_of_weights(own or stage.state_dict(), types=types_of(stage))

    def encode(self, pixels: Tensor, is_hint: bool) -> tuple[Tensor, Tensor]:
        """See `training.encode.PictureEncoder.encode`. A hint goes in as it is, a target in the VAE's own range."""
        vae, stage = self.vae, self.vae.first_stage_model
        memory = vae.memory_used_encode(pixels.shape, vae.vae_dtype)
        comfy.model_management.load_models_gpu([vae.patcher], memory_required=memory)
        given = (pixels if is_hint else vae.process_input(pixels)).to(vae.vae_dtype).to(vae.device)
        with torch.inference_mode():
            if not hasattr(stage, "quant_conv") and not hasattr(stage, "regularization"):
                mean = stage.encode(given).float()
                return mean.cpu(), torch.zeros_like(mean).cpu()
            moments = stage.encoder(given)
            if hasattr(stage, "quant_conv"):  # SVD's has none
                moments = stage.quant_conv(moments)
            mean, log_variance = moments.float().cpu().chunk(2, dim=1)
            return mean, (0.5 * log_variance.clamp(-30, 20)).exp()


class HostVision:
    """Embeddings of pictures, prepared as the reference does.

    Args:
        clip_vision: From any loader.

    Raises:
        ValueError: There is none.
    """

    def __init__(self, clip_vision: Any) -> None:
        if clip_vision is None:
            raise ValueError(
                "The model is SVD, which reads a picture in the place of text, and clip_vision is missing: connect the one of "
                f"{SVD_LOADER}."
            )
        self.clip_vision = clip_vision
        self.identity = identity_of(clip_vision.patcher, "", "official")

    def encode(self, pixels: Tensor) -> Tensor:
        """See `training.clip_encode.VisionEncoder.encode`."""
        with torch.inference_mode():
            return embed_picture(self.clip_vision, pixels.movedim(1, -1), "official")[0].float().cpu()  # BCHW -> BHWC


# Of texts that are read with the pooled one, or without. Checkpoints lack these weights, and the host leaves whatever lies in
# memory: another in every process.
UNREAD = {True: ("clip_l.transformer.text_projection.weight",), False: ("text_projection.weight",)}


class HostTexts:
    """The text encoder's last hidden state, cut to 77 tokens, and SDXL's pooled text.

    Args:
        clip: From any loader.
        width: That the model and the method expect.
        family: Of the model.

    Raises:
        ValueError: There is none, or it gives texts of another width, or none that SDXL reads.
    """

    def __init__(self, clip: Any, width: int, family: Family = "sd15") -> None:
        if clip is None:
            raise ValueError(
                f"The model is {FAMILY_TITLES[family]}, which reads text, and clip is not connected: connect the CLIP of its "
                "checkpoint."
            )
        self.clip = clip
        self.has_pooled = family == "sdxl"
        found = self.encode("")["context"].shape[-1]
        if found != width:
            raise ValueError(
                f"The text encoder gives texts of width {found} and the model needs {width}: connect the CLIP of an "
                f"{FAMILY_TITLES[family]} checkpoint."
            )
        more = ["pooled"] if self.has_pooled else []
        self.identity = identity_of(clip.patcher, "", clip.layer_idx, *more, unread=UNREAD[self.has_pooled])

    def encode(self, text: str) -> dict[str, Tensor]:
        """See `training.encode.TextEncoder.encode`. Parentheses are no weights here: captions are plain text."""
        plain = text.replace("(", "\\(").replace(")", "\\)")
        with torch.inference_mode():
            if not self.has_pooled:
                encoded = self.clip.encode_from_tokens(self.clip.tokenize(plain))
                return {"context": encoded[0, :TEXT_TOKENS].float().cpu()}
            encoded, pooled = self.clip.encode_from_tokens(self.clip.tokenize(plain), return_pooled=True)
        if pooled is None:
            raise ValueError("The text encoder gives no pooled text, which SDXL reads: connect the CLIP of an SDXL checkpoint.")
        return {"context": encoded[0, :TEXT_TOKENS].float().cpu(), "pooled": pooled[0].float().cpu()}
