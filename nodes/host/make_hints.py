"""Any type of hint by its name, with the annotator that it needs: what making a dataset goes through."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, get_args

import comfy.model_management
import comfy.utils
from torch import Tensor

from ...models.foreign import first_line, parse_json, shown
from ...preprocessors.annotator import TASKS, Annotator
from ...preprocessors.table import PREPROCESSORS, options_of
from ...training.make_pairs import MakeSettings, make_pairs
from .annotators import list_annotators, open_annotator
from .aux_detectors import open_detectors
from .controlnext_file import check_choice
from .dataset_folders import dataset_roots, find_pictures, new_folder
from .folders import DEMO

LARGEST_NUMBER = 1e15
"""Below which a preprocessor can compute with an option; also keeps NaN out."""
KINDS = {bool: "true or false", int: "a whole number", float: "a number"}


def read_options(hint_type: str, text: str) -> dict[str, object]:
    """A preprocessor's options as typed.

    Args:
        hint_type: A key of `PREPROCESSORS`.
        text: A JSON object, or nothing.

    Returns:
        Name to value.

    Raises:
        ValueError: It is no JSON object, or an option is unknown to this type or of another kind.
    """
    try:
        options = parse_json(text) if text.strip() else {}
    except ValueError as error:
        raise ValueError(f'options cannot be read ({error}): write them as JSON, such as {{"low_threshold": 50}}.') from error
    if not isinstance(options, Mapping):
        raise ValueError('options must be a JSON object, such as {"low_threshold": 50}.')
    known = options_of(hint_type)
    for name, value in options.items():
        if name not in known:
            raise ValueError(f"options has '{shown(name)}' and {hint_type} has {', '.join(known) or 'none'}: use one of these.")
        _check_kind(name, value, known[name])
    return dict(options)


def _check_kind(name: str, value: object, kind: Any) -> None:
    """A preprocessor trusts its caller; a node's schema has checked what this checks."""
    if choices := get_args(kind):
        check_choice(f"options' {name}", value, choices)
    elif not isinstance(value, int | float) or not _is_of(value, kind) or not abs(value) < LARGEST_NUMBER:
        text = shown(value if isinstance(value, list | dict) else json.dumps(value))
        raise ValueError(f"options' {name} is {text} and must be {KINDS[kind]}: write it as JSON.")


def _is_of(value: float, kind: Any) -> bool:
    return type(value) is kind or (kind is float and type(value) is int)


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
    import cv2

    row = PREPROCESSORS[hint_type]
    networks = [open_network(row.task, annotator)] if row.task else []
    more = {argument: open_network(task) for argument, task in row.annotators.items()}
    drawings = {argument: hint_maker(kind, {}, "") for argument, kind in row.hints.items()}

    def make(frames: Tensor, seed: int) -> Tensor:
        seeds = {"seed": seed} if row.is_random else {}
        hints = {argument: draw(frames, seed) for argument, draw in drawings.items()}
        try:
            return row.make(frames, 0, *networks, **more, **hints, **options, **seeds)
        except cv2.error as error:
            if error.code == cv2.Error.StsNoMem:
                raise MemoryError from error
            raise _undrawn(hint_type, error) from error
        except comfy.model_management.OOM_EXCEPTION:
            raise
        except (RuntimeError, TypeError, LookupError, AttributeError, AssertionError) as error:
            if "allocate memory" in str(error):  # torch's words on a CPU
                raise MemoryError from error
            raise _undrawn(hint_type, error) from error

    return make


def _undrawn(hint_type: str, error: Exception) -> ValueError:
    return ValueError(f"{hint_type} cannot be drawn from it ({first_line(error)}).")


def open_network(task: str, name: str = "") -> Annotator:
    """What a row of `PREPROCESSORS` needs, on the device.

    Args:
        task: A key of `annotator.TASKS` or of `aux_detector.DETECTORS`.
        name: Folder in models/annotators, for the first; empty for the first that fits.

    Returns:
        The network.

    Raises:
        FileNotFoundError: It is not there; the message says how to get it.
        ImportError: It needs controlnet-aux, which is not installed.
        ValueError: It is damaged, or for another task.
    """
    if task in TASKS:
        return open_annotator(name or list_annotators(task)[0], task)
    return open_detectors((task,))[0]


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
    source, target = find_pictures(pictures), new_folder(folder, "folder")
    make = hint_maker(settings.hint_type, settings.options, annotator)
    bar = comfy.utils.ProgressBar(1)

    def on_item(done: int, count: int) -> None:
        bar.update_absolute(done, count)
        comfy.model_management.throw_exception_if_processing_interrupted()

    return make_pairs(source, target, [*dataset_roots(), DEMO], settings, make, on_item).text()
