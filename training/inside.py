"""Files of a dataset: read and written below the folders that datasets may lie in, and nowhere else, whatever links say.

A link that stays below these folders may be read through, so that datasets can share pictures. Nothing is written through one.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from ..models.foreign import first_line, shown


class LeadsOutError(ValueError):
    """A path leads out of the folders that datasets may lie in."""


def check_inside(path: Path, roots: Sequence[Path], name: str) -> Path:
    """Make sure that a path does not lead out of the allowed folders, by a link or by dots.

    Args:
        path: Existing or not.
        roots: The allowed folders.
        name: As the user knows it, for the error.

    Returns:
        The path without links.

    Raises:
        LeadsOutError: It leads out.
        ValueError: It leads in circles, or the system does not take it.
    """
    try:
        real = path.resolve()
        is_inside = any(real.is_relative_to(root.resolve()) for root in roots)
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a name that the system does not take
        reason = "a link in a circle" if isinstance(error, RuntimeError) else first_line(error)
        raise ValueError(f"'{shown(name)}' cannot be followed ({reason}): choose another folder or file.") from error
    if not is_inside:
        raise LeadsOutError(
            f"'{shown(name)}' leads out of the folders that datasets may lie in: put it below ComfyUI's input/, or name its "
            "place as nextcontrol_datasets in extra_model_paths.yaml."
        )
    return real


def open_real(path: Path, name: str) -> BinaryIO:
    """Open a file for reading that `check_inside` has seen.

    Args:
        path: Without links, as `check_inside` returns it.
        name: As the user knows it, for the error.

    Returns:
        The open file.

    Raises:
        FileNotFoundError: It is not there.
        PermissionError: It may not be read.
        ValueError: A link has taken its place or that of a folder above it, or it is not a regular file.
    """
    if path.resolve() != path:
        raise ValueError(f"'{shown(name)}' has become a link: put the file itself into the dataset.")
    # A pipe would wait for a writer; O_NOFOLLOW refuses a link that appears at this moment.
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    number = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise ValueError(f"'{shown(name)}' is not a regular file: put a file in its place.")
    return os.fdopen(number, "rb")


def open_inside(path: Path, roots: Sequence[Path], name: str) -> BinaryIO:
    """Open a file of a dataset for reading; errors as `check_inside` and `open_real` have them."""
    return open_real(check_inside(path, roots, name), name)


def own_place(folder: Path, relative: str | Path) -> Path:
    """Return the place of a file to be written into a dataset's folder.

    Args:
        folder: Of the dataset, seen by `check_inside`; may be a link itself.
        relative: Path of the file in it.

    Returns:
        The place, in the folder without links.

    Raises:
        LeadsOutError: It leads out of the folder.
        ValueError: The file or a folder on the way to it is a link, or the system does not take the name.
    """
    real = folder.resolve()
    place = real / relative
    if ".." in place.parts or not place.is_relative_to(real):
        raise LeadsOutError(f"'{shown(relative)}' leads out of '{shown(folder.name)}': write a path inside it.")
    try:
        is_own = not place.is_symlink() and place.parent.resolve() == place.parent
    except (OSError, ValueError) as error:
        reason = shown(getattr(error, "strerror", None) or first_line(error))
        raise ValueError(f"'{shown(relative)}' cannot be written ({reason}): choose another name.") from error
    except RuntimeError:  # links in a circle
        is_own = False
    if not is_own:
        raise ValueError(
            f"'{shown(relative)}' in '{shown(folder.name)}' is a link, and nothing is written through links: put a file or "
            "folder of its own in its place."
        )
    return place
