"""Where the files of a dataset's folder really lie: found without following links to folders, read below the roots alone."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from unicodedata import normalize

from ..models.foreign import first_line, shown
from .inside import LeadsOutError, check_inside, open_inside
from .texts import LONGEST_CAPTION, UnreadableTextError, read_text

LONGEST_NAME = 200
"""Signs of a path in a list of what is left out."""


class Places:
    """The files below a folder.

    Args:
        folder: Of the dataset.
        roots: See `inside.check_inside`.
    """

    def __init__(self, folder: Path, roots: Sequence[Path]) -> None:
        self.folder = folder
        self.roots = tuple(roots)
        self._real: dict[Path, Path] = {}
        self._names: dict[Path, dict[str, str]] = {}

    def name_of(self, path: Path) -> str:
        """Path in the folder, with forward slashes."""
        return path.relative_to(self.folder).as_posix()

    def find(self, path: Path) -> Path | str:
        """Return where a file really is, or a short reason why it cannot be used.

        Raises:
            LeadsOutError: It leads out of the roots.
        """
        try:
            return self._find(path)
        except LeadsOutError:
            raise
        except FileNotFoundError:
            return "there is no such file"
        except (OSError, ValueError) as error:  # links in a circle; a name that the system does not take
            return shown(getattr(error, "strerror", None) or first_line(error))

    def _find(self, path: Path) -> Path:
        name = self.name_of(path)
        name.encode()
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            real = check_inside(path, self.roots, name)
            status = real.stat()
        else:
            if path.parent not in self._real:
                self._real[path.parent] = check_inside(path.parent, self.roots, name)
            real = self._real[path.parent] / path.name
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        return real

    def read_text(self, path: Path, largest: int = LONGEST_CAPTION) -> str:
        """Read a text file of the dataset.

        Args:
            path: In the folder.
            largest: Bytes.

        Returns:
            See `texts.read_text`.

        Raises:
            UnreadableTextError: It is not there, cannot be read, or see `texts.read_text`.
            ValueError: It leads out, or is no regular file.
        """
        name = self.name_of(path)
        try:
            with open_inside(path, self.roots, name) as stream:
                return read_text(stream, name, largest)
        except OSError as error:
            reason = shown(error.strerror or first_line(error))
            raise UnreadableTextError(
                f"'{shown(name)}' cannot be opened ({reason}): make it readable, or delete it."
            ) from error

    def walk(self, top: Path) -> Iterator[tuple[Path, str]]:
        """Go through a folder and those in it, without hidden ones.

        Yields:
            Files, in no order, each with an empty string; what cannot be looked into, with a short reason. Links to folders are
            not followed.
        """
        waiting = [top]
        while waiting:
            place = waiting.pop()
            try:
                with os.scandir(place) as entries:
                    listed = [entry for entry in entries if not entry.name.startswith(".")]
            except OSError as error:
                yield place, f"the folder cannot be read: {shown(error.strerror)}"
                continue
            for entry in listed:
                if _is_folder(entry, follow_symlinks=False):
                    waiting.append(Path(entry.path))
                elif _is_folder(entry, follow_symlinks=True):
                    yield Path(entry.path), "a link to a folder: put the folder itself in its place"
                else:
                    yield Path(entry.path), ""

    def as_written(self, path: Path) -> Path:
        """Return a path in the folder as the file system has it, where that differs in how signs are composed."""
        if os.path.lexists(path):
            return path
        found = self.folder
        for part in path.relative_to(self.folder).parts:
            found = found / (part if os.path.lexists(found / part) else self._listed(found).get(composed(part), part))
        return found

    def _listed(self, place: Path) -> dict[str, str]:
        if place not in self._names:
            self._names[place] = {}
            # What a link leads to may be outside.
            with suppress(OSError, ValueError):
                inner = sorted(check_inside(place, self.roots, self.name_of(place)).iterdir())
                self._names[place] = {composed(path.name): path.name for path in inner}
        return self._names[place]


def composed(name: str) -> str:
    """A name in the one form that two ways to write the same signs have in common."""
    return normalize("NFC", name)


def listed(name: str, reason: str = "") -> str:
    """A line of a list of what is left out."""
    return f"{shown(name, LONGEST_NAME)} ({reason})" if reason else shown(name, LONGEST_NAME)


def is_folder(path: Path) -> bool:
    """Whether there is a folder; no where the system does not let us look, or does not take the name."""
    return os.path.isdir(path)  # noqa: PTH112 - the other one raises


def _is_folder(entry: os.DirEntry[str], *, follow_symlinks: bool) -> bool:
    try:
        return entry.is_dir(follow_symlinks=follow_symlinks)
    except OSError:
        return False
