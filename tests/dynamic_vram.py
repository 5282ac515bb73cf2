"""Dynamic VRAM on a processor: what newer ComfyUI does by default on NVIDIA, so that tests meet it without a GPU.

With dynamic VRAM the host's linear layers have no weights until a file fills them, a model's weights stay in main memory, and
each layer gets its weights, patches applied, in a piece of virtual memory that other layers may be given when memory is short.

`dynamic_vram` switches this on for as long as it is entered. On a host that has it (0.33), the host's own
`ModelPatcherDynamic` runs: the places that ask whether a device is the processor are told that it is not, and the package
`comfy_aimdo`, which needs a GPU, is replaced by a stand-in in main memory that fills with NaN what it takes away. On an older
host the linear layers alone are empty until they are filled. `NEXTCONTROL_DYNAMIC_VRAM=1` switches it on for a whole run.

Not seen here: streams, pinned memory, weights read from the file into the GPU, numbers of the GPU's kernels.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_patcher
import comfy.ops
import comfy.utils
import pytest
import torch
from torch import nn

HAS_DYNAMIC = hasattr(comfy.model_patcher, "ModelPatcherDynamic")
"""Whether the host has dynamic VRAM, or only empty layers can be shown on it."""
if HAS_DYNAMIC:
    import comfy.memory_management


@contextmanager
def dynamic_vram(limit: float = float("inf")) -> Iterator[None]:
    """Dynamic VRAM for everything that is loaded inside.

    Args:
        limit: Bytes of virtual memory that weights may take; what does not fit is cast anew at each use.

    Yields:
        While it is on.
    """
    with pytest.MonkeyPatch.context() as patch:
        (_with_the_hosts if HAS_DYNAMIC else _with_empty_layers)(patch, limit)
        yield


@contextmanager
def filled_layers() -> Iterator[None]:
    """The host's layers have weights from the start, also under dynamic VRAM: for models that no file fills.

    Yields:
        While it is so.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Empty, "is_on", False)
        if HAS_DYNAMIC:
            patch.setattr(comfy.memory_management, "aimdo_enabled", False)
        yield


class _Empty:
    is_on = True
    """Whether layers without weights are made, where dynamic VRAM is on."""


class Weights:
    """A piece of virtual memory for the weights of one model, in the place of `comfy_aimdo.model_vbar.ModelVBAR`."""

    everything: list[Weights]
    limit: float

    def __init__(self, *_: Any) -> None:
        self.slots: list[dict[str, Any]] = []
        self.everything.append(self)

    def prioritize(self, *_: Any) -> None:
        """No order among models here."""

    deprioritize = prioritize

    def alloc(self, size: int) -> tuple[Weights, int, int]:
        """A place for a layer: this, its number and its size."""
        self.slots.append({"size": size, "data": None, "signature": 0, "users": 0})
        return self, len(self.slots) - 1, size

    def loaded_size(self) -> int:
        """Bytes in use."""
        return sum(slot["size"] for slot in self.slots if slot["data"] is not None)

    def free_memory(self, wanted: int) -> int:
        """Take weights away that nobody is using at the moment."""
        freed = 0
        for slot in self.slots:
            if freed < wanted and slot["data"] is not None and not slot["users"]:
                slot["data"].fill_(0xFF)  # NaN in every floating type: another layer's numbers by now
                slot["data"] = None
                freed += slot["size"]
        return freed

    def fault(self, number: int) -> list[int] | None:
        """Make a place usable; what identifies its content, or None where memory is short."""
        slot = self.slots[number]
        if slot["data"] is None:
            if sum(each.loaded_size() for each in self.everything) + slot["size"] > self.limit:
                return None
            with torch.inference_mode(mode=False):
                slot["data"] = torch.empty(slot["size"], dtype=torch.uint8)
            slot["signature"] += 1
        slot["users"] += 1
        return [slot["signature"]]


def _unpin(place: tuple[Weights, int, int] | None) -> None:
    if place is not None:
        place[0].slots[place[1]]["users"] -= 1


class _HostBuffer:
    """Pinned memory that holds nothing."""

    size = 0

    def __init__(self, *_: Any) -> None:
        pass

    def truncate(self, *_: Any, **__: Any) -> None:
        """Nothing to cut."""


