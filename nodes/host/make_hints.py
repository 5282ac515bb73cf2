"""Any type of hint by its name, with the annotator that it needs: what making a dataset goes through."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping

import comfy.model_management
import comfy.utils
from torch import Tensor

from ...preprocessors.annotator import TASKS
from ...preprocessors.table import PREPROCESSORS
from ...training.make_pairs import MakeSettings, make_pairs
from .annotators import list_annotators, open_annotator
from .aux_detectors import open_detectors
from .dataset_folders import dataset_roots, find_folder, new_folder

GIVEN = frozenset({"frames", "resolution", "annotator", "detector", "seed", "drawing"})
"""Arguments of a preprocessor that are no options."""


def read_options(hint_type: str, text: str) -> dict[str, object]:
    """A preprocessor's options as typed.

    Args:
        hint_type: A key of `PREPROCESSORS`.
        text: A JSON object, or nothing.

    Returns:
        Name to value.

    Raises:
        ValueError: It is no JSON object, or names an option that this type does not have.
    """
    try:
        options = json.loads(text) if text.strip() else {}
    except ValueError as error:
        raise ValueError(f'options cannot be read ({error}): write them as JSON, such as {{"low_threshold": 50}}.') from error
    if not isinstance(options, Mapping):
        raise ValueError('options must be a JSON object, such as {"low_threshold": 50}.')
    known = [name for name in inspect.signature(PREPROCESSORS[hint_type].make).parameters if name not in GIVEN]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ValueError(f"options has '{unknown[0]}' and {hint_type} has {', '.join(known) or 'none'}: use one of these.")
    return dict(options)


def hint_maker(hint_type: str, options: Mapping[str, object], annotator: str) -> Callable[[Tensor, int], Tensor]:
    """A function from a picture (1, H, W, 3) and a seed to its hint, of the same size.

    Args:
        hint_type: A key of `PREPROCESSORS`.
        options: From `read_options`.
        annotator: Folder in models/annotators for the types that need one; empty for the first that is there.

    Returns:
        The function. Networks come to the device here.

    Raises:
        ValueError: The type is unknown.
        FileNotFoundError: What the type needs is not there; the message says how to get it.
        ImportError: It needs controlnet-aux, which is not installed.
    """
    row = PREPROCESSORS[hint_type]
    networks = []
    if row.task in TASKS:
        name = annotator or next(iter(list_annotators(row.task)), row.task)
        networks = [open_annotator(name, row.task)]
    elif row.task:
        networks = open_detectors((row.task,))
    takes_seed = row.is_random

    def make(frames: Tensor, seed: int) -> Tensor:
        extra = {"seed": seed} if takes_seed else {}
        return row.make(frames, 0, *networks, **options, **extra)

    return make


def make_dataset(pictures: str, folder: str, settings: MakeSettings, annotator: str) -> str:
    """Make the pairs of a dataset, with progress and cancel.

    Args:
        pictures: Folder, as typed.
        folder: Of the dataset, as typed.
        settings: How.
        annotator: See `hint_maker`.

    Returns:
        A report in some lines.

    Raises:
        ValueError: A name leads out, or see `training.make_pairs.make_pairs`.
        FileNotFoundError: There is no such folder, or see `hint_maker`.
        ImportError: See `hint_maker`.
    """
    source, target = find_folder(pictures, "pictures"), new_folder(folder, "folder")
    make = hint_maker(settings.hint_type, settings.options, annotator)
    bar = comfy.utils.ProgressBar(1)

    def on_item(done: int, count: int) -> None:
        bar.update_absolute(done, count)
        comfy.model_management.throw_exception_if_processing_interrupted()

    return make_pairs(source, target, dataset_roots(), settings, make, on_item).text()
