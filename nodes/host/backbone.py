"""The host's UNet as a trainer sees it: frozen, with a graph from where the control enters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import comfy.model_management
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel, forward_timestep_embed
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ...models.foreign import shown
from ...training.backbone import Control
from ...training.objective import Objective
from .hints import LATENT_SCALE
from .noise_schedule import objective_of
from .unet_structure import check_channels, find_place

_PATCHED = ("patches", "patches_replace", "wrappers", "callbacks")


class HostBackbone:
    """Drives the blocks of the host's UNet one by one.

    Autograd follows from where the control enters: what lies before has nothing to learn and builds no graph. Whatever is added
    is added out of place: the host's own addition writes into activations that autograd needs.

    Args:
        model: Loaded, see `training_mode`.
        checkpointing: Keep each block's input alone, and compute the block again in the backward pass.
    """

    def __init__(self, model: ModelPatcher, checkpointing: bool = False) -> None:
        self.model = model.model
        self.unet: UNetModel = model.model.diffusion_model
        self.device: torch.device = model.load_device
        self.checkpointing = checkpointing
        self.objective: Objective = objective_of(model)

    def predict(self, noisy: Tensor, times: Tensor, context: Tensor, control: Control, extras: Mapping[str, Tensor]) -> Tensor:
        """See `training.backbone.Backbone.predict`. SDXL reads "pooled" (B, D) among the extras."""
        unet = self.unet
        place = None if control.site is None else find_place(unet, control.site)
        sides: list[Tensor | None] = list(control.residuals) or [None] * (len(unet.input_blocks) + 1)
        frames = self._frames(noisy, extras)
        is_forward = True
        with weights_in_place(unet, control.weights):
            embedding = unet.time_embed(timestep_embedding(times, unet.model_channels).to(noisy.dtype))
            if unet.num_classes is not None:
                embedding = embedding + unet.label_emb(self._vector(noisy, extras).to(noisy))

            def run(block: Any, x: Tensor, shape: Any = None) -> Tensor:
                options = {"optimized_attention_override": plain_attention}
                # The backward pass may compute a block again, when the trained weights have left their place.
                with nullcontext() if is_forward else weights_in_place(unet, control.weights):
                    return forward_timestep_embed(block, x, embedding, context, options, shape, num_video_frames=frames)

            x, skips = noisy, []
            for number, block in enumerate(unet.input_blocks):
                x = self._run(run, block, x)
                skips.append(x)
                if place is not None and control.inject is not None and place.block == ("input", number):
                    x = control.inject(x)
                    if place.hook == "input_block_patch":
                        skips[-1] = x
            if unet.middle_block is not None:
                x = self._run(run, unet.middle_block, x)
            x = _added(x, sides.pop())
            if place is not None and control.inject is not None and place.block[0] == "output":
                x = control.inject(x)
            for block in unet.output_blocks:
                x = torch.cat([x, _added(skips.pop(), sides.pop())], dim=1)
                x = self._run(run, block, x, skips[-1].shape if skips else None)
            predicted = unet.out(x)
        is_forward = False
        return predicted

    def _run(self, run: Callable[..., Tensor], *given: Any) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(run, *given, use_reentrant=False)
        return run(*given)

    def _frames(self, noisy: Tensor, extras: Mapping[str, Tensor]) -> int | None:  # noqa: ARG002 - for clips
        """How many rows belong together; None where each is a picture of its own."""
        return None

    def _vector(self, noisy: Tensor, extras: Mapping[str, Tensor]) -> Tensor:
        """(B, D), the pooled text with the size of the picture, as the host makes it for sampling."""
        pooled = extras["pooled"]
        height, width = (side * LATENT_SCALE for side in noisy.shape[-2:])
        return self.model.encode_adm(pooled_output=pooled, device=pooled.device, width=width, height=height)


@contextmanager
def weights_in_place(network: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """A network with some tensors in the place of its own, for as long as the block lasts.

    Args:
        network: Left as it was.
        weights: By name.

    Yields:
        While they are in place; autograd sees them.
    """
    kept: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for name, tensor in weights.items():
            path, _, leaf = name.rpartition(".")
            own: dict[str, Any] = network.get_submodule(path)._parameters
            kept.append((own, leaf, own[leaf]))
            own[leaf] = tensor
        yield
    finally:
        for own, leaf, parameter in kept:
            own[leaf] = parameter


def _added(x: Tensor, control: Tensor | None) -> Tensor:
    return x if control is None else x + control


def plain_attention(
    _original: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    mask: Tensor | None = None,
    attn_precision: Any = None,  # noqa: ARG001 - the host's signature
    skip_reshape: bool = False,
    skip_output_reshape: bool = False,
    **_unused: Any,
) -> Tensor:
    """Attention that autograd can follow; some of the host's write into what they have computed."""
    if not skip_reshape:
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return attended if skip_output_reshape else attended.transpose(1, 2).flatten(2)


