"""A full fine-tuned SVD UNet over a plain checkpoint's: every weight is replaced, and none is copied before it is used."""

from __future__ import annotations

import sys
from pathlib import Path

import comfy.model_management
import pytest
import torch
from host_models import narrow_module, weight_in_use
from narrow import GENERATION_OF, hints, narrow_model, save
from nextcontrol.nodes.host.attach import attach_controlnext
from nextcontrol.nodes.host.controlnext_file import load_controlnext_file
from safetensors.torch import save_file
from seeded import seeded_tensor

PREFIX = "diffusion_model."


def is_mapped(tensor: torch.Tensor, file: Path) -> bool:
    """Whether a tensor lies in the pages of a file."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        span, *_, path = line.split()
        start, end = (int(address, 16) for address in span.split("-"))
        if path == str(file) and start <= tensor.data_ptr() < end:
            return True
    return False


@pytest.fixture(params=["safetensors", "bin"])
def full_unet(request, base_folder) -> Path:
    """Every weight of the narrow SVD UNet, another one each."""
    own = {name: tensor for name, tensor in narrow_model("svd").model_state_dict().items() if name.startswith(PREFIX)}
    tensors = {name.removeprefix(PREFIX): seeded_tensor(name, tensor.shape) for name, tensor in own.items()}
    path = base_folder / "models" / "controlnext" / f"full_unet.{request.param}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if request.param == "bin":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    return path


def controlled(full_unet):
    control = save(full_unet.parents[2], f"narrow_{GENERATION_OF['svd_v2']}_0.safetensors", narrow_module())
    file = load_controlnext_file(control, full_unet.name, "svd_v2", "replace")
    return attach_controlnext(narrow_model("svd"), file, hints(), 1.0, (0.0, 1.0))


def test_every_weight_is_the_files(full_unet):
    patched = controlled(full_unet)
    comfy.model_management.load_models_gpu([patched])
    found = {name: weight_in_use(patched, name) for name in patched.model_state_dict() if name.startswith(PREFIX)}
    assert found
    assert all(torch.equal(tensor, seeded_tensor(name, tensor.shape)) for name, tensor in found.items())
    comfy.model_management.unload_all_models()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_file_stays_on_disk_until_the_model_is_loaded(full_unet):
    patches = controlled(full_unet).patches
    values = [patch[1][1][0] for (patch,) in patches.values()]
    assert len(values) > 100
    assert all(is_mapped(value, full_unet) for value in values[::50])
