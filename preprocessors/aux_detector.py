"""Networks of the package controlnet-aux: which file holds each, and how it is built from that file's tensors."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import types
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PACKAGE = "controlnet_aux"
NEEDS = "Needs the package controlnet-aux and"
"""Begins the sentence of a node that says which file it reads."""
INSTALL = "python -m pip install controlnet-aux"
TRACKED = "num_batches_tracked"
"""Counters of training that older files lack and nothing reads."""


@dataclass(frozen=True)
class Detector:
    """One network of controlnet-aux 0.0.10 and the file with its weights."""

    file: str
    """Its name in lllyasviel/Annotators or, for TEED, in TheMistoAI/MistoLine."""
    module: str
    """Below the package."""
    build: Callable[[Any], nn.Module]
    """From that module to the network."""
    is_grouped: bool = False
    """The network's keys have one more part in front than the file's. Source: open_pose/util.py, `transfer`."""


def _anime_generator(module: Any) -> nn.Module:
    norm = functools.partial(nn.InstanceNorm2d, affine=False, track_running_stats=False)
    network: nn.Module = module.UnetGenerator(3, 1, 8, 64, norm_layer=norm, use_dropout=False)
    return network


def _normal_network(module: Any) -> nn.Module:
    arguments = types.SimpleNamespace(
        mode="client", architecture="BN", pretrained="scannet", sampling_ratio=0.4, importance_ratio=0.7
    )
    with contextlib.redirect_stdout(io.StringIO()):  # its constructor prints
        network: nn.Module = module.NNET(arguments)
    return network


DETECTORS: Mapping[str, Detector] = {
    "hed": Detector("ControlNetHED.pth", "hed", lambda module: module.ControlNetHED_Apache2()),
    "pidinet": Detector("table5_pidinet.pth", "pidi.model", lambda module: module.pidinet()),
    "teed": Detector("MTEED.pth", "teed.ted", lambda module: module.TED()),
    "lineart": Detector("sk_model.pth", "lineart", lambda module: module.Generator(3, 1, 3)),
    "lineart_coarse": Detector("sk_model2.pth", "lineart", lambda module: module.Generator(3, 1, 3)),
    "lineart_anime": Detector("netG.pth", "lineart_anime", _anime_generator),
    "mlsd": Detector("mlsd_large_512_fp32.pth", "mlsd.models.mbv2_mlsd_large", lambda module: module.MobileV2_MLSD_Large()),
    "normal_bae": Detector("scannet.pt", "normalbae.nets.NNET", _normal_network),
    "openpose": Detector("body_pose_model.pth", "open_pose.model", lambda module: module.bodypose_model(), True),
    "openpose_hand": Detector("hand_pose_model.pth", "open_pose.model", lambda module: module.handpose_model(), True),
    "openpose_face": Detector("facenet.pth", "open_pose.face", lambda module: module.FaceNet()),
}
"""Source of files and arguments: the `from_pretrained` methods of controlnet-aux 0.0.10, which download; ours never do."""


def import_aux(module: str) -> Any:
    """A module of controlnet-aux.

    Args:
        module: Its name below the package.

    Returns:
        The module.

    Raises:
        ImportError: The package is missing or cannot be imported, in one sentence that says what to install or remove.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # dozens, about other packages' future
            importlib.import_module(PACKAGE)
            return importlib.import_module(f"{PACKAGE}.{module}")
    except Exception as error:  # its import runs the imports of ten other packages
        raise ImportError(_import_advice(error)) from error


def _import_advice(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name == PACKAGE:
        return f"This hint needs the package controlnet-aux: run '{INSTALL}' with ComfyUI's Python and restart ComfyUI."
    if isinstance(error, AttributeError) and "solutions" in str(error):
        return (
            "controlnet-aux cannot be imported beside this mediapipe, which has no 'mediapipe.solutions' (0.10.30 and newer "
            "have none): run 'python -m pip uninstall mediapipe', or 'python -m pip install \"mediapipe<0.10.30\"' if another "
            "pack needs it, with ComfyUI's Python and restart ComfyUI."
        )
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith(PACKAGE):
        return (
            f"controlnet-aux is there but '{error.name}', which it imports, is not: run '{INSTALL}' with ComfyUI's Python, "
            "which brings what it requires, and restart ComfyUI."
        )
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:120]
    return (
        f"controlnet-aux cannot be imported ({type(error).__name__}: {reason}): run 'python -m pip install --upgrade "
        "controlnet-aux==0.0.10' with ComfyUI's Python and restart ComfyUI."
    )


def build_detector(name: str, tensors: Mapping[str, Tensor], file: str) -> nn.Module:
    """A network with its weights, on the CPU in fp32 and ready to evaluate.

    Args:
        name: A key of `DETECTORS`.
        tensors: Of its file, unwrapped.
        file: The file's name, for errors.

    Returns:
        The network.

    Raises:
        ImportError: See `import_aux`.
        ValueError: The tensors are not this network's.
    """
    row = DETECTORS[name]
    module = import_aux(row.module)
    with torch.device("meta"):  # random numbers for weights that are about to be replaced would take longer than reading them
        network = row.build(module)
    wanted = network.state_dict()
    found = dict(tensors)
    if row.is_grouped:
        found = {key: tensors[inner] for key in wanted if (inner := key.partition(".")[2]) in tensors}
    missing = [key for key in wanted if key not in found and not key.endswith(TRACKED)]
    surplus = [key for key in found if key not in wanted]
    misfits = [key for key in found if key in wanted and found[key].shape != wanted[key].shape]
    if problem := next((text for keys, text in _problems(missing, surplus, misfits) if keys), None):
        raise ValueError(f"'{file}' does not hold the weights of {row.file}: {problem}; download {row.file} again.")
    counters = {key: torch.zeros_like(value, device="cpu") for key, value in wanted.items() if key not in found}
    weights = {key: value.to(wanted[key].dtype, copy=True).contiguous() for key, value in found.items()}
    network.load_state_dict(counters | weights, assign=True)
    return network.eval().requires_grad_(False)


def _problems(missing: list[str], surplus: list[str], misfits: list[str]) -> list[tuple[list[str], str]]:
    return [
        (missing, f"{len(missing)} tensors are missing, '{missing[0]}' first" if missing else ""),
        (misfits, f"{len(misfits)} have another shape, '{misfits[0]}' first" if misfits else ""),
        (surplus, f"{len(surplus)} belong to another network, '{surplus[0]}' first" if surplus else ""),
    ]
