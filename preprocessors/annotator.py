"""Networks that look at pictures: what a transformers folder holds, and reading it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..models.foreign import first_line, read_small_json, shown


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

    @property
    def config(self) -> Any:
        """What the network's config.json says."""
        return self.network.config


UNUSED = re.compile(r"neck\.fusion_stage\.layers\.0\.residual_layer1\.|(\.|^)num_batches_tracked$")
"""Weights that no result depends on and that published files leave out: the residual of DPT's first fusion layer, which has
none to add (Intel/dpt-large), and counters of batch norms."""


CONFIG = "config.json"
SMALL = (
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "generation_config.json",
    "adapter_config.json", "model.safetensors.index.json", "pytorch_model.bin.index.json", "tokenizer_config.json",
)  # fmt: skip
"""What transformers reads of a folder beside that and the weights: none is needed by all networks, and all are small."""


def task_of(folder: Path) -> str | None:
    """Which of `TASKS` a folder is for, by its config.json alone; None for any other folder, whatever lies there."""
    try:
        found = read_small_json(folder / CONFIG).get("architectures") or ()
        architectures = [name for name in found if isinstance(name, str)]
    except (OSError, ValueError, AttributeError, TypeError):
        return None
    return next((task for task, row in TASKS.items() for name in architectures if name.endswith(row.suffix)), None)


def check_task(folder: Path, task: str) -> None:
    """Refuse a folder by what its config.json says, before any weights are read.

    Args:
        folder: As `hf download` or `save_pretrained` writes it.
        task: A key of `TASKS`.

    Raises:
        FileNotFoundError: The folder has no config.json.
        ValueError: It is for another task, or a file of it cannot be what its name says.
    """
    name, wanted = shown(folder.name), TASKS[task]
    if not os.path.isfile(folder / CONFIG):  # noqa: PTH113 - which raises nothing
        raise FileNotFoundError(f"'{name}' has no {CONFIG}: it is no model folder, download the whole model again.")
    found = task_of(folder)
    if found != task:
        kind = f"a network for {TASKS[found].title}" if found else "of a kind that is not known"
        raise ValueError(f"'{name}' is {kind} and one for {wanted.title} is needed: choose another folder.")
    for file in SMALL:
        if os.path.lexists(folder / file):
            _check_small(folder / file, name)


def _check_small(path: Path, name: str) -> None:
    try:
        problem = _problem_of(read_small_json(path))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"'{name}' cannot be read ({path.name}: {first_line(error)}): download the whole model again."
        ) from error
    if problem:
        raise ValueError(f"'{name}' cannot be read ({path.name}: {problem}): download the whole model again.")


def _problem_of(content: Any) -> str:
    if not isinstance(content, dict):
        return "it is no JSON object"
    # An index says in which files the weights lie.
    files = content.get("weight_map", {})
    if not isinstance(files, dict) or not all(
        isinstance(file, str) and re.fullmatch(r"\w[^/\\:]*", file) for file in files.values()
    ):
        return "it names weights outside the folder"
    return ""


def load_annotator(folder: Path, task: str) -> Annotator:
    """Read a network and its processor from a folder, on the CPU and ready to evaluate.

    Args:
        folder: As `hf download` or `save_pretrained` writes it.
        task: A key of `TASKS`.

    Returns:
        The annotator, in fp32.

    Raises:
        FileNotFoundError: The folder has no config.json.
        ValueError: It is for another task, its files are damaged or incomplete, or it needs a package that is not there.
    """
    check_task(folder, task)
    import transformers

    name = shown(folder.name)
    # A folder may name code of its own to be run: never.
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(folder, **options)
        loader = getattr(transformers, TASKS[task].loader)
        network, report = loader.from_pretrained(folder, output_loading_info=True, **options)
    except ImportError as error:
        raise ValueError(f"'{name}' needs a package that is not installed: {first_line(error)}") from error
    except Exception as error:  # whatever a foreign folder breaks in its reader, the cure is the same
        raise ValueError(f"'{name}' cannot be read ({first_line(error)}): download the whole model again.") from error
    if missing := sorted(key for key in report["missing_keys"] if not UNUSED.search(key)):
        raise ValueError(f"'{name}' lacks {len(missing)} weights, '{shown(missing[0])}' first: download the whole model again.")
    return Annotator(folder.name, network.float().eval().requires_grad_(False), processor)


def evaluate(annotator: Annotator, pictures: NDArray[np.uint8], **options: Any) -> Any:
    """Show pictures to a network.

    Args:
        annotator: Its network must be on its device.
        pictures: (B, H, W, 3), RGB.
        options: For the processor, in place of what its file says.

    Returns:
        The network's output, of the class that its processor's `post_process_...` takes.

    Raises:
        ValueError: It fails, most often because what the folder says of sizes, means and the like cannot be computed with.
        OutOfMemoryError: The device is too small for so many pictures.
        MemoryError: The main memory is.
    """
    try:
        inputs = annotator.processor(images=list(pictures), return_tensors="pt", input_data_format="channels_last", **options)
        return annotator.network(**{name: tensor.to(annotator.device) for name, tensor in inputs.items()})
    except (torch.cuda.OutOfMemoryError, MemoryError):
        raise  # the caller shows fewer pictures at a time
    except Exception as error:  # values of a foreign configuration are checked by nobody before they are used
        raise ValueError(
            f"'{shown(annotator.name)}' cannot look at a picture ({first_line(error)}): if its files have been changed, "
            "download the whole model again."
        ) from error
