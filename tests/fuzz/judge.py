"""What a hostile file may do: work, or be refused in one sentence. Everything else is a fault."""

from __future__ import annotations

import linecache
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]
OK, REFUSED, RAW, MEMORY, HANG, ESCAPE, WRONG = "ok", "refused", "raw", "memory", "hang", "escape", "wrong"
OUTCOMES = (OK, REFUSED, RAW, MEMORY, HANG, ESCAPE, WRONG)
"""From harmless to worst; a case has the worst of its actions."""
FAULTS = OUTCOMES[2:]
LONGEST_MESSAGE = 700
LONGEST_LINE = 2000
LONGEST_TEXT = 40_000
_NO_MEMORY = ("allocate memory", "Cannot allocate", "can't allocate", "out of memory")


class WrongError(AssertionError):
    """A case's own check has failed: damage was taken for data."""


class EscapeError(AssertionError):
    """A case's own check has failed: something outside its folder was read or written."""


@dataclass(frozen=True)
class Verdict:
    """Of one action on one file."""

    outcome: str
    action: str = ""
    """What was done with the file."""
    made: str = ""
    """How the file was made."""
    message: str = ""
    where: str = ""
    """The last frames of the traceback: what is equal here is one fault."""

    def as_dict(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)


def judge(error: BaseException) -> tuple[str, str, str]:
    """Outcome, message and place of an exception."""
    message = f"{type(error).__name__}: {error}"[:3000]
    message, where = message.encode("ascii", "backslashreplace").decode(), place_of(error)
    if isinstance(error, WrongError):
        return WRONG, message, where
    if isinstance(error, EscapeError):
        return ESCAPE, message, where
    if isinstance(error, MemoryError) or any(sign in message for sign in _NO_MEMORY if not is_sentence(error)):
        return MEMORY, message, where
    if problem := problem_of(error):
        return RAW, f"[{problem}] {message}", where
    return REFUSED, message, where


def problem_of(error: BaseException) -> str:
    """Why an exception is no sentence of ours; empty if it is one."""
    kind = type(error)
    is_own = kind.__module__.startswith("nextcontrol.") and isinstance(error, (ValueError, OSError))
    if kind not in (ValueError, FileNotFoundError) and not is_own:
        return "type"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    if not Path(frame.filename).is_relative_to(PACK) or Path(frame.filename).is_relative_to(PACK / "tests"):
        return "raised elsewhere"
    if "raise" not in linecache.getline(frame.filename, frame.lineno or 0):
        return "not raised by us"
    return problem_of_sentence(str(error))


def is_sentence(error: BaseException) -> bool:
    """Whether an exception is one of our refusals."""
    return not problem_of(error)


def problem_of_sentence(text: str) -> str:
    """Why a message cannot be shown; empty if it can."""
    if len(text) > LONGEST_MESSAGE:
        return f"{len(text)} characters"
    if not text.isprintable():
        return "not printable"
    return "" if text.endswith((".", "!", "?")) and " " in text else "no sentence"


def problem_of_text(text: str, longest: int = LONGEST_TEXT) -> str:
    """Why a text of several lines, or a line of the log, cannot be shown; empty if it can."""
    if len(text) > longest or any(len(line) > LONGEST_LINE for line in text.split("\n")):
        return f"{len(text)} characters"
    return "" if text.replace("\n", "").isprintable() else "not printable"


def place_of(error: BaseException) -> str:
    """The last frames of a traceback in the pack, and the last of all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if is_pack(frame.filename)][-2:]
    chosen = own if frames[-1] in own or not frames else [*own, frames[-1]]
    return " > ".join(f"{short(frame.filename)}:{frame.lineno} {frame.name}" for frame in chosen)


def is_pack(file: str) -> bool:
    """Whether a source file is the pack's own, not a test's."""
    return Path(file).is_relative_to(PACK) and not Path(file).is_relative_to(PACK / "tests")


def short(file: str) -> str:
    """A path for a table."""
    path = Path(file)
    return path.relative_to(PACK).as_posix() if path.is_relative_to(PACK) else "/".join(path.parts[-3:])
