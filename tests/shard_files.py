"""Pairs in tar shards, raw and encoded, in miniature. Needs torch, webdataset and the pack alone: no ComfyUI."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from nextcontrol.training.chunks import chunks_of
from nextcontrol.training.config import TrainConfig
from nextcontrol.training.dataset import DatasetSettings, PairDataset, ShardSettings
from nextcontrol.training.encoded_pair import PairEncoder
from nextcontrol.training.objective import DiscreteObjective, sd_alphas
from nextcontrol.training.precompute import WHOLE, Part, Progress, precompute
from nextcontrol.training.raw_shards import find_shards
from nextcontrol.training.shard_index import load_index
from nextcontrol.training.shards import Shards, ShardSource
from nextcontrol.training.tar_writer import write_samples
from tiny_training import Encoders, dataset_of, write_pairs

OBJECTIVE = DiscreteObjective(sd_alphas())
CONFIG = TrainConfig(steps=40, batch_size=2, accumulation_steps=6, preview_every=0, validation_pairs=3, seed=5)


def raw_samples(folder: Path, count: int) -> list[dict[str, Any]]:
    """Pairs as the files of samples."""
    write_pairs(folder, count)
    return [
        {
            "__key__": f"{number:03d}",
            "target.png": (folder / "target" / f"{number:03d}.png").read_bytes(),
            "hint.png": (folder / "source" / f"{number:03d}.png").read_bytes(),
            "txt": f"number {number}".encode(),
        }
        for number in range(count)
    ]


def write_raw(folder: Path, samples: list[dict[str, Any]], per_shard: int) -> Path:
    """Tar shards of pictures."""
    for number, start in enumerate(range(0, len(samples), per_shard)):
        write_samples(folder / f"{number:04d}.tar", samples[start : start + per_shard])
    return folder


def sharded(folder: Path, shards: ShardSettings | None = None, **settings: Any) -> PairDataset:
    """A folder of pairs, or of tar shards, as one that is trained from encoded shards."""
    chosen = shards or ShardSettings(precision="fp32", pairs_per_shard=5)
    if packed := find_shards(folder):
        return PairDataset(folder.name, folder, (), (), DatasetSettings(**{"resolution": 64, **settings}), {}, packed, chosen)
    return replace(dataset_of(folder, **settings), shards=chosen)


def encoder_of(dataset: PairDataset, encoders: Encoders | None = None, hint_form: Any = "latent") -> PairEncoder:
    """With stand-ins for VAE and text encoder."""
    encoders = encoders or Encoders()
    return PairEncoder(encoders, encoders, hint_form, dataset.shards.precision, dataset.settings)


def encode(dataset: PairDataset, folder: Path, part: Part = WHOLE, encoders: Encoders | None = None, **more: Any) -> Progress:
    """One part of a dataset into a folder."""
    on_pair = more.pop("on_pair", lambda *_: None)
    return precompute(chunks_of(dataset), folder, encoder_of(dataset, encoders, **more), part, on_pair)


def source_of(
    folder: Path, buffer_size: int = 7, config: TrainConfig = CONFIG, is_skipping: bool = False, **more: Any
) -> ShardSource:
    """What is trained from encoded shards."""
    index = load_index(folder).check_files(folder, is_skipping)
    settings = {"scale": 1.0, "empty": Encoders().encode(""), "has_flip": False, "prompt_dropout": 0.3, **more}
    return ShardSource(Shards(folder, index, **settings), config, OBJECTIVE, buffer_size)


def same(ours: list, theirs: list) -> bool:
    """Whether two lists of batches are equal bit for bit."""
    return len(ours) == len(theirs) and all(
        a.names == b.names and all(torch.equal(x, y) for x, y in zip(a[:5], b[:5], strict=True))
        for a, b in zip(ours, theirs, strict=True)
    )
