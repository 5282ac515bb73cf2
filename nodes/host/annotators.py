"""Annotators from models/annotators, under the host's memory management."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch
from torch import Tensor, nn

from ...models.catalogue import CATALOGUE, command_for
from ...models.foreign import shown
from ...preprocessors.annotator import CONFIG, TASKS, Annotator, check_task, load_annotator, task_of
from ...preprocessors.canvas import hint_size
from .folders import places_of
from .hint_output import make_hints
from .hints import check_image

ANNOTATORS = "annotators"
KEPT = 4
"""Networks that stay in main memory between runs; a pose needs two."""
FRAMES_PER_PIECE = 4
"""Pictures that a network sees at once."""
NETWORK_PIXELS = 640 * 640
"""What networks look at, whatever the hint's size: 384 to 800 pixels a side."""
BYTES_PER_PIXEL = 2048
"""Estimate of a network's working memory: DPT's last layers are 256 channels at half the size and 160 at the full one."""

logger = logging.getLogger("nextcontrol")


def list_annotators(task: str) -> list[str]:
    """Names for a combo: the folders for `task` that are there, and then the known ones that could be fetched."""
    found = [name for name, folder in _folders() if task_of(folder) == task]
    known = [item.name for item in CATALOGUE if item.task == task and item.folder == ANNOTATORS]
    return list(dict.fromkeys([*found, *known]))


def find_annotator(name: str, task: str) -> Path:
    """The folder of a chosen annotator.

    Args:
        name: As listed by `list_annotators`.
        task: A key of `preprocessors.annotator.TASKS`, for the error's advice.

    Returns:
        Its path.

    Raises:
        FileNotFoundError: There is none; the message has the command that fetches it.
    """
    for found, folder in _folders():
        if found == name.replace("\\", "/"):
            return folder
    raise FileNotFoundError(f"models/{ANNOTATORS}/{shown(name)} is not there: {command_for(name, ANNOTATORS, task)}")


def check_annotator(name: str | None, task: str) -> bool | str:
    """For a node's `validate_inputs`: True, or the sentence that says why a chosen annotator cannot be used.

    Args:
        name: As listed by `list_annotators`; None where it comes through a link and is not known yet.
        task: A key of `preprocessors.annotator.TASKS`.

    Returns:
        See above.
    """
    try:
        if name is not None:
            check_task(find_annotator(name, task), task)
    except (FileNotFoundError, ValueError) as error:
        return str(error)
    return True


def annotator_stamp(name: str | None) -> object:
    """For a node's `fingerprint_inputs`: changes when a file of the annotator's folder does; None if there is no folder."""
    folder = next((folder for found, folder in _folders() if name and found == name.replace("\\", "/")), None)
    return folder and (str(folder), _stamp(folder))


def make_annotated(
    image: Tensor, resolution: int, name: str, task: str, make: Callable[[Tensor, int, Annotator], Tensor]
) -> Tensor:
    """Turn pictures into hints with a network, with progress and cancel.

    Args:
        image: From an `IMAGE` socket.
        resolution: As for every preprocessor.
        name: As listed by `list_annotators`.
        task: A key of `preprocessors.annotator.TASKS`.
        make: A preprocessor with its options bound; maps frames, resolution and annotator to hints.

    Returns:
        (B, H, W, 3) in [0, 1], on the CPU.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It is for another task, or damaged; or `image` is no batch of RGB pictures.
    """
    check_image(image, "image")
    height, width = hint_size(image.shape[1], image.shape[2], resolution)
    pixels = min(len(image), FRAMES_PER_PIECE) * max(height * width, NETWORK_PIXELS)
    annotator = open_annotator(name, task, pixels * BYTES_PER_PIXEL)
    return make_hints(image, one_by_one_when_short(lambda frames: make(frames, resolution, annotator)), FRAMES_PER_PIECE)


def one_by_one_when_short(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`make` for several frames and rows beside them, that goes on one by one where the device has no memory for all."""

    def careful(frames: Tensor, *beside: Any) -> Tensor:
        try:
            return make(frames, *beside)
        except comfy.model_management.OOM_EXCEPTION:
            if len(frames) == 1:
                raise
        comfy.model_management.soft_empty_cache()
        places = [slice(place, place + 1) for place in range(len(frames))]
        return torch.cat([make(frames[place], *(rows[place] for rows in beside)) for place in places])

    return careful


def open_annotator(name: str, task: str, memory: int = 0) -> Annotator:
    """Read an annotator, once while its files stay the same, and bring it to the device.

    Args:
        name: As listed by `list_annotators`.
        task: A key of `preprocessors.annotator.TASKS`.
        memory: Bytes that the network needs beside its weights, which the host then keeps free.

    Returns:
        The annotator, on the host's device until the host needs the memory. Call again before each run.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It is for another task, or damaged.
    """
    folder = find_annotator(name, task)
    annotator, patcher = _read((folder, task, _stamp(folder)))
    comfy.model_management.load_models_gpu([patcher], memory_required=memory)
    return dataclasses.replace(annotator, device=patcher.load_device)


class WholePatcher(comfy.model_patcher.ModelPatcher):
    """Moves its network whole or not at all.

    The host moves as many layers as fit and lets the others fetch their weights at each use. Only layers of its own classes
    can do that; a network of transformers would be torn in two.
    """

    def partially_load(self, device_to: torch.device, *_: object, **__: object) -> int:
        """Load everything, whatever the budget."""
        return int(super().partially_load(device_to, self.model_size() + 1))

    def partially_unload(self, *_: object, **__: object) -> int:
        """Free nothing, so that the host unloads all of it instead."""
        return 0


def hold(network: nn.Module) -> comfy.model_patcher.ModelPatcher:
    """Give a network to the host, which moves it to the device when it is used and away when memory is short."""
    # The networks of transformers have a `device` of their own that cannot be set, the host sets one: hence the shell.
    return WholePatcher(
        nn.ModuleList([network]),
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


@lru_cache(maxsize=KEPT)
def _read(key: tuple[Path, str, object]) -> tuple[Annotator, comfy.model_patcher.ModelPatcher]:
    folder, task, _ = key
    annotator = load_annotator(folder, task)
    logger.info("'%s': %s, for %s", shown(folder.name), type(annotator.network).__name__, TASKS[task].title)
    return annotator, hold(annotator.network)


def _stamp(folder: Path) -> object:
    """Name, time and size of every file; what goes away meanwhile, or cannot be looked at, does not count."""
    found = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):  # a link that leads to itself, a file that has just gone
                if entry.is_file():
                    found.append((entry.name, entry.stat().st_mtime_ns, entry.stat().st_size))
    return tuple(sorted(found))


def _folders() -> Iterator[tuple[str, Path]]:
    """Every folder with a config.json below the annotators' places, two levels deep, by its name with forward slashes."""
    for place in places_of(ANNOTATORS):
        near = _below(place)
        for folder in (*near, *(inner for outer in near for inner in _below(outer))):
            if os.path.lexists(folder / CONFIG):
                yield folder.relative_to(place).as_posix(), folder


def _below(folder: Path) -> list[Path]:
    """The folders in a folder; none of one that cannot be looked into."""
    found: list[Path] = []
    with suppress(OSError), os.scandir(folder) as entries:
        # Not Path.is_dir, which raises where it may not look.
        found += [Path(entry.path) for entry in entries if os.path.isdir(entry.path)]  # noqa: PTH112
    return sorted(found)
