"""Read weight files: memory-mapped, never executed, every failure one sentence."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from ...models.detect import UnsupportedCheckpointError
from ...models.foreign import first_line, shown
from ...models.pickle_values import Described, Odd
from ...models.state_dict import unwrap
from ...models.torch_file import TorchFile
from ...models.weight_bounds import FLOATS, check_keys, check_sizes, read_header, repeats

_SAFETENSORS = (".safetensors", ".sft")
_OURS = (UnsupportedCheckpointError, comfy.model_management.InterruptProcessingException)
_AT_ONCE = 1 << 24
"""Numbers that are looked at between two looks whether somebody has cancelled."""


def read_file(path: Path, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a weight file.

    Args:
        path: A safetensors file or a pickle of tensors.
        name: As the user chose it, for errors.

    Returns:
        The unwrapped tensors (see `models.state_dict.unwrap`), mapped where the format allows, and string metadata.

    Raises:
        UnsupportedCheckpointError: The file is damaged, holds code, or holds no tensors, or none that can be used.
    """
    try:
        tensors, metadata = _load(path, name)
    except _OURS:
        raise
    except pickle.UnpicklingError as error:
        raise UnsupportedCheckpointError(
            f"'{shown(name)}' is not a plain file of tensors (it is damaged, or holds code, which is never run): "
            "download it again, or ask its author for a safetensors file."
        ) from error
    except Exception as error:  # whatever a foreign file breaks in its reader, the cure is the same
        raise UnsupportedCheckpointError(
            f"'{shown(name)}' ({path.stat().st_size} bytes) cannot be read ({first_line(error)}): it is cut short or damaged, "
            "download it again."
        ) from error
    if not tensors:
        raise UnsupportedCheckpointError(f"'{shown(name)}' holds no tensors: choose a weight file.")
    return tensors, metadata


def _load(path: Path, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    if path.suffix.lower() in _SAFETENSORS:
        metadata = read_header(path)
        # The host's own reader: under dynamic VRAM it notes where in the file a tensor lies.
        tensors = unwrap(comfy.utils.load_torch_file(str(path), safe_load=True))
        check_sizes(tensors, path.stat().st_size)
    else:
        metadata = {}
        poll = comfy.model_management.throw_exception_if_processing_interrupted
        # Pickles can be mapped as safetensors are; the host reads them whole, and a full UNet has 3 GB and more.
        with TorchFile(path, not comfy.utils.DISABLE_MMAP, poll) as file:
            described = _named(file.content, name)
            check_sizes(described, file.size)
            tensors = {key: file.tensor(tensor) for key, tensor in described.items()}
    return tensors, metadata


def _named(content: Any, name: str) -> dict[str, Described]:
    """The tensors in a pickle, with their names."""
    if not isinstance(content, Mapping):
        raise TypeError(f"a {type(content).__name__.lower()} in place of named tensors")
    inner = next(iter(content.values()), None)
    flat = unwrap(inner if len(content) == 1 and isinstance(inner, Mapping) else content)
    found = {key: value for key, value in flat.items() if isinstance(value, (Described, Odd))}
    check_keys(found)
    for key, value in found.items():
        if isinstance(value, Odd):
            raise UnsupportedCheckpointError(
                f"'{shown(name)}' has {value.title} in '{shown(key)}', and plain tensors are expected: ask its author for a "
                "safetensors file."
            )
    return {key: value for key, value in found.items() if isinstance(value, Described)}


def check_weights(tensors: Mapping[str, Tensor], name: str) -> None:
    """Refuse what no network can use: what `check_types` and `check_finite` refuse; errors as theirs."""
    check_types(tensors, name)
    check_finite(tensors, name)


def check_types(tensors: Mapping[str, Tensor], name: str) -> None:
    """Refuse what are no floating-point numbers, or fewer than their shape says.

    Args:
        tensors: Key to weight; only what they are is looked at.
        name: Of the file, for the error.

    Raises:
        UnsupportedCheckpointError: Naming the first such tensor.
    """
    for key, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise UnsupportedCheckpointError(
                f"'{shown(name)}' has '{shown(key)}' of type {str(tensor.dtype).removeprefix('torch.')}, and weights are "
                "floating-point numbers: use a file that is not quantized or changed."
            )
        if repeats(tensor):
            raise UnsupportedCheckpointError(
                f"'{shown(name)}' has fewer numbers in '{shown(key)}' than its shape {tuple(tensor.shape)} says: the file is "
                "damaged, download it again."
            )


def check_finite(tensors: Mapping[str, Tensor], name: str) -> None:
    """Refuse weights with NaN or infinity, which would turn every picture black.

    Args:
        tensors: Key to weight.
        name: Of the file, for the error.

    Raises:
        UnsupportedCheckpointError: Naming the first such tensor.
    """
    for key, tensor in tensors.items():
        for part in _parts(tensor):
            comfy.model_management.throw_exception_if_processing_interrupted()
            if not part.is_floating_point():
                break
            # One pass without a mask of the tensor's size: a sum is finite only if every term is.
            total = part.sum(dtype=torch.float32) if part.element_size() > 1 else part.float().sum()
            if not torch.isfinite(total):
                raise UnsupportedCheckpointError(
                    f"'{shown(name)}' has NaN or infinite values in '{shown(key)}': its training has diverged or the file is "
                    "damaged, use another one."
                )


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor in pieces of bounded size, without copying it."""
    if tensor.numel() <= _AT_ONCE:
        return iter((tensor,))
    is_turned = tensor.ndim == 4 and not tensor.is_contiguous()
    ordered = tensor.movedim(1, -1) if is_turned else tensor  # NCHW -> NHWC, as it lies
    return iter(ordered.reshape(-1).split(_AT_ONCE))
