"""The files of one training, beside the other models: what the method publishes; states, numbers and previews."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import folder_paths
import torch
from torch import Tensor

from ...training.config import TrainConfig
from ...training.dataset import PairDataset
from ...training.durable import write_tensors
from ...training.method import Published
from ...training.mixed import MixedDataset
from ...training.pictures import from_pixels, read_picture, to_pixels
from .convert import check_name

VERSION = "0.1.0"
_PREVIEW = re.compile(r"^step-(\d{8})\.jpg$")
SHOWN_PREVIEWS = 16
"""Pictures that the node gives out, the last ones."""


@dataclass(frozen=True)
class TrainFiles:
    """Names and places."""

    main: Path
    name: str
    """As the loader takes it."""
    suffixes: tuple[str, ...] = ("",)

    def path(self, suffix: str) -> Path:
        """Of one of the files that the method publishes."""
        return self.main.with_name(f"{self.main.stem}{suffix}{self.main.suffix}")

    @property
    def names(self) -> list[str]:
        """Of all files, as the loaders take them."""
        return [PurePosixPath(self.name).with_name(self.path(suffix).name).as_posix() for suffix in self.suffixes]

    @property
    def folder(self) -> Path:
        """States, metrics.jsonl, previews. Nothing in it has an extension that a combo of models lists."""
        return self.main.with_name(f"{self.main.stem}.training")

    @property
    def metrics(self) -> Path:
        """The run's numbers."""
        return self.folder / "metrics.jsonl"

    def check_free(self, is_resumed: bool) -> None:
        """Refuse to write over anything.

        Args:
            is_resumed: Whether to go on from a saved state.

        Raises:
            ValueError: The name is taken, and not by a training to go on with.
        """
        has_state = any(self.folder.glob("*.state"))
        if has_state and not is_resumed:
            raise ValueError(f"A training named '{self.name}' is there already: set resume to go on, or choose another name.")
        taken = [name for name, suffix in zip(self.names, self.suffixes, strict=True) if self.path(suffix).exists()]
        if taken and not has_state:
            raise ValueError(
                f"'{taken[0]}' is there already without a saved training to go on from, and no file is overwritten: choose "
                "another name."
            )

    def write(
        self, published: Published, metadata: dict[str, str], step: int, own: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        """Write the files that the loaders read.

        Args:
            published: From the method.
            metadata: For the header of every file.
            step: Updates done.
            own: For the header of one, by its suffix; keys without `nextcontrol.`.
        """
        for suffix, tensors in published.items():
            about = {"steps": step, **(own or {}).get(suffix, {})}
            write_tensors(self.path(suffix), tensors, metadata | {f"nextcontrol.{key}": str(about[key]) for key in about})

    def write_preview(self, picture: Tensor, step: int) -> None:
        """Keep a preview, (3, H, W) in [0, 1]."""
        folder = self.folder / "previews"
        folder.mkdir(parents=True, exist_ok=True)
        from_pixels(picture).save(folder / f"step-{step:08d}.jpg", quality=90)

    def previews(self) -> Tensor:
        """(N, H, W, 3), the last ones of one size, in order; one black picture if there are none."""
        found = sorted((self.folder / "previews").glob("step-*.jpg"))[-SHOWN_PREVIEWS:]
        pictures = [to_pixels(read_picture(path, path.name)).movedim(1, -1) for path in found]  # BCHW -> BHWC
        same = [picture for picture in pictures if picture.shape == pictures[-1].shape]
        return torch.cat(same) if same else torch.zeros(1, 64, 64, 3)


def files_for(name: str, kind: str = "ctrlora", suffixes: tuple[str, ...] = ("",)) -> TrainFiles:
    """Where the training of that name lies.

    Args:
        name: As typed, sub-folders allowed, with or without extension.
        kind: Of model files, as ComfyUI knows it.
        suffixes: Of the files that the method publishes.

    Returns:
        Below the first place for such models.

    Raises:
        ValueError: It is empty, impossible, or leads out of the folder.
    """
    relative: PurePosixPath | None = check_name(name)
    if relative is None:
        raise ValueError("name is empty: type one for the new file.")
    return TrainFiles(Path(folder_paths.get_folder_paths(kind)[0]) / relative, relative.as_posix(), suffixes)


def describe_run(dataset: PairDataset | MixedDataset, config: TrainConfig, about: Mapping[str, Any]) -> dict[str, str]:
    """What a file's header says of its origin.

    Args:
        dataset: What it was trained on.
        config: The settings.
        about: What the method says of itself, and more.

    Returns:
        Keys with `nextcontrol.`; what is empty is left out.
    """
    own: dict[str, Any] = {
        **about,
        "condition": dataset.hint_type,
        "preprocessor": json.dumps(dataset.about.get("options", {})) if dataset.about else "",
        "learning_rate": config.learning_rate,
        "dataset": dataset.name,
        "resolution": dataset.settings.resolution,
        "settings": config.to_json(),
        "version": VERSION,
    }
    return {f"nextcontrol.{key}": str(value) for key, value in own.items() if value != ""}