def check_model(model: ModelPatcher, context_width: int, base_name: str) -> None:
    """Refuse a model that a base cannot be trained with.

    Args:
        model: From any loader.
        context_width: Text width of the base.
        base_name: For the error.

    Raises:
        ValueError: It is of another family, or `check_trainable` refuses it.
    """
    unet = getattr(model.model, "diffusion_model", None)
    config = getattr(model.model, "model_config", None)
    arguments = config.unet_config if config is not None else {}
    width = arguments.get("context_dim")
    if not isinstance(unet, UNetModel) or arguments.get("use_temporal_attention") or width != context_width:
        raise ValueError(
            f"'{shown(base_name)}' is made for text of width {context_width} (SD1.5) and the model is of the family "
            f"{type(config).__name__} (text width {width}): load an SD1.5 checkpoint."
        )
    check_trainable(model)


def check_trainable(model: ModelPatcher) -> None:
    """Refuse a model that this backbone does not run as the host does.

    Args:
        model: From any loader, with a UNet.

    Raises:
        ValueError: It reads more than the noisy latent, predicts something else, or carries patches that the trainer would
            not run.
    """
    check_channels(model)
    check_unpatched(model)
    objective_of(model)


def check_unpatched(model: ModelPatcher) -> None:
    """Refuse a model with patches that the trainer would not run; LoRAs are weights and welcome.

    Raises:
        ValueError: It carries some.
    """
    found = [name for name in _PATCHED if model.model_options.get("transformer_options", {}).get(name)]
    found += [name for name in ("model_function_wrapper",) if name in model.model_options]
    if found or model.object_patches.keys() - {"model_sampling"}:
        raise ValueError(
            "The model carries patches of other nodes (such as ControlNeXt, IPAdapter or FreeU), which training does not run: "
            "connect the checkpoint itself, with LoRAs if you like."
        )


@contextmanager
def training_mode(networks: Sequence[ModelPatcher], is_cast: bool) -> Iterator[None]:
    """Networks of the host, loaded and fit for autograd.

    Args:
        networks: To load.
        is_cast: Cast weights to the type of the activations, layer by layer.

    Yields:
        With gradients enabled.
    """
    comfy.model_management.load_models_gpu(list(networks))
    with torch.inference_mode(mode=False), torch.enable_grad(), _marked(), ExitStack() as stack:
        for network in networks:
            module = getattr(network.model, "diffusion_model", network.model)
            share_with_autograd(module)
            if is_cast:
                stack.enter_context(_casting(module))
        yield


def share_with_autograd(network: nn.Module) -> None:
    """Put ordinary tensors in the place of those that a loader made in inference mode, which autograd refuses.

    They share memory, so that nothing is copied and nothing changes for the host.
    """
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_inference():
                shared = nn.Parameter(_shared(parameter.detach()), requires_grad=False)
                # The host keeps notes on its parameters, such as the type that a layer computes in.
                shared.__dict__.update(parameter.__dict__)
                module._parameters[name] = shared
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_inference():
                module._buffers[name] = _shared(buffer.detach())
    network.requires_grad_(requires_grad=False)


def _shared(tensor: Tensor) -> Tensor:
    try:
        return torch.from_dlpack(tensor)
    except (BufferError, RuntimeError, TypeError):  # a type that the exchange format does not know
        return tensor.clone()


@contextmanager
def _marked() -> Iterator[None]:
    """Newer hosts are told that a training runs: their layers then leave out what autograd cannot follow."""
    management = comfy.model_management
    if not hasattr(management, "in_training"):
        yield
        return
    before, management.in_training = management.in_training, True
    try:
        yield
    finally:
        management.in_training = before


@contextmanager
def _casting(network: nn.Module) -> Iterator[None]:
    """The host's own switch for layers whose weights have another type than their input."""
    modules = [module for module in network.modules() if getattr(module, "comfy_cast_weights", None) is False]
    for module in modules:
        module.comfy_cast_weights = True  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in modules:
            # The host keeps the old value here while it runs a network that is not wholly on the device.
            kept = "prev_comfy_cast_weights" if hasattr(module, "prev_comfy_cast_weights") else "comfy_cast_weights"
            setattr(module, kept, False)
