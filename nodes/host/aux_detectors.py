"""Detectors of controlnet-aux: weights from models/annotators alone, under the host's memory management."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import comfy.model_management
import comfy.model_patcher
from torch import Tensor

from ...models.catalogue import command_for
from ...models.foreign import first_line
from ...preprocessors.annotator import Annotator
from ...preprocessors.aux_detector import DETECTORS, build_detector, import_aux
from ...preprocessors.canvas import hint_size
from .annotators import ANNOTATORS, hold, one_by_one_when_short
from .files import check_finite, read_file
from .folders import find_file, list_files
from .hint_output import make_hints
from .hints import check_image

KEPT = 4
"""Networks that stay in main memory between runs; an OpenPose with hands and face has three."""
BATCH_PIXELS = 4 * 512 * 512
"""Pixels that go through a network at once."""
BYTES_PER_PIXEL = 2048
"""Memory for that: HED's largest two levels of features in fp32, rounded up."""


def detect_hints(image: Tensor, resolution: int, names: tuple[str, ...], make: Callable[..., Tensor], *beside: Any) -> Tensor:
    """Hints from detectors, with progress and cancel.

    Args:
        image: From an `IMAGE` socket.
        resolution: As in `hint_size`.
        names: Keys of `DETECTORS`.
        make: Maps b frames, a detector for each name, and b rows of each `beside` to b hints.
        beside: Sequences with a row for each picture, such as seeds.

    Returns:
        (B, H', W', 3) in [0, 1].

    Raises:
        ValueError: `image` is no batch of RGB pictures, or a file is not what its name says.
        FileNotFoundError: A file is not there; the message has the command that fetches it.
        ImportError: controlnet-aux is missing or cannot be imported; the message says what to do.
    """
    check_image(image, "image")
    height, width = hint_size(image.shape[1], image.shape[2], resolution)
    size = max(1, BATCH_PIXELS // (height * width))
    detectors = open_detectors(names, min(size, len(image)) * height * width * BYTES_PER_PIXEL)
    return make_hints(image, one_by_one_when_short(lambda frames, *rows: make(frames, *detectors, *rows)), size, *beside)


def open_detectors(names: tuple[str, ...], memory: int = 0) -> list[Annotator]:
    """Read detectors, each once while its file stays the same, and bring them to the device.

    Args:
        names: Keys of `DETECTORS`.
        memory: Bytes that they need to compute.

    Returns:
        The detectors, on the host's device until the host needs the memory. Call again before each run.

    Raises:
        FileNotFoundError: A file is not there.
        ValueError: A file is damaged or of another network.
        ImportError: See `import_aux`.
    """
    files = [find_weights(name) for name in names]
    import_aux("util")  # before a long read
    pairs = [_read((name, *_stamp(path))) for name, path in zip(names, files, strict=True)]
    comfy.model_management.load_models_gpu([patcher for _, patcher in pairs], memory_required=memory)
    return [dataclasses.replace(detector, device=patcher.load_device) for detector, patcher in pairs]


def find_weights(name: str) -> Path:
    """The file of a detector, in models/annotators or any folder below.

    Args:
        name: A key of `DETECTORS`.

    Returns:
        Its path; of several the one that lies least deep.

    Raises:
        FileNotFoundError: There is none; the message has the command that fetches it.
    """
    file = DETECTORS[name].file
    found = [listed for listed in list_files((ANNOTATORS,)) if PurePosixPath(listed).name == file]
    if not found:
        raise FileNotFoundError(f"models/{ANNOTATORS}/{file} is not there: {command_for(file, ANNOTATORS, name)}")
    return find_file(min(found, key=lambda listed: (listed.count("/"), listed)), (ANNOTATORS,))


def _stamp(path: Path) -> tuple[str, int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise ValueError(
            f"'{path.name}' cannot be looked at ({first_line(error)}): put it into models/{ANNOTATORS} again."
        ) from error
    return str(path), status.st_mtime_ns, status.st_size


@lru_cache(maxsize=KEPT)
def _read(key: tuple[str, str, int, int]) -> tuple[Annotator, comfy.model_patcher.ModelPatcher]:
    name, path, _, _ = key
    file = Path(path).name
    tensors, _ = read_file(Path(path), file)
    check_finite(tensors, file)
    network = build_detector(name, tensors, file)
    return Annotator(file, network, None), hold(network)
