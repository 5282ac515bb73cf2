"""Train the demo model's controls with the pack's own trainer, on pairs made from its pictures by the pack's own hints."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from demo_train_autoencoder import on_ground
from demo_train_pictures import SIDE, SUBJECTS, load_pictures, warped
from provide import say

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

BASE = "demo_ctrlora_base"
HINTS: Mapping[str, Mapping[str, Any]] = {
    "canny": {},
    "palette": {"cell": 16},
    "pixel": {"scale": 4},
    "grayscale": {},
}
"""Types of hints and their settings, for pictures of 128 pixels."""
EVERY, HELD_OUT = 17, 8
"""One picture of so many is left out of all pairs, to measure the controls on."""
RANK = 8
SECONDS_BETWEEN_LINES = 30.0
COMMON: Mapping[str, Any] = {
    "rank": RANK, "precision": "fp32", "schedule": "cosine", "warmup_steps": 50, "max_grad_norm": 1.0, "preview_guidance": 4.0,
    "save_every": 100, "preview_every": 500, "sensitivity_every": 100, "validation_pairs": 8, "keep_states": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Control:
    """One training; the parts are those of a configuration file of scripts/train.py."""

    method: str
    conditions: tuple[str, ...]
    training: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    base: str = ""


CONTROLS: Mapping[str, Control] = {
    BASE: Control(
        "ctrlora_base",
        ("canny", "palette", "pixel"),
        {"steps": 2000, "batch_size": 16, "learning_rate": 5e-4, "ema_decay": 0.99},
    ),
    "demo_controlnext_canny": Control(
        "controlnext",
        ("canny",),
        {"steps": 1700, "batch_size": 12, "learning_rate": 2e-4, "ema_decay": 0.99},
        {"scale": 1.0, "control_rate_factor": 10.0, "width": 0.25},
    ),
    "demo_ctrlora_grayscale": Control(
        "ctrlora",
        ("grayscale",),
        {"steps": 350, "batch_size": 16, "learning_rate": 1e-3, "ema_decay": 0.99},
        base=f"{BASE}.safetensors",
    ),
}
"""By the name of the result, in the order in which they need one another."""


def train_controls(folder: Path, minutes: float, total: int | None, only: str = "") -> None:
    """Train what is not finished yet, and put the results in half precision into `folder`.

    A training that was stopped goes on; one that is finished is only written again.

    Args:
        folder: With pictures and model; takes the results.
        minutes: After which a training stops; started again it goes on.
        total: Steps of each training in the place of its own.
        only: Name of the one control to train; empty trains all.
    """
    from nextcontrol.nodes.host.demo_model import load_demo_model
    from nextcontrol.nodes.host.train_files import files_for
    from nextcontrol.nodes.host.train_script import READERS

    make_pairs(folder)
    for name, control in CONTROLS.items():
        if only not in ("", name):
            continue
        recipe = READERS[control.method].build(_job(name, control, total))
        files = files_for(name, recipe.folder, recipe.suffixes)
        train_one(name, control, total, load_demo_model(folder), _teller(minutes))
        for suffix in files.suffixes:
            write_half(files.path(suffix), folder / recipe.folder / files.path(suffix).name)


def train_one(
    name: str, control: Control, total: int | None, models: tuple[Any, Any, Any], show: Callable[[str], None]
) -> None:
    """One training to its end, as the training nodes do it."""
    from nextcontrol.nodes.host.dataset_folders import open_dataset, open_datasets
    from nextcontrol.nodes.host.train_job import TrainJob, train
    from nextcontrol.nodes.host.train_script import READERS

    job = _job(name, control, total)
    folders, settings = job["folders"], job["dataset"]
    if control.method == "ctrlora_base":
        dataset: Any = open_datasets(folders, settings)
    else:
        dataset = open_dataset(folders[control.conditions[0]], settings)
    recipe = READERS[control.method].build(job)
    train(TrainJob(*models, recipe, dataset, name, job["training"], is_resumed=True), show)
    say(f"Trained: {name}")


def _job(name: str, control: Control, total: int | None) -> dict[str, Any]:
    """As `train_script.read_job` gives it."""
    from nextcontrol.nodes.host.train_script import read_job

    folders = {condition: pairs_folder(condition) for condition in control.conditions}
    training = {**COMMON, **control.training, **({"steps": total} if total else {})}
    given = {
        "method": control.method, "checkpoint": "demo", "name": name, "options": control.options, "base": control.base or None,
        "training": training | {"warmup_steps": min(training["warmup_steps"], training["steps"] // 2)},
        "dataset": {"resolution": SIDE, "has_flip": True, "prompt_dropout": 0.3}
        | ({"folders": folders} if control.method == "ctrlora_base" else {"folder": folders[control.conditions[0]]}),
    }  # fmt: skip
    return read_job(json.dumps({key: value for key, value in given.items() if value})) | {"folders": folders}


def _teller(minutes: float) -> Callable[[str], None]:
    """Says now and then what a training shows, and interrupts it as the host's own button does when its time is over."""
    import comfy.model_management

    begin, shown = time.monotonic(), 0.0

    def show(text: str) -> None:
        nonlocal shown
        spent = time.monotonic() - begin
        if spent - shown > SECONDS_BETWEEN_LINES:
            say(f"{spent / 60:.1f} min: {' '.join(text.split())[:150]}")
            shown = spent
        if spent > 60 * minutes:
            comfy.model_management.interrupt_current_processing()

    return show


