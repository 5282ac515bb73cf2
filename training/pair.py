"""One hint and one target, and what a folder holds of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .picture_files import PictureBytes


@dataclass(frozen=True)
class Pair:
    """One hint, one target."""

    name: str
    """Path of the target in the folder, with forward slashes."""
    hint: Path
    """Where it really lies, without links."""
    target: Path
    """Where it really lies, without links."""
    caption: str
    """Empty if there is none."""
    problem: str = ""
    """Why the pair cannot be used, a sentence; empty if nothing is known against it."""


@dataclass(frozen=True)
class PackedPair:
    """The same, out of a tar shard."""

    name: str
    """Name of the shard and key in it."""
    hint: PictureBytes
    target: PictureBytes
    caption: str


@dataclass(frozen=True)
class Listing:
    """What a folder holds."""

    pairs: tuple[Pair, ...]
    orphans: tuple[str, ...]
    """Pictures and rows without a partner, by path in the folder, with the reason where it is another one."""
    problems: tuple[str, ...] = ()
    """Rows that cannot be read, a sentence each."""
