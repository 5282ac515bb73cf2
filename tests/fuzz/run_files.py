"""What may be odd about the files of a training that was stopped."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

from fuzz.cases import Room
from fuzz.damage import WORDS, damage_bytes, damage_header, is_whole, join_header, odd_value, split_header
from fuzz.pictures import odd_picture


def damage_tensors(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    """Header or numbers of a safetensors file."""
    kind = draw.randrange(3)
    if kind == 0 and is_whole(data):
        return damage_header(data, draw)
    return damage_bytes(data, draw, 8 + int.from_bytes(data[:8], "little") if kind == 1 else 0)


def change_state(folder: Path, draw: random.Random, room: Room) -> str:
    """One state, or all of them."""
    found = [path for path in sorted(folder.glob("state-*.state")) if path.is_file() and not path.is_symlink()]
    if not found:
        return "no state"
    chosen = draw.choice((found[-1:], found[-1:], found[-1:], found[:1], found))
    how = ""
    for path in chosen:
        data = path.read_bytes()
        if draw.random() < 0.4 and is_whole(data):
            header, numbers = split_header(data)
            about = header.get("__metadata__")
            about = about if isinstance(about, dict) else {}
            about[draw.choice([*about, "nextcontrol.state", "x"])] = odd_text(about, draw)
            header["__metadata__"] = about
            how, data = "notes", join_header(header, numbers)
        else:
            how, data = damage_tensors(data, draw)
        path.write_bytes(data)
    return f"{len(chosen)} of {len(found)} states: {how}"


def odd_text(about: dict[str, str], draw: random.Random) -> str:
    """In the place of what a state says of itself."""
    if draw.random() < 0.3:
        return draw.choice(WORDS)
    try:
        told = json.loads(about["nextcontrol.state"])
        place = draw.choice((told, told["identity"]))
        place[draw.choice([*place, "x"])] = odd_value(draw)
        if draw.random() < 0.5:
            config = json.loads(told["config"])
            config[draw.choice([*config, "x"])] = odd_value(draw)
            told["config"] = json.dumps(config)
    except (KeyError, TypeError, ValueError, RecursionError):
        told = odd_value(draw)
    return json.dumps(draw.choice((told, told, told, odd_value(draw))))


def change_metrics(folder: Path, draw: random.Random, room: Room) -> str:
    """Lines that are no numbers of a run."""
    path = folder / "metrics.jsonl"
    if path.is_symlink() or not path.is_file() or not path.stat().st_size:
        return "no metrics"
    data = path.read_bytes()
    kind = draw.choice(("bytes", "line", "line", "step", "encoding", "text", "long"))
    lines = data.splitlines(keepends=True)
    place = draw.randrange(len(lines))
    if kind == "bytes":
        kind, data = damage_bytes(data, draw)
    elif kind == "line":
        lines[place] = json.dumps(odd_value(draw)).encode() + b"\n"
        data = b"".join(lines)
    elif kind == "step":
        row = {"step": place, "loss": 0.5} | {draw.choice(("step", "loss")): odd_value(draw)}
        lines[place] = json.dumps(row).encode() + b"\n"
        data = b"".join(lines)
    elif kind == "encoding":
        data = data.decode().encode(draw.choice(("utf-16", "utf-8-sig", "utf-32")))
    elif kind == "text":
        data = draw.choice(WORDS).encode("utf-8", "surrogatepass") + b"\n"
    else:
        data = data * 2000
    path.write_bytes(data)
    return f"metrics: {kind}"


def change_preview(folder: Path, draw: random.Random, room: Room) -> str:
    """Another picture, or none."""
    how, data = odd_picture(draw)
    name = draw.choice(("step-00000004.jpg", "step-00000004.jpg", "step-00000000.jpg", "step-99999999.jpg", "step-x.jpg"))
    path = folder / "previews" / name
    if path.parent.is_symlink() or not path.parent.is_dir() or path.is_symlink() or (path.exists() and not path.is_file()):
        return "no previews"
    path.write_bytes(data)
    return f"preview {name}: {how}"


def change_place(folder: Path, draw: random.Random, room: Room) -> str:
    """A link, a pipe or a folder in the place of a file."""
    last = max((path.name for path in folder.glob("state-*.state")), default="state-00000002.state")
    names = (
        last,
        last,
        "metrics.jsonl",
        "previews",
        "previews/step-00000004.jpg",
        "state-99999999.state",
        f".{last}.0.1.part",
        "x.state",
    )
    path = folder / draw.choice(names)
    return put_in_place_of(path, draw, room)


def put_in_place_of(path: Path, draw: random.Random, room: Room) -> str:
    """See `change_place`."""
    if not path.parent.is_dir():
        return "no folder"
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    kind = draw.choice(("link to itself", "pipe", "folder", "endless", "dangling", "empty", "gone"))
    if kind == "link to itself":
        path.symlink_to(path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind in ("endless", "dangling"):
        path.symlink_to("/dev/zero" if kind == "endless" else path.with_name("nothing"))
    elif kind == "empty":
        path.write_bytes(b"")
    return f"{path.name[:14]}: {kind}"