def pairs_folder(condition: str) -> str:
    """Name below input/."""
    return f"demo_pairs_{condition}"


def make_pairs(folder: Path) -> None:
    """Write a folder of pairs for each type of hint, once."""
    from nextcontrol.nodes.host.dataset_folders import dataset_roots

    root = dataset_roots()[0]
    wanted = [condition for condition in HINTS if not (root / pairs_folder(condition)).is_dir()]
    if not wanted:
        return
    pictures, captions, _ = parts_of(folder)
    for condition in wanted:
        draft = root / f"{pairs_folder(condition)}.draft"
        shutil.rmtree(draft, ignore_errors=True)
        for kind, tensors in (("target", pictures), ("source", hints_of(condition, pictures))):
            (draft / kind).mkdir(parents=True)
            for place, tensor in enumerate(tensors):
                write_picture(tensor, draft / kind / f"{place:04}.png")
        for place, caption in enumerate(captions):
            (draft / "target" / f"{place:04}.txt").write_text(caption, encoding="utf-8")
        draft.rename(root / pairs_folder(condition))
        say(f"Pairs: {len(captions)} in {root / pairs_folder(condition)}")


def parts_of(folder: Path, *, is_held_out: bool = False) -> tuple[Tensor, list[str], list[int]]:
    """Pictures of the subjects, warped so that a name leaves the outline to the control.

    Args:
        folder: With the pictures.
        is_held_out: Gives those that are held out, and not those for pairs.

    Returns:
        Pictures (N, 128, 128, 3), captions, and places among all pictures.
    """
    pictures, rows = load_pictures(folder)
    subjects = [place for place, row in enumerate(rows) if row["group"] in SUBJECTS]
    chosen = [place for number, place in enumerate(subjects) if (number % EVERY == HELD_OUT) == is_held_out]
    found = warped(on_ground(pictures[chosen]), seed=int(is_held_out))
    return found.movedim(1, -1).contiguous(), [rows[place]["caption"] for place in chosen], chosen


def hints_of(condition: str, pictures: Tensor) -> Tensor:
    """Hints of pictures (N, H, W, 3) by the pack's preprocessor."""
    from nextcontrol.preprocessors.table import PREPROCESSORS

    return PREPROCESSORS[condition].make(pictures, SIDE, **HINTS[condition])


def write_picture(picture: Tensor, path: Path, **options: Any) -> None:
    """Save (H, W, 3) in [0, 1]; `options` are Pillow's for the format."""
    import torch
    from PIL import Image

    Image.fromarray((picture.clamp(0, 1) * 255).round().to(torch.uint8).numpy()).save(path, **options)


def write_half(source: Path, target: Path) -> None:
    """A file of weights in half precision, with its header."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(source, "pt") as opened:
        metadata = opened.metadata()
    target.parent.mkdir(parents=True, exist_ok=True)
    tensors = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in load_file(source).items()}
    save_file(tensors, target, metadata)
    say(f"Written: {target}, {target.stat().st_size / 1e6:.2f} MB")
