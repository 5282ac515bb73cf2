"""The files of a training that was stopped: states, numbers, previews, and the cache of what was encoded."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz.cases import Made, Room
from fuzz.judge import WrongError
from fuzz.pictures import plain
from fuzz.run_files import change_metrics, change_place, change_preview, change_state, damage_tensors, put_in_place_of

STEPS = 6
SETTINGS = {"steps": STEPS, "save_every": 2, "sensitivity_every": 0, "validation_pairs": 1, "rank": 1, "ema_decay": 0.9}


class States:
    """See the module."""

    name = "states"
    is_watched = True

    def __init__(self) -> None:
        self.kept = Path(tempfile.mkdtemp(prefix="nextcontrol-fuzz-run-"))
        self.good: dict[int, dict[str, Any]] = {}
        import torch

        with torch.enable_grad():
            self._train()

    def __del__(self) -> None:
        shutil.rmtree(self.kept, ignore_errors=True)

    def _train(self) -> None:
        from nextcontrol.training.loop import Hooks
        from tiny_training import tiny_run, write_pairs

        def keep(trainer: Any) -> None:
            self.good[trainer.step] = {key: tensor.clone() for key, tensor in trainer.state().tensors.items()}

        self.pairs = write_pairs(self.kept / "pairs", 3)
        tiny_run(self.kept / "work", self.pairs, Hooks(on_save=keep), **SETTINGS).train()
        previews = self.kept / "work" / "lora.training" / "previews"
        previews.mkdir()
        for step in (0, 2, 4):
            (previews / f"step-{step:08d}.jpg").write_bytes(plain(step, "JPEG"))
        self.encoded = self.read_pairs(self.pairs)

    def enter(self, room: Room) -> None:
        """See `Target`."""

    def make(self, draw: random.Random, room: Room) -> Made:
        """See `Target`."""
        return self.make_cache(draw, room) if draw.random() < 0.3 else self.make_run(draw, room)

    def make_run(self, draw: random.Random, room: Room) -> Made:
        """A run with one or more of its files changed."""
        work = room.folder / "work"
        shutil.copytree(self.kept / "work", work)
        folder = work / "lora.training"
        last = max(folder.glob("*.state"))
        if draw.random() < 0.7:  # the last one is of a run that is done
            last.unlink()
            last = max(folder.glob("*.state"))
        notes = []
        for _ in range(draw.choice((1, 1, 2))):
            change = draw.choice((change_state, change_state, change_state, change_metrics, change_preview, change_place))
            notes.append(change(folder, draw, room))
        actions: dict[str, Callable[[], Any]] = {
            "free": lambda: check_free(work),
            "resume": lambda: self.resume(work, is_going_on=False),
            "previews": lambda: files_of(work).previews(),
        }
        if draw.random() < 0.4:
            actions["go on"] = lambda: self.resume(work, is_going_on=True)
        return Made(", ".join(notes), actions)

    def make_cache(self, draw: random.Random, room: Room) -> Made:
        """Encoded pictures and texts, some of them changed."""
        folder = room.folder / "pairs"
        shutil.copytree(self.pairs, folder)
        paths = sorted((folder / ".cache").rglob("*.safetensors"))
        notes = []
        for path in draw.sample(paths, draw.choice((1, 1, 3))):
            if draw.random() < 0.8:
                how, data = damage_tensors(path.read_bytes(), draw)
                path.write_bytes(data)
            else:
                how = put_in_place_of(path, draw, room)
            notes.append(how)

        def read() -> None:
            import torch

            for name, tensors in self.read_pairs(folder).items():
                good = self.encoded[name]
                if tensors.keys() != good.keys() or not all(torch.equal(tensors[key], good[key]) for key in good):
                    raise WrongError(f"{name} is read from the cache as something else")

        return Made(f"cache: {', '.join(notes)}", {"read": read, "read again": read})

    @staticmethod
    def read_pairs(folder: Path) -> dict[str, dict[str, Any]]:
        """Encode what is not in the cache, and read all of it."""
        from tiny_training import encoded

        dataset = encoded(folder)
        found = {}
        for item in dataset.items:
            for role, key in (("target", item.sides[0][0]), ("hint", item.sides[0][1]), ("text", item.caption)):
                found[f"{item.name} {role}"] = dataset.cache.read(key)
        return found

    def resume(self, work: Path, is_going_on: bool) -> None:
        """Go on from what is there: from a state as it was, or from an earlier one, or from the start."""
        import torch
        from tiny_training import tiny_run

        with torch.inference_mode(mode=False), torch.enable_grad():
            run = tiny_run(work, self.pairs, **SETTINGS)
            if run.resume():
                self.compare(run.trainer.state())
            if is_going_on:
                run.train()
                self.compare(run.trainer.state())
                run.metrics.lines()

    def compare(self, state: Any) -> None:
        """A run that goes on has the weights that it had."""
        import torch

        if state.step not in self.good:
            raise WrongError(f"the run goes on from step {state.step}, which was never saved")
        good = self.good[state.step]
        if state.tensors.keys() != good.keys():
            raise WrongError(f"the run goes on at step {state.step} without {sorted(good.keys() ^ state.tensors.keys())[:2]}")
        for key, tensor in good.items():
            if not torch.equal(tensor, state.tensors[key]):
                raise WrongError(f"the run goes on at step {state.step} with another {key}")


def files_of(work: Path) -> Any:
    """The files of the run as the nodes know them."""
    from nextcontrol.nodes.host.train_files import TrainFiles

    return TrainFiles(work / "lora.safetensors", "lora.safetensors")


def check_free(work: Path) -> None:
    """What a training asks first; that the name is taken is an answer."""
    files = files_of(work)
    files.check_free(True)
    files.check_free(False)


TARGET = States
