"""Dataset folders of every layout, through Pair Dataset, Check Pairs, Make Pairs and what a training makes of them first."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from fuzz.cases import CANARY, Made, Room
from fuzz.folders import CHANGES, LAYOUTS, write_made, write_pairs
from fuzz.judge import EscapeError, WrongError
from fuzz.pictures import VARIED, odd_pictures


class Dataset:
    """See the module."""

    name = "dataset"
    is_watched = True

    def __init__(self) -> None:
        odd_pictures()

    def enter(self, room: Room) -> None:
        """See `Target`: datasets lie in the case's folder."""
        import folder_paths

        folder_paths.set_input_directory(str(room.folder))

    def make(self, draw: random.Random, room: Room) -> Made:
        """See `Target`."""
        layout = draw.choice(LAYOUTS)
        folder = room.folder / "set"
        write_pairs(folder, layout)
        is_making = draw.random() < 0.3
        if is_making:
            write_made(room.folder / "made", draw)
        place = draw.choice((folder, folder, room.folder / "made")) if is_making else folder
        notes = [layout]
        for _ in range(draw.choice((1, 1, 2, 3))):
            kind = draw.choice(CHANGES)
            try:
                notes.append(str(kind(place, draw, room)))
            except OSError:
                continue  # two changes that exclude each other, or a name that this system does not take
        bad, hint_type = draw.choice(("refuse", "skip", "skip")), draw.choice(("unknown", "canny", "soft_edge"))
        choices = {
            "resolution": 64, "aspect_buckets": draw.random() < 0.5, "flip": draw.random() < 0.3, "prompt_dropout": 0.3,
            "subset": 0,
            "repeats": 1, "bad_pairs": bad,
        }  # fmt: skip
        actions: dict[str, Callable[[], Any]] = {
            "validate": lambda: validate("set"),
            "pair dataset": lambda: open_set(choices),
            "check pairs": lambda: check(choices, hint_type),
            "encode": lambda: encode(choices),
        }
        if is_making or draw.random() < 0.2:
            pictures = draw.choice(("set/target", "set/target", "set"))
            captions = draw.choice(("beside", "file_name", "none"))
            actions |= {f"make pairs {n}": lambda: make_pairs(pictures, captions) for n in (1, 2)}
            actions["pairs that were made"] = lambda: open_set(choices, "made")
        return Made(", ".join(notes), actions)


def validate(name: str) -> str:
    """What the nodes do before they run."""
    from nextcontrol.nodes.pairs import MakePairs, PairDatasetNode

    answers = PairDatasetNode.validate_inputs(name), MakePairs.validate_inputs(f"{name}/target", name)
    PairDatasetNode.fingerprint_inputs(name)
    return " ".join(map(str, answers))


def open_set(choices: dict[str, Any], name: str = "set") -> Any:
    """Pair Dataset."""
    from nextcontrol.nodes.pairs import PairDatasetNode

    dataset = PairDatasetNode.execute(name, **choices)[0]
    for pair in dataset.pairs:
        if CANARY in pair.caption:
            raise EscapeError(f"the caption of {pair.name} is {pair.caption}")
        if {"\ufffd", "\ufeff"} & set(pair.caption):
            raise WrongError(f"the caption of {pair.name} was read in another encoding: {pair.caption[:50]!r}")
    return dataset


def check(choices: dict[str, Any], hint_type: str) -> str:
    """Check Pairs."""
    from nextcontrol.nodes.host.check_dataset import check_dataset

    dataset = open_set(choices)
    report, _ = check_dataset(dataset, dataset.hint_type if hint_type == "unknown" else hint_type)
    return report


def encode(choices: dict[str, Any]) -> None:
    """What a training does first, twice: the second time from the cache."""
    from nextcontrol.nodes.host.dataset_folders import cache_of
    from nextcontrol.training.encode import encode_dataset
    from nextcontrol.training.pictures import read_picture
    from tiny_training import Encoders

    dataset = open_set(choices)
    varied = {odd_pictures()[name] for name in VARIED}
    for path in (path for pair in dataset.pairs for path in (pair.target, pair.hint) if path.read_bytes() in varied):
        lowest, highest = read_picture(path, "x").convert("L").getextrema()
        if highest - lowest < 100:
            raise WrongError(
                f"a picture of {path.stat().st_size} bytes with values of all kinds is read as {lowest} to {highest}"
            )
    for form in ("latent", "pixels", "latent"):
        encoders = Encoders()
        encoded = encode_dataset(dataset, encoders, encoders, cache_of(dataset), 1.0, form)
        for item in encoded.items:
            encoded.latent(item.sides[0][0]), encoded.hint(item.sides[0][1]), encoded.text(item.caption)


def make_pairs(pictures: str, captions: str) -> str:
    """Make Pairs, of a kind that needs no network."""
    from nextcontrol.nodes.host.make_hints import make_dataset
    from nextcontrol.training.make_pairs import MakeSettings

    return make_dataset(pictures, "made", MakeSettings("grayscale", {}, 64, captions), "")


TARGET = Dataset
