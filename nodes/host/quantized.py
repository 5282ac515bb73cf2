"""Weights that the host keeps quantized."""

from __future__ import annotations

from typing import Any

from comfy.model_patcher import ModelPatcher


def is_quantized(tensor: Any) -> bool:
    """Whether a weight is one of the host's quantized tensors; ComfyUI 0.3.64 has none."""
    try:
        from comfy.quant_ops import QuantizedTensor
    except ImportError:
        return False
    return isinstance(tensor, QuantizedTensor)


def check_unquantized(model: ModelPatcher) -> None:
    """Refuse to train on a quantized model: its weights have no gradients, and their files are not what a control starts from.

    Args:
        model: From any loader.

    Raises:
        ValueError: A weight of its diffusion model is quantized.
    """
    network = getattr(model.model, "diffusion_model", model.model)
    count = sum(is_quantized(tensor) for layer in network.modules() for tensor in layer._parameters.values())
    if count:
        raise ValueError(
            f"The model has {count} quantized weights, and training needs fp32, fp16 or bf16 weights: load the checkpoint that "
            "is not quantized. The trained control can be applied to the quantized model."
        )
