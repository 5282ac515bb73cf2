"""Tar shards in order, and what may be odd about their members, their index and their place."""

from __future__ import annotations

import io
import json
import os
import random
import tarfile
from pathlib import Path
from typing import Any

from fuzz.cases import Room
from fuzz.damage import LONG, WORDS, damage_bytes, damage_header, odd_value
from fuzz.folders import ENCODINGS
from fuzz.pictures import odd_picture, plain

Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, data: bytes) -> Member:
    """Of a tar file."""
    about = tarfile.TarInfo(name)
    about.size = len(data)
    return about, data


def members_of(number: int) -> list[Member]:
    """A pair."""
    key = f"{number:03d}"
    pictures = [member(f"{key}.{role}.png", plain(2 * number + place)) for place, role in enumerate(("hint", "target"))]
    return [*pictures, member(f"{key}.txt", f"number {number}".encode())]


def write_tar(members: list[Member], packed: str = "") -> bytes:
    """A tar file, packed or not."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=f"w:{packed}" if packed else "w", format=tarfile.PAX_FORMAT) as archive:
        for about, data in members:
            archive.addfile(about, io.BytesIO(data))
    return stream.getvalue()


def change_members(members: list[Member], draw: random.Random, room: Room) -> tuple[str, list[Member]]:
    """Another picture, text, name or kind of member."""
    place = draw.randrange(3)
    kind = draw.choice(
        (
            "picture",
            "picture",
            "caption",
            "caption",
            "json",
            "json",
            "name",
            "name",
            "link",
            "dropped",
            "twice",
            "order",
            "sparse",
            "pax",
            "many",
        )
    )
    about, data = members[place]
    key = about.name.partition(".")[0]
    if kind == "picture":
        how, data = odd_picture(draw)
        members[draw.choice((0, 1))] = member(members[draw.choice((0, 1))][0].name, data)
        return how, members
    if kind == "caption":
        data = draw.choice((
            "café кот".encode(draw.choice(ENCODINGS), "replace"), draw.choice(WORDS).encode("utf-8", "surrogatepass"),
            draw.randbytes(30),
            b"word " * 1_000_000,
        ))  # fmt: skip
        members[2] = member(f"{key}.txt", data)
    elif kind == "json":
        row = odd_value(draw) if draw.random() < 0.5 else {draw.choice(("prompt", "text", "caption")): odd_value(draw)}
        data = draw.choice(
            (
                json.dumps(row).encode("utf-8", "surrogatepass"),
                json.dumps(row).encode("utf-16"),
                b"[" * 100_000,
                b"{",
                draw.randbytes(9),
            )
        )
        members[2] = member(f"{key}.json", data)
    elif kind == "name":
        names = (
            *WORDS,
            "/abs.png",
            "../x.hint.png",
            "a/b/c.target.png",
            ".png",
            "x",
            "__key__",
            "000.__key__",
            "000.HINT.PNG",
            "000..png",
            "000.txt",
        )
        members[place] = member(draw.choice(names).encode("utf-8", "replace").decode()[:60_000] or "x", data)
    elif kind == "link":
        about.type = draw.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE, b"Z"))
        about.linkname = str(room.outside / "secret.png")
    elif kind == "dropped":
        del members[place]
    elif kind == "twice":
        members.insert(place, members[place])
    elif kind == "order":
        draw.shuffle(members)
    elif kind == "sparse":
        about.pax_headers = draw.choice((
            {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(10**12)},
            {"GNU.sparse.map": "0,1,9,99", "GNU.sparse.size": "5"},
            {"GNU.sparse.major": "x"}, {"size": "1000000000000"}, {"size": "-1"}, {"size": "many"},
            {"GNU.sparse.size": "4000000000"},
        ))  # fmt: skip
    elif kind == "pax":
        about.pax_headers = {
            draw.choice(("path", "comment", "hdrcharset", "mtime", "x")): draw.choice(WORDS[1:])
            .encode("utf-8", "replace")
            .decode()
        }
    else:
        members += [member(f"{number:06d}.txt", b"") for number in range(3000)]
    return kind, members


def change_index(index: dict[str, Any], draw: random.Random, room: Room) -> tuple[str, bytes]:
    """Another value somewhere in an index."""
    outs = (
        "../../outside/secret.tar",
        "../outside/secret.tar",
        str(room.outside / "secret.tar"),
        "shard-000001.tar",
        ".",
        "",
        LONG,
        "a\0",
        "\ud800",
        "x.tar",
    )
    kind = draw.choice(("file", "file", "value", "value", "number", "twice", "row", "top", "key"))
    row = draw.choice(index["shards"])
    if kind == "file":
        row["file"] = draw.choice(outs)
    elif kind == "value":
        row[draw.choice(list(row))] = odd_value(draw)
    elif kind == "number":
        row[draw.choice(("count", "size", "left_out"))] = draw.choice((-1, 0, 10**9, 10**30, 1.5, True, row["count"] + 1))
    elif kind == "twice":
        index["shards"] *= draw.choice((2, 5000))
    elif kind == "row":
        index["shards"][0] = odd_value(draw)
    elif kind == "top":
        index[draw.choice(list(index))] = odd_value(draw)
    else:
        row[draw.choice(WORDS)] = 1
    return kind, json.dumps(index).encode("utf-8", "surrogatepass")


def change_sample(data: bytes, draw: random.Random, room: Room) -> tuple[str, bytes]:
    """Another content of one file in an encoded shard, of the same length or not."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = [(about, archive.extractfile(about).read()) for about in archive]
    place = draw.randrange(len(members))
    about, content = members[place]
    if about.name.endswith(".safetensors"):
        header = 8 + int.from_bytes(content[:8], "little")
        how, content = draw.choice((
            lambda: damage_header(content, draw), lambda: damage_bytes(content, draw, header),
            lambda: damage_bytes(content, draw),
        ))()  # fmt: skip
    elif about.name.endswith(".json"):
        value = draw.choice((odd_value(draw), {"name": odd_value(draw), "caption": "x"}, {"caption": "x"}))
        content = draw.choice((json.dumps(value).encode("utf-8", "surrogatepass"), b"[" * 100_000, draw.randbytes(9)))
        how = "json"
    else:
        how, content = odd_picture(draw)
    return f"{about.name} {how}", write_tar([*members[:place], member(about.name, content), *members[place + 1 :]])


def change_place(path: Path, draw: random.Random, room: Room) -> str:
    """A link, a pipe or a folder in the place of a file."""
    path.unlink(missing_ok=True)
    kind = draw.choice(("link out", "link out", "link to itself", "pipe", "folder", "endless", "dangling", "gone"))
    if kind == "link out":
        path.symlink_to(room.outside / draw.choice(("secret.tar", "index.json", "secret.json")))
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind in ("endless", "dangling"):
        path.symlink_to("/dev/zero" if kind == "endless" else path.with_name("nothing"))
    return f"{path.name}: {kind}"
