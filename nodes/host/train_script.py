"""A training from a JSON file, without graph and server."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import comfy.sd
import folder_paths

from ...training.config import TrainConfig
from ...training.dataset import DatasetSettings
from .ctrlora_load import load_base
from .dataset_folders import open_dataset
from .train_ctrlora import TrainJob, train_ctrlora

PARTS = ("checkpoint", "base", "name", "dataset", "training", "resume")
REQUIRED = ("checkpoint", "base", "name", "dataset")


def read_job(text: str) -> dict[str, Any]:
    """What a configuration file asks for.

    Args:
        text: JSON with `checkpoint`, `base`, `name`, `dataset` (`folder` and `DatasetSettings`), and optionally `training`
            (`TrainConfig`) and `resume`.

    Returns:
        The same with `training` and `dataset` as objects of their classes, and the folder.

    Raises:
        ValueError: It is no JSON, something is missing or unknown, or settings contradict each other.
    """
    try:
        given = json.loads(text)
    except ValueError as error:
        raise ValueError(f"The configuration cannot be read ({error}): it needs one JSON object.") from error
    if not isinstance(given, Mapping) or not isinstance(given.get("dataset"), Mapping):
        raise ValueError("The configuration must be a JSON object with checkpoint, base, name, and dataset with its folder.")
    problems = [f"'{key}' is unknown" for key in given if key not in PARTS]
    problems += [f"'{key}' is missing" for key in REQUIRED if not given.get(key)]
    settings = dict(given["dataset"])
    folder = settings.pop("folder", "")
    problems += [f"'{key}' is no setting of a dataset" for key in settings if key not in DatasetSettings.__dataclass_fields__]
    if problems:
        raise ValueError(f"The configuration is wrong: {'; '.join(problems)}.")
    return {
        **given,
        "folder": folder,
        "dataset": DatasetSettings(**settings),
        "training": TrainConfig.from_json(json.dumps(given.get("training", {}))),
    }


def train_from_text(text: str, show: Callable[[str], None]) -> str:
    """Train what a configuration file asks for.

    Args:
        text: See `read_job`.
        show: Takes a line of progress.

    Returns:
        The name of the new LoRA.

    Raises:
        ValueError: See `read_job` and `train_ctrlora`.
        FileNotFoundError: A model is not there.
    """
    job = read_job(text)
    path = folder_paths.get_full_path("checkpoints", job["checkpoint"].replace("\\", "/"))
    if path is None:
        raise FileNotFoundError(f"'{job['checkpoint']}' is not in models/checkpoints: put it there.")
    dataset = open_dataset(job["folder"], job["dataset"])
    base = load_base(job["base"], use_embedded_lora=False, cache_megabytes=0)
    model, clip, vae = comfy.sd.load_checkpoint_guess_config(path, output_vae=True, output_clip=True)[:3]
    if clip is None or vae is None or model is None:
        raise ValueError(f"'{job['checkpoint']}' is no full checkpoint: use one with UNet, CLIP and VAE.")
    request = TrainJob(model, clip, vae, base, dataset, job["name"], job["training"], job.get("resume", True))
    return train_ctrlora(request, show).lora_file
