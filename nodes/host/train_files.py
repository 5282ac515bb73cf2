"""The files of one training, beside the other models: the LoRA, and a folder with states, numbers and previews."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import folder_paths
import torch
from torch import Tensor

from ...models.adapted import LORA
from ...training.checkpoint import write_tensors
from ...training.dataset import PairDataset
from ...training.encode import EncodedDataset
from ...training.pictures import from_pixels, read_picture, to_pixels
from ...training.trainable import published
from ...training.trainer import Trainer
from .convert import check_name

FOLDER = "ctrlora"
VERSION = "0.1.0"
_PREVIEW = re.compile(r"^step-(\d{8})\.jpg$")
SHOWN_PREVIEWS = 16
"""Pictures that the node gives out, the last ones."""


@dataclass(frozen=True)
class TrainFiles:
    """Names and places."""

    lora: Path
    name: str
    """As `NextControlLoadCtrLoRA` takes it."""

    @property
    def folder(self) -> Path:
        """States, metrics.jsonl, previews. Nothing in it has an extension that a combo of models lists."""
        return self.lora.with_name(f"{self.lora.stem}.training")

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
        if self.lora.exists() and not has_state:
            raise ValueError(
                f"'{self.name}' is there already without a saved training to go on from, and no file is overwritten: choose "
                "another name."
            )

    def write_lora(self, trainer: Trainer, metadata: dict[str, str]) -> None:
        """Write the file that the loaders read."""
        own = metadata | {"nextcontrol.steps": str(trainer.step)}
        write_tensors(self.lora, published(trainer.result()), own)

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


def files_for(name: str) -> TrainFiles:
    """Where the training of that name lies.

    Args:
        name: As typed, sub-folders allowed, with or without extension.

    Returns:
        Below the first place for CtrLoRA models.

    Raises:
        ValueError: It is empty, impossible, or leads out of the folder.
    """
    relative: PurePosixPath | None = check_name(name)
    if relative is None:
        raise ValueError("name is empty: type one for the new LoRA.")
    return TrainFiles(Path(folder_paths.get_folder_paths(FOLDER)[0]) / relative, relative.as_posix())


def describe_run(
    dataset: PairDataset, encoded: EncodedDataset, trainer: Trainer, base_name: str, base_digest: str
) -> dict[str, str]:
    """What the LoRA's header says of its origin."""
    config, shapes = trainer.config, trainer.condition.tensors()
    own: dict[str, Any] = {
        "kind": "ctrlora_lora",
        "family": "sd15",
        "base": base_name.replace("\\", "/"),
        "base_hash": base_digest,
        "condition": dataset.hint_type,
        "preprocessor": json.dumps(dataset.about.get("options", {})) if dataset.about else "",
        "rank": config.rank,
        "layers": sum(key.endswith(f"{LORA}down.weight") for key in shapes),
        "learning_rate": config.learning_rate,
        "dataset": dataset.name,
        "dataset_hash": encoded.digest,
        "pairs": len(encoded.items),
        "resolution": dataset.settings.resolution,
        "settings": config.to_json(),
        "version": VERSION,
    }
    return {f"nextcontrol.{key}": str(value) for key, value in own.items() if value != ""}
