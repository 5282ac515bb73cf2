"""Weight files: of every kind that the pack knows and of its neighbours, through all loaders, Inspect and Convert."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from typing import Any

import torch
from fuzz.cases import Made, Room
from fuzz.weight_files import detectors, goods, write_file

HEADS = 4
KEPT_FILES = ("good_module.safetensors", "good_base.safetensors")


class Weights:
    """See the module."""

    name = "weights"
    is_watched = False  # model folders may hold links

    def __init__(self) -> None:
        from host_models import build_model

        self.model = build_model("sd15_narrow")
        self.goods = goods(self.model)
        self.detectors = detectors()
        self.goods |= {name: tensors for name, (_, tensors) in self.detectors.items()}

    def enter(self, room: Room) -> None:
        """See `Target`: the process's own model folders come first."""
        import folder_paths
        from nextcontrol.nodes.host.ctrlora_load import load_base
        from safetensors.torch import save_file

        self.kept = room.folder.parent / "kept"
        self.kept.mkdir()
        for kind in ("controlnext", "ctrlora", "controlnet", "diffusion_models", "annotators"):
            folder_paths.add_model_folder_path(kind, str(self.kept), is_default=True)
        for kind in ("controlnet", "diffusion_models"):
            folder_paths.add_model_folder_path(kind, str(room.folder), is_default=True)
        for kind in ("controlnext", "ctrlora"):
            folder_paths.add_model_folder_path(kind, str(room.folder / "new"), is_default=True)
        for name, good in zip(KEPT_FILES, ("module 3", "base"), strict=True):
            save_file(self.goods[good], self.kept / name)
        with torch.inference_mode():
            self.base = load_base(KEPT_FILES[1], False, 0)

    def make(self, draw: random.Random, room: Room) -> Made:
        """See `Target`."""
        how, name = write_file(self.goods, draw, room)
        self.folder = room.folder
        actions: dict[str, Callable[[], Any]] = {
            "inspect": lambda: self.inspect(name),
            **{f"convert {number}": self.conversion(name, draw) for number in range(2)},
            "module": lambda: self.load_module(name),
            "unet": self.loading_of_unet(name, draw.choice(("auto", "replace", "delta"))),
            "base": self.loading_of_base(name, draw.random() < 0.5),
            "condition": self.loading_of_condition(name, draw.choice(("", "", "", "hed", "x", "x", "ü\n"))),
            "encoder copy": lambda: self.load_encoder_copy(name),
        }
        if self.detectors:
            detector = draw.choice(list(self.detectors))
            actions["detector"] = lambda: self.load_detector(detector, name)
        return Made(how, actions)

    @staticmethod
    def inspect(name: str) -> str:
        """Inspect Control File."""
        from nextcontrol.nodes.host.inspect_file import inspect_file

        return inspect_file(name)

    def conversion(self, name: str, draw: random.Random) -> Callable[[], str]:
        """Convert Control File, with choices; what it writes has to be loadable."""
        from nextcontrol.models.extract import PARTS
        from nextcontrol.nodes.host.convert import LAYOUTS, TYPES, convert_file

        part, dtype = draw.choice((*PARTS, "auto", "auto", "all")), draw.choice((*TYPES, "keep"))
        condition, layout = draw.choice(("", "", "", "hed", "x")), draw.choice(LAYOUTS)
        wanted = draw.choice(("", "", "new name", "a/b"))

        def convert() -> str:
            shutil.rmtree(self.folder / "new", ignore_errors=True)
            made = convert_file(name, part, dtype, wanted, condition, layout)
            # What a good converter has written can be read.
            from nextcontrol.nodes.host.files import read_file

            read_file(self.folder / "new" / made, made)
            return made

        return convert

    def load_module(self, name: str) -> None:
        """Load ControlNeXt, and a step of sampling with it."""
        from narrow import apply, hints, predict
        from nextcontrol.nodes.host.controlnext_file import load_controlnext_file

        file = load_controlnext_file(name, "none", "auto", "auto")
        predict(apply(self.model, file, hints(1, 64, 96)))

    def loading_of_unet(self, name: str, mode: str) -> Callable[[], None]:
        """UNet weights of a control that is whole, and a step of sampling."""
        from narrow import apply, hints, predict
        from nextcontrol.nodes.host.controlnext_file import load_controlnext_file

        def load() -> None:
            file = load_controlnext_file(KEPT_FILES[0], name, "auto", mode)
            predict(apply(self.model, file, hints(1, 64, 96)))

        return load

    def loading_of_base(self, name: str, is_embedded: bool) -> Callable[[], None]:
        """Load CtrLoRA Base, and one evaluation."""
        from nextcontrol.nodes.host.ctrlora_load import load_base

        def load() -> None:
            base = load_base(name, is_embedded, 0)
            self.evaluate(base, base.embedded)

        return load

    def loading_of_condition(self, name: str, condition: str) -> Callable[[], None]:
        """Load CtrLoRA on a base that is whole, and one evaluation."""
        from nextcontrol.nodes.host.ctrlora_load import load_condition

        def load() -> None:
            self.evaluate(self.base, load_condition(self.base, name, condition)[0])

        return load

    @staticmethod
    def evaluate(base: Any, condition: Any) -> None:
        """The controls of one hint."""
        from nextcontrol.models.adapted import Group

        groups = [Group(condition and condition.model, 1.0, 1)]
        channels = base.config.blocks[0].in_channels
        context = torch.ones(1, 3, base.config.context_width)
        base.network.model(torch.ones(1, channels, 8, 8), torch.ones(1), context, HEADS, groups)

    @staticmethod
    def load_encoder_copy(name: str) -> None:
        """Only read: what trains from a file begins with this."""
        from nextcontrol.nodes.host.files import check_finite, read_file
        from nextcontrol.nodes.host.folders import CONTROL_FOLDERS, find_file

        check_finite(read_file(find_file(name, CONTROL_FOLDERS), name)[0], name)

    def load_detector(self, detector: str, name: str) -> None:
        """A network of controlnet-aux."""
        from nextcontrol.nodes.host.aux_detectors import _read

        _read.cache_clear()
        annotator, _ = _read((detector, str(self.folder / name), 0, 0))
        annotator.network(torch.zeros(1, 3, 64, 64))


TARGET = Weights
