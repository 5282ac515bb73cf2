"""Dataset folders in order, and what may be odd about their files, links and names."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz.cases import Room
from fuzz.damage import LONG, WORDS, odd_value
from fuzz.pictures import odd_picture, plain

LAYOUTS = ("folders", "folders", "prompt.json", "metadata.jsonl")
ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252", "gbk", "shift_jis", "latin-1", "utf-7")
NAMES = (
    b"caf\xc3\xa9.png", b"cafe\xcc\x81.png", b"\xff\xfe.png", b"line\nbreak.png", b"tab\t.png", b" .png", b".png",
    b"..png", b".hidden.png",
    b"a" * 251 + b".png", b"x" * 255, b"CON.png", b"a:b.png", b"a\\b.png", b"'quoted'.png", b"%s{0}.png",
    b"\xf0\x9f\x8d\x8e.png",
    b"\xe2\x80\xaegnp.png", b"000.PNG", b"000.webp", b"000_png.jpg", b"000.jpeg", b"000.avif", b"000.gif", b"000.jfif",
    b"a.png.png",
    b"000.png ", b"\x1b[2J.png", b"\xe2\x80\xa8.png", b"-rf.png", b"~.png", b"\xed\xa0\x80.png",
)  # fmt: skip
ROLES = ("source", "target")


def write_pairs(folder: Path, layout: str, count: int = 3) -> None:
    """A folder in order."""
    for role in ROLES:
        (folder / role).mkdir(parents=True)
    for number in range(count):
        for role in ROLES:
            (folder / role / f"{number:03d}.png").write_bytes(plain(2 * number + (role == "target")))
        (folder / "target" / f"{number:03d}.txt").write_text(f"number {number}")
    keys = ("source", "target", "prompt") if layout == "prompt.json" else ("conditioning_image", "file_name", "text")
    if layout != "folders":
        write_rows(folder / layout, [row_of(keys, number) for number in range(count)])


def row_of(keys: tuple[str, ...], number: int) -> dict[str, Any]:
    """A row of prompt.json or metadata.jsonl."""
    values = (f"source/{number:03d}.png", f"target/{number:03d}.png", f"number {number}")
    return dict(zip(keys, values, strict=True))


def write_rows(path: Path, rows: list[Any]) -> None:
    """One JSON value a line."""
    put(path, "".join(json.dumps(row) + "\n" for row in rows).encode("utf-8", "surrogatepass"))


def put(path: Path, data: bytes) -> None:
    """Write a file, not through a link or into a pipe that lies there."""
    if os.path.realpath(path) != str(path):  # unlike `resolve`, it takes links in a circle
        return
    if path.exists() and not path.is_dir():
        path.unlink()
    path.write_bytes(data)


def write_made(folder: Path, draw: random.Random) -> None:
    """What Make Pairs would find of an earlier run."""
    write_pairs(folder, "prompt.json", draw.choice((1, 2)))
    own = {"hint_type": "grayscale", "options": {}, "resolution": 64}
    (folder / "nextcontrol.json").write_text(json.dumps(own))


def change_picture(folder: Path, draw: random.Random, room: Room) -> str:
    """Another file in the place of a picture."""
    how, data = odd_picture(draw)
    paths = [folder / role / f"{draw.randrange(3):03d}.png" for role in draw.choice((ROLES, ROLES[:1], ROLES[1:]))]
    for path in paths:
        put(path, data)
    return f"picture: {how}"


def change_caption(folder: Path, draw: random.Random, room: Room) -> str:
    """Text of another encoding, or no text."""
    path = folder / "target" / "001.txt"
    kind = draw.choice((*ENCODINGS, *ENCODINGS, "bytes", "long", "word", "word"))
    if kind == "bytes":
        data = draw.randbytes(50)
    elif kind == "long":
        data = draw.choice((b"word ", b"w", b"\0", b" ")) * draw.choice((5000, 2_000_000))
    elif kind == "word":
        data = draw.choice(WORDS).encode("utf-8", "surrogatepass")
    else:
        data = draw.choice(("a red café", "猫 кот", "grüße\n\nrot")).encode(kind, "replace")
    put(path, data)
    return f"caption: {kind}"


def change_rows(folder: Path, draw: random.Random, room: Room) -> str:
    """A list of pairs with something odd in it."""
    name = draw.choice(("prompt.json", "metadata.jsonl"))
    keys = ("source", "target", "prompt") if name == "prompt.json" else ("conditioning_image", "file_name", "text")
    rows: list[Any] = [row_of(keys, number) for number in range(3)]
    kind = draw.choice(
        ("value", "value", "caption", "path", "path", "encoding", "separator", "text", "list", "many", "row", "depth", "keys")
    )
    path = folder / name
    if kind == "value":
        rows[1][draw.choice(keys)] = odd_value(draw)
    elif kind == "caption":
        rows[1][keys[2]] = draw.choice((["a", "b"], {"a": 1}, 5, True, None, LONG, "a\u2028b", "\ud800", float("nan")))
    elif kind == "path":
        outs = (
            "../../outside/secret.png",
            "../outside/secret.png",
            str(room.outside / "secret.png"),
            "C:/x.png",
            "a\0b.png",
            "",
            ".",
            "/",
        )
        rows[1][draw.choice(keys[:2])] = draw.choice((*outs, "source", "target/../source/000.png", "~/x.png", "//x/y", *WORDS))
    elif kind == "encoding":
        text = "".join(json.dumps(row | {keys[2]: "café"}, ensure_ascii=False) + "\n" for row in rows)
        put(path, text.encode(draw.choice(ENCODINGS), "replace"))
        return f"{name}: encoding"
    elif kind == "separator":
        signs = draw.choice(("\u2028", "\x85", "\x0c", "\x1c", "\r"))
        text = "".join(json.dumps(row | {keys[2]: f"a{signs}b"}, ensure_ascii=False) + "\n" for row in rows)
        put(path, text.encode())
        return f"{name}: separator"
    elif kind == "text":
        put(path, draw.choice(WORDS).encode("utf-8", "surrogatepass"))
        return f"{name}: text"
    elif kind == "list":
        text = json.dumps(rows)
        put(path, draw.choice((text, text[:-1], "[[]]", "[1,", f"[{json.dumps(rows[0])}]\n{{}}")).encode())
        return f"{name}: list"
    elif kind == "many":
        rows = rows * draw.choice((2, 100))
    elif kind == "row":
        rows[draw.randrange(3)] = odd_value(draw)
    elif kind == "depth":
        put(path, (draw.choice(("[" * 100_000, '{"source":' * 50_000, "[" * 900 + "]" * 900))).encode())
        return f"{name}: depth"
    else:
        rows[1] = {draw.choice(WORDS): 1, keys[0]: rows[1][keys[0]]}
    write_rows(path, rows)
    return f"{name}: {kind}"


def change_about(folder: Path, draw: random.Random, room: Room) -> str:
    """Something else in nextcontrol.json."""
    path = folder / "nextcontrol.json"
    known = {"hint_type": "grayscale", "options": {}, "resolution": 64}
    content = draw.choice(
        (odd_value(draw), known | {draw.choice(list(known)): odd_value(draw)}, {draw.choice(list(known)): odd_value(draw)})
    )
    data = draw.choice(
        (
            json.dumps(content).encode("utf-8", "surrogatepass"),
            json.dumps(content).encode("utf-16"),
            draw.randbytes(20),
            b"[" * 10**5,
        )
    )
    put(path, data)
    return f"nextcontrol.json: {data[:40]!r}"


def change_name(folder: Path, draw: random.Random, room: Room) -> str:
    """A picture more, of an odd name, in one folder or both."""
    name = draw.choice(NAMES)
    below = draw.choice((b"", b"", b"deep/" * 40, b"\xff/", b".x/"))
    for role in draw.choice((ROLES, ROLES, ROLES[:1], ROLES[1:])):
        if (folder / role).is_symlink():  # by an earlier change; what lies behind it is none of ours
            continue
        path = folder / role / os.fsdecode(below + name)
        path.parent.mkdir(parents=True, exist_ok=True)
        put(path, plain(3, draw.choice(("PNG", "PNG", "JPEG", "GIF"))))
        if draw.random() < 0.3:
            put(path.with_suffix(".txt"), b"text")
    return f"name {(below[:6] + name)[:30]!r}"


PLACES = (
    "target/001.png", "source/001.png", "target/001.txt", "target", "source", "prompt.json", "metadata.jsonl",
    "nextcontrol.json",
    ".nextcontrol", ".nextcontrol/00", "index.json", "target/more.png", "target/.001.png.part", "source/.001.png.part",
    "target/deep",
    ".prompt.json.part", ".nextcontrol.json.part", "shard-00000.json", "0000.tar", "source/000.png.part",
    "target/.003.png.part",
)  # fmt: skip


def change_kind(folder: Path, draw: random.Random, room: Room) -> str:
    """A link, a pipe, a folder or a device in the place of a file."""
    place = draw.choice(PLACES)
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        path.rename(room.folder / "moved")
    else:
        path.unlink(missing_ok=True)
    kind = draw.choice(
        (
            "link out",
            "link out",
            "link to itself",
            "link up",
            "pipe",
            "folder",
            "device",
            "endless",
            "dangling",
            "locked",
            "gone",
        )
    )
    if kind == "link out":
        path.symlink_to(
            room.outside / draw.choice(("secret.png", "secret.txt", "secret.json", "prompt.json", "new", ".", "index.json"))
        )
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "link up":
        path.symlink_to(draw.choice((folder, folder.parent, folder / "target")))
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind in ("device", "endless"):
        path.symlink_to("/dev/null" if kind == "device" else "/dev/zero")
    elif kind == "dangling":
        path.symlink_to(folder / "nothing")
    elif kind == "locked":
        put(path, plain())
        path.chmod(0)
    return f"{place}: {kind}"


def change_index(folder: Path, draw: random.Random, room: Room) -> str:
    """An index of encoded shards where none are."""
    put(folder / draw.choice(("index.json", "shard-00000.json")), json.dumps(odd_value(draw)).encode("utf-8", "surrogatepass"))
    return "an index"


def change_count(folder: Path, draw: random.Random, room: Room) -> str:
    """Files that are missing or too many."""
    for path in draw.sample(sorted(folder.rglob("*.*")), 2):
        path.unlink()
    return "files gone"


CHANGES: tuple[Callable[[Path, random.Random, Room], str], ...] = (
    change_picture, change_picture, change_picture, change_caption, change_rows, change_rows, change_about, change_name,
    change_name,
    change_kind, change_kind, change_kind, change_index, change_count,
)  # fmt: skip
