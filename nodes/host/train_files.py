"""The files of one training, beside the other models: what the method publishes; states, numbers and previews."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from ...models.foreign import first_line, shown
from ...training.config import TrainConfig
from ...training.dataset import PairDataset
from ...training.durable import PART, CannotWriteError, check_length, left_overs, whole_file, write_tensors
from ...training.lock import RunLock
from ...training.method import Published
from ...training.mixed import MixedDataset
from ...training.picture_files import UnreadablePictureError
from ...training.pictures import from_pixels, read_picture, to_pixels
from .convert import check_name
from .folders import first_place

logger = logging.getLogger("nextcontrol")

VERSION = "0.1.0"
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
    def lock(self) -> RunLock:
        """One training of this name at a time."""
        return RunLock(self.folder / "training.lock", self.name)

    @property
    def previews_folder(self) -> Path:
        """Pictures by step."""
        return self.folder / "previews"

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
            raise ValueError(
                f"A training named '{shown(self.name)}' is there already: set resume to go on, or choose another name."
            )
        taken = [name for name, suffix in zip(self.names, self.suffixes, strict=True) if self.path(suffix).exists()]
        if taken and not has_state:
            raise ValueError(
                f"'{taken[0]}' is there already without a saved training to go on from, and no file is overwritten: choose "
                "another name."
            )

    def check_space(self, needed: int) -> None:
        """Refuse a training whose first state would not fit on the disk.

        Args:
            needed: Bytes of a state and of the published files.

        Raises:
            CannotWriteError: Less is free.
        """
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise CannotWriteError(
                f"'{shown(self.name)}' needs about {needed / 1e6:.0f} MB for a saved state and its files, and {free / 1e6:.0f} "
                "MB are free there: free some space."
            )

    def clean(self) -> None:
        """Delete the unfinished files of runs that were killed. Only with the lock held: whoever writes has it."""
        copies = [own for suffix in self.suffixes for own in left_overs(self.path(suffix))]
        for path in (*copies, *self.folder.glob(f".*{PART}"), *self.previews_folder.glob(f".*{PART}")):
            with suppress(OSError):
                path.unlink()

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
        """Keep a preview, (3, H, W) in [0, 1].

        Raises:
            CannotWriteError: The disk is full.
        """
        with whole_file(self.previews_folder / f"step-{step:08d}.jpg") as temporary:
            from_pixels(picture).save(temporary, "JPEG", quality=90)

    def previews(self) -> Tensor:
        """(N, H, W, 3), the last ones of one size, in order; one black picture if there are none."""
        found = sorted(self.previews_folder.glob("step-*.jpg"))[-SHOWN_PREVIEWS:]
        pictures = [picture for picture in map(_read_preview, found) if picture is not None]
        same = [picture for picture in pictures if picture.shape == pictures[-1].shape]
        return torch.cat(same) if same else torch.zeros(1, 64, 64, 3)


def _read_preview(path: Path) -> Tensor | None:
    """(1, H, W, 3); None, with a warning, for one that is torn or has been replaced by something else."""
    try:
        return to_pixels(read_picture(path.resolve(), path.name)).movedim(1, -1)  # BCHW -> BHWC
    except (UnreadablePictureError, OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        logger.warning("A preview is left out: %s", first_line(error))
        return None


def files_for(name: str, kind: str = "ctrlora", suffixes: tuple[str, ...] = ("",)) -> TrainFiles:
    """Where the training of that name lies.

    Args:
        name: As typed, sub-folders allowed, with or without extension.
        kind: Of model files, as ComfyUI knows it.
        suffixes: Of the files that the method publishes.

    Returns:
        Below the first place for such models.

    Raises:
        ValueError: It is empty, impossible, too long for the disk, or leads out of the folder.
    """
    relative: PurePosixPath | None = check_name(name)
    if relative is None:
        raise ValueError("name is empty: type one for the new file.")
    files = TrainFiles(first_place(kind) / relative, relative.as_posix(), suffixes)
    for path in (*map(files.path, suffixes), files.folder):
        check_length(path, files.name)
    return files


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
