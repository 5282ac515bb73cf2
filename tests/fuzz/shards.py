"""Folders of tar shards: raw ones as people have them, and encoded ones with their index, as a training reads them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from fuzz.cases import CANARY, Made, Room
from fuzz.damage import damage_bytes, odd_value
from fuzz.judge import EscapeError, WrongError
from fuzz.pictures import odd_pictures
from fuzz.tars import change_index, change_members, change_place, change_sample, members_of, write_tar

STEPS = 2
DAMAGE = ("bits flipped", "bytes zeroed")
"""What a disk does to a file: numbers that are read in spite of it are wrong."""


class Shards:
    """See the module."""

    name = "shards"
    is_watched = True

    def __init__(self) -> None:
        import tempfile

        odd_pictures()
        with tempfile.TemporaryDirectory() as temporary:
            self.encoded = {form: encoded_folder(Path(temporary) / form, form) for form in ("latent", "pixels")}

    def enter(self, room: Room) -> None:
        """See `Target`: datasets lie in the case's folder."""
        import folder_paths

        folder_paths.set_input_directory(str(room.folder))
        self.empty = room.folder.parent / "good"
        self.good = {}
        for form, files in self.encoded.items():
            write_files(self.empty / form, files)
            self.good[form] = batches_of(self.empty / form)
        (room.outside / "secret.tar").write_bytes(files["shard-000000.tar"])

    def make(self, draw: random.Random, room: Room) -> Made:
        """See `Target`."""
        return self.make_raw(draw, room) if draw.random() < 0.6 else self.make_encoded(draw, room)

    def make_raw(self, draw: random.Random, room: Room) -> Made:
        """Two shards with three pairs each."""
        folder = room.folder / "set"
        folder.mkdir()
        notes = ["raw"]
        for shard in range(2):
            members = [member for number in range(3) for member in members_of(number + 3 * shard)]
            if shard == 0 and draw.random() < 0.75:
                for _ in range(draw.choice((1, 1, 2))):
                    how, members = change_members(members, draw, room)
                    notes.append(how)
            data = write_tar(
                members, draw.choice(("", "", "", "", "gz", "xz", "bz2")) if shard == 0 and draw.random() < 0.2 else ""
            )
            if shard == 0 and len(notes) == 1:
                how, data = damage_bytes(data, draw, draw.choice((0, 2048)))
                notes.append(how)
            (folder / f"{shard:04d}.tar").write_bytes(data)
        if draw.random() < 0.2:
            notes.append(change_place(folder / "0001.tar", draw, room))
        bad = draw.choice(("refuse", "skip"))
        return Made(
            ", ".join(notes), {"open": lambda: open_set(bad), "encode": lambda: encode(bad), "train": lambda: train(bad)}
        )

    def make_encoded(self, draw: random.Random, room: Room) -> Made:
        """A folder that a training would read."""
        form = draw.choice(list(self.encoded))
        files = dict(self.encoded[form])
        folder = room.folder / "set"
        kind = draw.choice(
            ("index", "index", "index", "index bytes", "about", "shard", "shard", "sample", "sample", "sample", "place")
        )
        how = kind
        if kind == "index":
            how, files["index.json"] = change_index(json.loads(files["index.json"]), draw, room)
        elif kind == "index bytes":
            how, files["index.json"] = damage_bytes(files["index.json"], draw)
            if draw.random() < 0.2:
                files["index.json"] = draw.choice((b"[" * 100_000, b"", b"\xff\xfe{}", b"{" + b" " * (1 << 21) + b"}"))
        elif kind == "about":
            del files["index.json"]
            about = json.loads(files["shard-000000.json"])
            part = draw.choice((about, about["entry"], about["made_from"]))
            part[draw.choice(list(part))] = odd_value(draw)
            content = draw.choice((json.dumps(about), json.dumps(about), json.dumps(odd_value(draw)), "[" * 100_000))
            files["shard-000000.json"] = content.encode("utf-8", "surrogatepass")
        elif kind == "shard":
            how, files["shard-000000.tar"] = damage_bytes(files["shard-000000.tar"], draw)
        elif kind == "sample":
            how, files["shard-000000.tar"] = change_sample(files["shard-000000.tar"], draw, room)
        write_files(folder, files)
        if kind == "place":
            name = draw.choice(("shard-000000.tar", "index.json", "shard-000000.json"))
            how = change_place(folder / name, draw, room)
        bad = draw.choice(("refuse", "skip"))
        is_damaged = how.endswith(DAMAGE)
        read = {"read": lambda: self.read(folder, form, bad, is_damaged)}
        return Made(f"encoded {form}, {kind}: {how}", {"open": lambda: open_set(bad)} | read)

    def read(self, folder: Path, form: str, bad: str, is_damaged: bool) -> None:
        """What an update is trained on has to be what it was, or nothing; unless somebody has put in other files."""
        import torch
        from nextcontrol.training.shard_index import has_index

        if not has_index(folder):
            return  # a training would encode anew
        found = batches_of(folder, bad == "skip")
        if not is_damaged or len(found) != len(self.good[form]):
            return
        for ours, good in zip(found, self.good[form], strict=True):
            if ours.names == good.names and not all(torch.equal(a, b) for a, b in zip(ours[:5], good[:5], strict=True)):
                raise WrongError(f"the pairs {ours.names} have other numbers than what was encoded")


def open_set(bad: str, name: str = "set") -> Any:
    """Pair Dataset."""
    from nextcontrol.nodes.host.dataset_folders import open_dataset, stamp_of
    from nextcontrol.training.dataset import DatasetSettings

    stamp_of(name)
    return open_dataset(name, DatasetSettings(resolution=64, bad_pairs=bad))


def encode(bad: str) -> str:
    """What `--precompute` does, twice."""
    from nextcontrol.nodes.host.dataset_folders import encoded_folder
    from shard_files import encode as encode_shards

    dataset = open_set(bad)
    folder = encoded_folder(dataset)
    encode_shards(dataset, folder)
    encode_shards(dataset, folder)
    text = "".join(path.read_text() for path in folder.glob("*.json"))
    if CANARY in text:
        raise EscapeError("the canary was encoded")
    return text.replace("\n", " ")[:1000]


def train(bad: str) -> None:
    """Read what was encoded."""
    from nextcontrol.nodes.host.dataset_folders import encoded_folder
    from nextcontrol.training.shard_index import has_index

    folder = encoded_folder(open_set(bad))
    if has_index(folder):
        batches_of(folder, bad == "skip")


def batches_of(folder: Path, is_skipping: bool = False) -> list[Any]:
    """What is trained, and what is held out."""
    from dataclasses import replace

    from shard_files import CONFIG, source_of

    source = source_of(folder, 4, replace(CONFIG, validation_pairs=1, accumulation_steps=1, steps=STEPS), is_skipping)
    return [*source.held_out(), *(batch for step in range(STEPS) for batch in source.batches(step))]


def encoded_folder(folder: Path, form: str) -> dict[str, bytes]:
    """Files of encoded shards, by name."""
    from nextcontrol.training.dataset import ShardSettings
    from shard_files import encode as encode_shards
    from shard_files import sharded
    from tiny_training import write_pairs

    pairs = write_pairs(folder / "pairs", 4)
    encode_shards(sharded(pairs, ShardSettings(precision="fp32", pairs_per_shard=2)), folder / "encoded", hint_form=form)
    return {path.name: path.read_bytes() for path in (folder / "encoded").iterdir()}


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """A folder of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


TARGET = Shards
