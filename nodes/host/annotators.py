"""Annotators from models/annotators, under the host's memory management."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import folder_paths
from torch import nn

from ...models.catalogue import CATALOGUE, command_for
from ...preprocessors.annotator import Annotator, load_annotator, task_of

ANNOTATORS = "annotators"
KEPT = 4
"""Networks that stay in main memory between runs; a pose needs two."""


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
    raise FileNotFoundError(f"models/{ANNOTATORS}/{name} is not there: {command_for(name, ANNOTATORS, task)}")


def open_annotator(name: str, task: str) -> Annotator:
    """Read an annotator, once while its files stay the same, and bring it to the device.

    Args:
        name: As listed by `list_annotators`.
        task: A key of `preprocessors.annotator.TASKS`.

    Returns:
        The annotator, on the host's device until the host needs the memory. Call again before each run.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It is for another task, or damaged.
    """
    folder = find_annotator(name, task)
    stamp = tuple(sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir() if path.is_file()))
    annotator, patcher = _read((folder, task, stamp))
    comfy.model_management.load_models_gpu([patcher])
    return dataclasses.replace(annotator, device=patcher.load_device)


def hold(network: nn.Module) -> comfy.model_patcher.ModelPatcher:
    """Give a network to the host, which moves it to the device when it is used and away when memory is short."""
    # The networks of transformers have a `device` of their own that cannot be set, the host sets one: hence the shell.
    return comfy.model_patcher.ModelPatcher(
        nn.ModuleList([network]),
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


@lru_cache(maxsize=KEPT)
def _read(key: tuple[Path, str, object]) -> tuple[Annotator, comfy.model_patcher.ModelPatcher]:
    folder, task, _ = key
    annotator = load_annotator(folder, task)
    return annotator, hold(annotator.network)


def _folders() -> Iterator[tuple[str, Path]]:
    """Every folder with a config.json below the annotators' places, two levels deep, by its name with forward slashes."""
    for place in map(Path, folder_paths.get_folder_paths(ANNOTATORS)):
        for pattern in ("*/config.json", "*/*/config.json"):
            for config in sorted(place.glob(pattern)):
                yield config.parent.relative_to(place).as_posix(), config.parent
