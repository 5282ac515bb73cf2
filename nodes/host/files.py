"""Read weight files: memory-mapped, never executed, every failure one sentence."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from ...models.detect import UnsupportedCheckpointError
from ...models.state_dict import unwrap

_SAFETENSORS = (".safetensors", ".sft")


def read_file(path: Path, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a weight file.

    Args:
        path: A safetensors file or a pickle of tensors.
        name: As the user chose it, for errors.

    Returns:
        The unwrapped tensors (see `models.state_dict.unwrap`), mapped where the format allows, and string metadata.

    Raises:
        UnsupportedCheckpointError: The file is damaged, holds code, or holds no tensors.
    """
    try:
        state_dict, metadata = _load(path)
    except pickle.UnpicklingError as error:
        raise UnsupportedCheckpointError(
            f"'{name}' is not a plain file of tensors (it is damaged, or holds code, which is never run): "
            "download it again, or ask its author for a safetensors file."
        ) from error
    except Exception as error:  # whatever a foreign file breaks in its reader, the cure is the same
        raise UnsupportedCheckpointError(
            f"'{name}' ({path.stat().st_size} bytes) cannot be read ({_first_line(error)}): it is cut short or damaged, "
            "download it again."
        ) from error
    tensors = {key: value for key, value in unwrap(state_dict).items() if isinstance(value, Tensor)}
    if not tensors:
        raise UnsupportedCheckpointError(f"'{name}' holds no tensors: choose a weight file.")
    return tensors, metadata or {}


def _load(path: Path) -> tuple[dict[str, Any], dict[str, str] | None]:
    if path.suffix.lower() in _SAFETENSORS or not zipfile.is_zipfile(path):
        return comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    # Pickles of today's PyTorch can be mapped as safetensors are; the host reads them whole, and a full UNet has 3 GB and more.
    state_dict = torch.load(path, map_location="cpu", weights_only=True, mmap=not comfy.utils.DISABLE_MMAP)
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"a {type(state_dict).__name__} in place of named tensors")
    inner = next(iter(state_dict.values()), None)
    return dict(inner if len(state_dict) == 1 and isinstance(inner, Mapping) else state_dict), None


def check_finite(tensors: Mapping[str, Tensor], name: str) -> None:
    """Refuse weights with NaN or infinity, which would turn every picture black.

    Args:
        tensors: Key to weight.
        name: Of the file, for the error.

    Raises:
        UnsupportedCheckpointError: Naming the first such tensor.
    """
    for key, tensor in tensors.items():
        comfy.model_management.throw_exception_if_processing_interrupted()
        if not tensor.is_floating_point():
            continue
        # One pass without a mask of the tensor's size: a sum is finite only if every term is.
        total = tensor.sum(dtype=torch.float32) if tensor.element_size() > 1 else tensor.float().sum()
        if not torch.isfinite(total):
            raise UnsupportedCheckpointError(
                f"'{name}' has NaN or infinite values in '{key}': its training has diverged or the file is damaged, "
                "use another one."
            )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:120]