def _with_the_hosts(patch: pytest.MonkeyPatch, limit: float) -> None:
    import comfy.memory_management
    import comfy.pinned_memory
    import comfy_aimdo.host_buffer
    import comfy_aimdo.model_vbar
    import comfy_aimdo.torch

    Weights.everything, Weights.limit = [], limit
    vbar = comfy_aimdo.model_vbar
    patch.setattr(vbar, "ModelVBAR", Weights)
    patch.setattr(vbar, "vbar_fault", lambda place: place[0].fault(place[1]))
    patch.setattr(vbar, "vbar_unpin", _unpin)
    patch.setattr(vbar, "vbar_signature_compare", lambda one, other: one is not None and one == other)
    patch.setattr(vbar, "vbars_analyze", lambda *_: 0)
    patch.setattr(comfy_aimdo.torch, "aimdo_to_tensor", lambda place, _device: place[0].slots[place[1]]["data"])
    patch.setattr(comfy_aimdo.host_buffer, "HostBuffer", _HostBuffer)
    patch.setattr(comfy.pinned_memory, "get_pin", lambda *_, **__: None)
    patch.setattr(comfy.pinned_memory, "pin_memory", lambda *_, **__: None)

    dynamic = comfy.model_patcher.ModelPatcherDynamic
    patch.setattr(dynamic, "__new__", staticmethod(lambda cls, *_, **__: object.__new__(cls)))
    no_vbar = 'if self.load_device == torch.device("cpu"):\n        return None'
    patch.setattr(dynamic, "_vbar_get", edited(dynamic._vbar_get, (no_vbar, "")))
    only_gpu = 'assert self.load_device != torch.device("cpu")'
    patch.setattr(dynamic, "partially_unload", edited(dynamic.partially_unload, (only_gpu, "")))
    is_layered = 'if hasattr(s, "_v") and comfy.model_management.is_device_cpu(device):'
    is_elsewhere = 'elif hasattr(s, "_v") and s.weight.device != device:'
    # Weights that are trained have been put there by a trainer and are where they are needed.
    cast = edited(comfy.ops.cast_bias_weight, (is_layered, "if False:"), (is_elsewhere, _DYNAMIC))
    patch.setattr(comfy.ops, "cast_bias_weight", cast)
    patch.setattr(comfy.model_patcher, "CoreModelPatcher", dynamic)
    patch.setattr(comfy.memory_management, "aimdo_enabled", True)
    load = comfy.utils.load_torch_file

    def load_torch_file(*arguments: Any, **options: Any) -> Any:
        with pytest.MonkeyPatch.context() as inside:
            inside.setattr(comfy.memory_management, "aimdo_enabled", False)
            return load(*arguments, **options)

    patch.setattr(comfy.utils, "load_torch_file", load_torch_file)


_DYNAMIC = 'elif hasattr(s, "_v") and not s.weight.requires_grad:'


def edited(function: Callable[..., Any], *changes: tuple[str, str]) -> Callable[..., Any]:
    """A function of the host with some of its text changed; each text has to be there once.

    Returns:
        The function, in the namespace of its module.
    """
    source = textwrap.dedent(inspect.getsource(function))
    for old, new in changes:
        assert source.count(old) == 1, f"{function.__qualname__} has changed: {old}"
        source = source.replace(old, new)
    found: dict[str, Any] = {}
    exec(compile(source, inspect.getfile(function), "exec"), function.__globals__, found)  # noqa: S102
    return found[function.__name__]


def _with_empty_layers(patch: pytest.MonkeyPatch, _limit: float) -> None:
    """As `comfy.ops.disable_weight_init.Linear` of 0.33 is, for hosts that do not have it."""
    linear = comfy.ops.disable_weight_init.Linear
    own_init, own_load = linear.__init__, linear._load_from_state_dict

    def init(self: Any, inputs: int, outputs: int, bias: bool = True, device: Any = None, dtype: Any = None) -> None:
        if not _Empty.is_on:
            own_init(self, inputs, outputs, bias, device, dtype)
            return
        nn.Module.__init__(self)
        self.in_features, self.out_features = inputs, outputs
        self.weight = self.bias = None
        self.comfy_need_lazy_init_bias = bias

    def load(self: Any, state_dict: dict[str, Any], prefix: str, local: dict[str, Any], *rest: Any) -> None:
        if self.weight is not None:
            own_load(self, state_dict, prefix, local, *rest)
            return
        _strict, missing, unexpected, _errors = rest
        wanted = ["weight", "bias"] if self.comfy_need_lazy_init_bias else ["weight"]
        for key in wanted:
            if f"{prefix}{key}" in state_dict:
                value = state_dict[f"{prefix}{key}"]
                is_assigned = local.get("assign_to_params_buffers", False)
                setattr(self, key, nn.Parameter(value if is_assigned else value.clone(), requires_grad=False))
            else:
                missing.append(f"{prefix}{key}")
        names = {key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)}
        unexpected.extend(f"{prefix}{key}" for key in names - set(wanted))

    patch.setattr(linear, "__init__", init)
    patch.setattr(linear, "_load_from_state_dict", load)
