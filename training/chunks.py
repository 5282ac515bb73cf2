"""A dataset in the pieces that each become one encoded shard."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .cache import digest_of
from .dataset import DatasetSettings, PairDataset
from .pairs import PackedPair, Pair
from .raw_shards import read_pairs
from .shard_index import file_name


@dataclass(frozen=True, eq=False)
class Chunk:
    """The pairs of one encoded shard."""

    file: str
    """Name of that shard."""
    group: tuple[Pair, ...] = ()
    """Pairs in files of their own,"""
    packed: Path | None = None
    """or the tar shard that they lie in."""
    roots: tuple[Path, ...] = ()
    """Folders that this may be a link to; its own if there are none."""

    def source(self) -> str:
        """Names the files that the pairs are of, by names and sizes: their content would take as long as encoding."""
        if self.packed is not None:
            return digest_of(self.packed.name, _size(self.packed))
        return digest_of([(pair.name, pair.caption, _size(pair.target), _size(pair.hint)) for pair in self.group])

    def pairs(self) -> Iterable[Pair | PackedPair | ValueError]:
        """Read the pairs; an error in the place of a sample that is none."""
        return self.group if self.packed is None else read_pairs(self.packed, self.roots)


def chunks_of(dataset: PairDataset, roots: Sequence[Path] = ()) -> list[Chunk]:
    """The encoded shards that a dataset makes.

    Args:
        dataset: With `shards`: a folder of pairs is cut into pieces, a folder of tar shards is in pieces already.
        roots: Folders that its tar shards may be links to; their own if there are none.

    Returns:
        In order.

    Raises:
        ValueError: The dataset's settings do not go with shards.
    """
    check_settings(dataset.settings)
    assert dataset.shards is not None
    if dataset.packed:
        return [Chunk(file_name(number), packed=path, roots=tuple(roots)) for number, path in enumerate(dataset.packed)]
    size = dataset.shards.pairs_per_shard
    starts = range(0, len(dataset.pairs), size)
    return [Chunk(file_name(number), dataset.pairs[start : start + size]) for number, start in enumerate(starts)]


def check_settings(settings: DatasetSettings) -> None:
    """Refuse settings that encoded shards cannot follow.

    Raises:
        ValueError: With every one of them.
    """
    problems = []
    if settings.has_buckets:
        problems.append("has_buckets must be false, since all pictures in shards are of one square size")
    if settings.subset:
        problems.append(f"subset ({settings.subset}) must be 0")
    if settings.repeats != 1:
        problems.append(f"repeats ({settings.repeats}) must be 1")
    if problems:
        raise ValueError(f"With shards {'; '.join(problems)}.")


def _size(path: Path) -> int:
    """Bytes; of a file that is gone -1, and whoever reads it says so."""
    try:
        return path.stat().st_size
    except OSError:
        return -1
