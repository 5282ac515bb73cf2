"""Folders of networks that look at pictures, as they are downloaded: configurations, weights, code that comes along."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz.cases import Made, Room
from fuzz.damage import NUMBERS, damage_bytes, damage_header, odd_value
from fuzz.pickles import save_pickle
from fuzz.tensors import damage_tensors

KINDS = {"depth": "save_depth_anything", "pose": "save_vitpose", "detection": "save_rtdetr"}
TASKS = ("depth", "detection", "segmentation", "pose")
CODE = "import os\nos.mkdir({mark!r})\nclass Network:\n    pass\n"


class Annotators:
    """See the module."""

    name = "annotators"
    is_watched = True

    def __init__(self) -> None:
        import tiny_annotators
        import torch

        with tempfile.TemporaryDirectory() as temporary, torch.inference_mode():
            folders = {task: getattr(tiny_annotators, save)(Path(temporary) / task) for task, save in KINDS.items()}
            self.goods = {task: {path.name: path.read_bytes() for path in one.iterdir()} for task, one in folders.items()}

    def enter(self, room: Room) -> None:
        """See `Target`: annotators lie in the case's folder alone."""
        import folder_paths

        folder_paths.folder_names_and_paths["annotators"] = ([str(room.folder)], set(folder_paths.supported_pt_extensions))

    def make(self, draw: random.Random, room: Room) -> Made:
        """See `Target`."""
        task = draw.choice(list(self.goods))
        files = dict(self.goods[task])
        notes = [draw.choice(CHANGES)(files, draw, room) for _ in range(draw.choice((1, 1, 2)))]
        folder = room.folder / "x"
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        if draw.random() < 0.25:
            notes.append(change_place(folder, draw, room))
        wanted = task if draw.random() < 0.9 else draw.choice(TASKS)
        actions: dict[str, Callable[[], Any]] = {
            "combos": combos,
            "check": lambda: check(wanted),
            "network": lambda: look(wanted),
        }
        return Made(f"{task}: {', '.join(notes)}", actions)


def combos() -> str:
    """What the host asks when it starts."""
    from nextcontrol.nodes.hint_depth import Depth
    from nextcontrol.nodes.host.annotators import list_annotators

    Depth.define_schema()
    return " ".join(name for task in TASKS for name in list_annotators(task))


def check(task: str) -> str:
    """What the nodes do before they run."""
    from nextcontrol.nodes.host.annotators import annotator_stamp, check_annotator

    annotator_stamp("x")
    return str(check_annotator("x", task))


def look(task: str) -> None:
    """Read the network, and show it a picture."""
    import torch
    from nextcontrol.nodes.host import annotators
    from nextcontrol.preprocessors.table import PREPROCESSORS

    annotators._read.cache_clear()
    picture = torch.rand(1, 64, 64, 3)
    row = next((row for row in PREPROCESSORS.values() if row.task == task), None)
    if row is None or row.annotators:
        annotators.open_annotator("x", task)
    else:
        annotators.make_annotated(picture, 64, "x", task, row.make)


def change_config(files: dict[str, bytes], draw: random.Random, room: Room) -> str:
    """Another value somewhere in a configuration."""
    name = draw.choice([name for name in files if name.endswith(".json")])
    try:
        config = json.loads(files[name])
    except (ValueError, RecursionError):
        return "nothing"
    place, keys = config, []
    while isinstance(place, dict) and place:
        key = draw.choice(list(place))
        keys.append(key)
        if not isinstance(place[key], dict) or draw.random() < 0.3:
            place[key] = draw.choice((odd_value(draw), odd_value(draw), draw.choice(NUMBERS)))
            break
        place = place[key]
    files[name] = json.dumps(config).encode("utf-8", "surrogatepass")
    return f"{name}: {'.'.join(keys)}"


def change_text(files: dict[str, bytes], draw: random.Random, room: Room) -> str:
    """No configuration at all."""
    name = draw.choice(("config.json", "preprocessor_config.json", "config.json"))
    data = files.get(name, b"{}")
    how, changed = draw.choice((
        lambda: damage_bytes(data, draw), lambda: ("deep", b"[" * 100_000), lambda: ("long", data + b" " * (3 << 20)),
        lambda: ("odd", json.dumps(odd_value(draw)).encode("utf-8", "surrogatepass")), lambda: ("UTF-16",
        data.decode().encode("utf-16")),
        lambda: ("mark", b"\xef\xbb\xbf" + data), lambda: ("architectures",
        json.dumps({"architectures": odd_value(draw)}).encode("utf-8", "surrogatepass")),
    ))()  # fmt: skip
    files[name] = changed
    return f"{name}: {how}"


def change_weights(files: dict[str, bytes], draw: random.Random, room: Room) -> str:
    """Damaged weights, or a pickle in their place."""
    name = "model.safetensors"
    data = files.get(name)
    if data is None or "pytorch_model.bin" in files or "damaged" in files:
        return "nothing"  # one damage to the weights is enough
    kind = draw.randrange(4)
    if kind == 0:
        how, files[name] = damage_header(data, draw)
        files["damaged"] = b""
    elif kind == 1:
        how, files[name] = damage_bytes(data, draw, 8 + int.from_bytes(data[:8], "little"))
        files["damaged"] = b""
    else:
        from safetensors.torch import load

        how, content = damage_tensors(load(data), draw, room.outside)
        try:
            _, files["pytorch_model.bin"] = save_pickle(content, draw)
        except Exception:  # noqa: BLE001 - not every form of tensor can be saved
            files["pytorch_model.bin"] = b""
        del files[name]
        how = f"a pickle, {how}"
    return f"weights: {how}"


def add_code(files: dict[str, bytes], draw: random.Random, room: Room) -> str:
    """Code of the folder's own, which a configuration asks for."""
    name = draw.choice(("config.json", "preprocessor_config.json"))
    try:
        config = json.loads(files[name])
        classes = (
            "AutoConfig",
            "AutoModel",
            "AutoModelForDepthEstimation",
            "AutoModelForObjectDetection",
            "AutoImageProcessor",
        )
        config["auto_map"] = dict.fromkeys(classes, "code.Network")
        config[draw.choice(("model_type", "image_processor_type", "x"))] = "other"
        config["trust_remote_code"] = True
    except (KeyError, ValueError, TypeError, RecursionError):
        return "nothing"
    files[name] = json.dumps(config).encode()
    files["code.py"] = CODE.format(mark=str(room.outside / "ran")).encode()
    return f"code in {name}"


def drop_file(files: dict[str, bytes], draw: random.Random, room: Room) -> str:
    """A file that was not downloaded, or an index of files that are not there."""
    name = draw.choice(list(files))
    del files[name]
    if draw.random() < 0.4:
        shards = {"a": draw.choice(("../../outside/secret.txt", "x.safetensors", "/etc/passwd", 5))}
        files["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": shards}).encode()
    return f"without {name}"


def change_place(folder: Path, draw: random.Random, room: Room) -> str:
    """A link, a pipe or a folder in the place of a file."""
    path = folder / draw.choice(("config.json", "config.json", "preprocessor_config.json", "model.safetensors", "more"))
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    kind = draw.choice(("link to itself", "pipe", "pipe", "folder", "endless", "dangling"))
    if kind == "link to itself":
        path.symlink_to(path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "endless" else path.with_name("nothing"))
    return f"{path.name}: {kind}"


CHANGES: tuple[Callable[[dict[str, bytes], random.Random, Room], str], ...] = (
    change_config, change_config, change_config, change_text, change_weights, change_weights, add_code, drop_file,
)  # fmt: skip
TARGET = Annotators
