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

GONE = "there is no such file"
LONGEST_NAME = 200
"""Signs of a path in a list of what is left out."""


class Places:
    """The files below a folder, by their paths in it with forward slashes.

    Args:
        folder: Of the dataset.
        roots: See `inside.check_inside`.
    """

    def __init__(self, folder: Path, roots: Sequence[Path]) -> None:
        self.folder = folder
        self.roots = tuple(roots)
        self._real: dict[str, Path] = {}
        self._names: dict[str, dict[str, str]] = {}

    def find(self, name: str) -> Path | str:
        """Return where a file really is, or a short reason why it cannot be used.

        Raises:
            LeadsOutError: It leads out of the roots.
        """
        if not is_text(name):
            return "its name is not UTF-8: rename it"
        try:
            return self._find(name)
        except LeadsOutError:
            raise
        except FileNotFoundError:
            return GONE
        except (OSError, ValueError) as error:
            if isinstance(error.__cause__, RuntimeError):
                return "a link in a circle"
            return shown(getattr(error, "strerror", None) or first_line(error))

    def _find(self, name: str) -> Path:
        place, _, last = name.rpartition("/")
        status = os.lstat(self.folder / name)
        if stat.S_ISLNK(status.st_mode):
            real = check_inside(self.folder / name, self.roots, name)
            status = real.stat()
        else:
            if place not in self._real:
                self._real[place] = check_inside(self.folder / place, self.roots, name)
            real = self._real[place] / last
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        return real

    def read_text(self, name: str, largest: int = LONGEST_CAPTION) -> str:
        """Read a text file of the dataset.

        Args:
            name: Path in the folder.
            largest: Bytes.

        Returns:
            See `texts.read_text`.

        Raises:
            UnreadableTextError: It is not there, cannot be read, or see `texts.read_text`.
            ValueError: It leads out, or is no regular file.
        """
        try:
            with open_inside(self.folder / name, self.roots, name) as stream:
                return read_text(stream, name, largest)
        except OSError as error:
            reason = shown(error.strerror or first_line(error))
            raise UnreadableTextError(
                f"'{shown(name)}' cannot be opened ({reason}): make it readable, or delete it."
            ) from error

    def walk(self, top: str) -> Iterator[tuple[str, str]]:
        """Go through a folder and those in it, without hidden ones.

        Args:
            top: Path in the dataset's folder.

        Yields:
            Files, in no order, each with an empty string; what cannot be looked into, with a short reason. Links to folders are
            not followed.
        """
        waiting = [top]
        while waiting:
            place = waiting.pop()
            try:
                with os.scandir(self.folder / place) as entries:
                    listed = [entry for entry in entries if not entry.name.startswith(".")]
            except OSError as error:
                yield place, f"the folder cannot be read: {shown(error.strerror)}"
                continue
            for entry in listed:
                name = f"{place}/{entry.name}"
                if _is_folder(entry, follow_symlinks=False):
                    waiting.append(name)
                elif _is_folder(entry, follow_symlinks=True):
                    yield name, "a link to a folder: put the folder itself in its place"
                else:
                    yield name, ""

    def as_written(self, name: str) -> str:
        """Return the path of a file as the file system has it, where that differs in how signs are composed."""
        found = ""
        for part in name.split("/"):
            alike = self._listed(found).get(composed(part))
            if alike is None:
                return name
            own = part if os.path.lexists(self.folder / found / part) else alike
            found = f"{found}/{own}" if found else own
        return found

    def _listed(self, place: str) -> dict[str, str]:
        if place not in self._names:
            self._names[place] = {}
            with suppress(OSError, ValueError):  # what a link leads to may be outside
                inner = sorted(path.name for path in check_inside(self.folder / place, self.roots, place).iterdir())
                self._names[place] = {composed(name): name for name in inner}
        return self._names[place]


def composed(name: str) -> str:
    """A name in the one form that two ways to write the same signs have in common."""
    return normalize("NFC", name)


def is_text(name: str) -> bool:
    """Whether a name is one that can be written down; the system gives bytes that are no text as halves of surrogate pairs."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


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
