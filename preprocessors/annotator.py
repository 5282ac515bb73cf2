"""Networks that look at pictures: what a transformers folder holds, and reading it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Task:
    """What an annotator was trained for."""

    title: str
    """In errors: "a network for ..."."""
    loader: str
    """The class of transformers that reads it."""
    suffix: str
    """How the name of its architecture ends in config.json."""


TASKS: Mapping[str, Task] = {
    "depth": Task("depth estimation", "AutoModelForDepthEstimation", "ForDepthEstimation"),
    "detection": Task("object detection", "AutoModelForObjectDetection", "ForObjectDetection"),
    "segmentation": Task("semantic segmentation", "AutoModelForSemanticSegmentation", "ForSemanticSegmentation"),
    "pose": Task("pose estimation", "VitPoseForPoseEstimation", "ForPoseEstimation"),
}


@dataclass(frozen=True)
class Annotator:
    """A network, what prepares its pictures and reads its output, and where it computes."""

    name: str
    network: nn.Module
    processor: Any
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def task_of(folder: Path) -> str | None:
    """Which of `TASKS` a folder is for, by its config.json alone; None for any other folder."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        architectures = [name for name in config.get("architectures") or () if isinstance(name, str)]
    except (OSError, ValueError, AttributeError):
        return None
    return next((task for task, row in TASKS.items() for name in architectures if name.endswith(row.suffix)), None)


def load_annotator(folder: Path, task: str) -> Annotator:
    """Read a network and its processor from a folder, on the CPU and ready to evaluate.

    Args:
        folder: As `hf download` or `save_pretrained` writes it.
        task: A key of `TASKS`.

    Returns:
        The annotator, in fp32.

    Raises:
        FileNotFoundError: The folder has no config.json.
        ValueError: It is for another task, or its files are damaged or incomplete.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"'{folder.name}' has no config.json: it is no model folder, download the whole model again.")
    found, wanted = task_of(folder), TASKS[task]
    if found != task:
        kind = f"a network for {TASKS[found].title}" if found else "of a kind that is not known"
        raise ValueError(f"'{folder.name}' is {kind} and one for {wanted.title} is needed: choose another folder.")
    import transformers

    try:
        processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        network, report = getattr(transformers, wanted.loader).from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # whatever a foreign folder breaks in its reader, the cure is the same
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:120]
        raise ValueError(f"'{folder.name}' cannot be read ({reason}): download the whole model again.") from error
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"'{folder.name}' lacks {len(missing)} weights, '{missing[0]}' first: download the whole model again.")
    return Annotator(folder.name, network.eval().requires_grad_(False), processor)
