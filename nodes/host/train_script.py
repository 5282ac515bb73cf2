"""A training from a JSON file, without graph and server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import comfy.sd

from ...models.foreign import parse_json, shown
from ...training.clips import ClipSettings
from ...training.config import TrainConfig
from ...training.dataset import DatasetSettings, ShardSettings
from ...training.method_controlnet import PROMPT_DROPOUT
from ...training.method_controlnext import ControlNeXtOptions
from ...training.settings import settings_from
from ...training.team import Alone, Team, check_share
from .ctrlora_load import load_base
from .dataset_folders import open_dataset, open_datasets
from .folders import full_path
from .recipe_controlnet import ControlNetRecipe
from .recipe_controlnext import ControlNeXtRecipe
from .recipe_ctrlora import CtrLoRARecipe
from .recipe_ctrlora_base import CtrLoRABaseRecipe
from .train_job import Recipe, TrainJob, train

PARTS = ("method", "checkpoint", "base", "name", "dataset", "options", "clips", "training", "resume")
REQUIRED = ("checkpoint", "name", "dataset")
LISTED = 5
"""Problems that one message names."""
Job = dict[str, Any]


def _ctrlora(job: Job) -> Recipe:
    return CtrLoRARecipe(load_base(job["base"], use_embedded_lora=False, cache_megabytes=0), job["training"].rank)


def _ctrlora_base(job: Job) -> Recipe:
    return CtrLoRABaseRecipe(tuple(job["folders"]), job["training"].rank, job["name"], **job["options"])


def _controlnext(job: Job) -> Recipe:
    return ControlNeXtRecipe(ControlNeXtOptions.from_values(job["options"]))


def _controlnet(job: Job) -> Recipe:
    return ControlNetRecipe(**job["options"], name=job["name"])


@dataclass(frozen=True)
class Reader:
    """How a method is read from a configuration file."""

    build: Callable[[Job], Recipe]
    """From what `read_job` returns."""
    required: tuple[str, ...] = ()
    """Parts of the file that it needs besides those that all need."""
    options: frozenset[str] = frozenset()
    """Names that `options` may have."""
    dataset: Mapping[str, Any] = field(default_factory=dict)
    """`DatasetSettings` whose default is another for this method."""
    has_folders: bool = False
    """It trains several conditions: the dataset has `folders` by condition."""
    has_clips: bool = False
    """It trains on clips too, where the model is SVD."""


READERS: Mapping[str, Reader] = {
    "ctrlora": Reader(_ctrlora, required=("base",)),
    "ctrlora_base": Reader(_ctrlora_base, options=frozenset({"layout"}), has_folders=True),
    "controlnet": Reader(_controlnet, options=frozenset({"hint_encoder"}), dataset={"prompt_dropout": PROMPT_DROPOUT}),
    "controlnext": Reader(_controlnext, options=frozenset(field.name for field in fields(ControlNeXtOptions)), has_clips=True),
}


def read_job(text: str) -> Job:
    """What a configuration file asks for.

    Args:
        text: JSON with `method` (else "ctrlora"), `checkpoint`, `name`, `dataset` (`folder` and `DatasetSettings`), what the
            method needs besides, and optionally `options` of the method, `clips` (`ClipSettings`, for SVD), `training`
            (`TrainConfig`) and `resume`. Where the
            method trains several conditions, `dataset` has `folders`: the condition's name to its folder, for each of them.

    Returns:
        The same with `training` and `dataset` as objects of their classes, and the folders; what was left out is filled in.

    Raises:
        ValueError: It is no JSON, something is missing or unknown, or settings contradict each other.
    """
    try:
        given = parse_json(text, object_pairs_hook=_once)
    except ValueError as error:
        raise ValueError(f"The configuration cannot be read ({error}): it needs one JSON object.") from error
    if not isinstance(given, Mapping) or not isinstance(given.get("dataset"), Mapping):
        raise ValueError("The configuration must be a JSON object with checkpoint, name, and dataset with its folder.")
    method = given.get("method", "ctrlora")
    if not isinstance(method, str) or method not in READERS:
        raise ValueError(f"method is '{shown(method)}' and must be one of {', '.join(READERS)}: choose one of these.")
    reader, options = READERS[method], given.get("options", {})
    parts: dict[str, type] = {
        "options": dict,
        "clips": dict,
        "training": dict,
        "checkpoint": str,
        "base": str,
        "name": str,
        "resume": bool,
    }
    if wrong := [name for name, kind in parts.items() if not isinstance(given.get(name, kind()), kind)]:
        kinds = {dict: "an object", str: "a text", bool: "true or false"}
        raise ValueError(
            f"The configuration is wrong: {' and '.join(f'{name} must be {kinds[parts[name]]}' for name in wrong)}."
        )
    problems = [f"'{shown(key)}' is unknown" for key in given if key not in PARTS]
    problems += [f"'{shown(key)}' is missing" for key in (*REQUIRED, *reader.required) if not given.get(key)]
    problems += [f"'{shown(key)}' is no option of {method}" for key in options if key not in reader.options]
    if "clips" in given and not reader.has_clips:
        problems.append(f"'clips' is for SVD and {method} trains on pictures")
    settings = dict(given["dataset"])
    folder, folders = settings.pop("folder", ""), settings.pop("folders", {})
    shards = settings.pop("shards", None)
    problems += _problems_of_folders(method, reader, given["dataset"])
    problems += _problems_of_shards(shards)
    problems += [
        f"'{shown(key)}' is no setting of a dataset" for key in settings if key not in DatasetSettings.__dataclass_fields__
    ]
    if problems:
        more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        raise ValueError(f"The configuration is wrong: {'; '.join(problems[:LISTED])}{more}.")
    return {
        **given,
        "method": method,
        "options": options,
        "resume": given.get("resume", True),
        "folder": folder,
        "folders": folders,
        "clips": ClipSettings.from_values(given.get("clips", {})),
        "shards": None if shards is None else settings_from(ShardSettings, shards, "no setting of shards"),
        "dataset": settings_from(DatasetSettings, {**reader.dataset, **settings}, "no setting of a dataset"),
        "training": settings_from(TrainConfig, given.get("training", {}), "no setting of the training"),
    }


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; Python's own reader would keep the last of two values."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"'{shown(next(name for name, count in Counter(names).items() if count > 1))}' is there twice")
    return found


def _problems_of_folders(method: str, reader: Reader, dataset: Mapping[str, Any]) -> list[str]:
    folders = dataset.get("folders", {})
    if not reader.has_folders:
        is_text = isinstance(dataset.get("folder", ""), str)
        problems = [] if is_text else ["'folder' must be the name of a folder in quotes"]
        if "folders" in dataset:
            problems.append(f"'folders' is for several conditions and {method} trains one: give its 'folder'")
        return problems
    is_map = isinstance(folders, Mapping) and all(isinstance(folder, str) for folder in folders.values())
    problems = []
    if "folder" in dataset:
        problems.append(f"{method} trains several conditions: give 'folders', the name of each condition with its folder")
    elif not folders or not is_map:
        problems.append('\'folders\' must name a folder for each condition, as {"canny": "pairs_canny"}')
    if "hint_type" in dataset:
        problems.append("'hint_type' is the name of each condition here: leave it out")
    shards = dataset.get("shards")
    if isinstance(shards, Mapping) and shards.get("folder"):
        problems.append("the 'folder' of shards would be one for all conditions: leave it out, each folder has its own")
    return problems


def train_from_text(text: str, show: Callable[[str], None], team: Team | None = None) -> tuple[str, ...]:
    """Train what a configuration file asks for.

    Args:
        text: See `read_job`.
        show: Takes a line of progress.
        team: The processes of the training; without one there is this one.

    Returns:
        The new files, below ComfyUI's models/.

    Raises:
        ValueError: See `read_job` and `train_job.train`.
        FileNotFoundError: A model is not there.
    """
    request = job_from_text(text, team)
    return tuple(f"{request.recipe.folder}/{name}" for name in train(request, show).files)


def _problems_of_shards(shards: Any) -> list[str]:
    if shards is not None and not isinstance(shards, Mapping):
        return [f"shards must be an object with settings, as {{}}, and is '{shown(shards)}'"]
    known = ShardSettings.__dataclass_fields__
    return [f"'{shown(key)}' is no setting of shards" for key in shards or {} if key not in known]


def job_from_text(text: str, team: Team | None = None) -> TrainJob:
    """What a configuration file asks for, its models loaded and its folders looked through; see `train_from_text`."""
    job, team = read_job(text), team or Alone()
    check_share(job["training"].accumulation_steps, team.share.processes)
    path = full_path("checkpoints", job["checkpoint"])
    if path is None:
        raise FileNotFoundError(f"'{shown(job['checkpoint'])}' is not in models/checkpoints: put it there.")
    settings, folders = job["dataset"], job["folders"]
    shards = job["shards"]
    dataset = open_datasets(folders, settings, shards) if folders else open_dataset(job["folder"], settings, shards)
    recipe = READERS[job["method"]].build(job)
    loaded = comfy.sd.load_checkpoint_guess_config(str(path), output_vae=True, output_clip=True, output_clipvision=True)
    model, clip, vae, clip_vision = loaded
    if (clip is None and clip_vision is None) or vae is None or model is None:
        raise ValueError(f"'{shown(job['checkpoint'])}' is no full checkpoint: use one with UNet, CLIP and VAE.")
    return TrainJob(
        model, clip, vae, recipe, dataset, job["name"], job["training"], job["resume"], clip_vision, job["clips"], team
    )
