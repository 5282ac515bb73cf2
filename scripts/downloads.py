"""What is fetched from a server that may say anything: addresses, redirects, lists, names of files, and how much of each."""

from __future__ import annotations

import functools
import http.client
import importlib.util
import re
import shutil
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from provide import SetupError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

CHUNK = 1 << 20
SILENCE_SECONDS = 30.0
"""Without a connection, or without a byte from it, before an attempt is given up."""
ANSWER_SECONDS = 60.0
"""For all of a small answer, or for the headers of a large one, however slowly it drips."""
PIECE_SECONDS, PIECE_BYTES = 120.0, 1 << 16
"""What a download must bring in that time; a modem of 1991 does."""
SPARE_BYTES = 1 << 30
"""Disk space that a download of unknown size leaves."""
LARGEST_SIZE = 10**14
NAME_BYTES, PATH_CHARACTERS = 200, 400
DEVICES = re.compile(r"(CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(COM|LPT)[0-9¹²³])", re.IGNORECASE)
"""Names that are devices on Windows, whatever follows their first dot."""


class TooMuchError(ValueError):
    """More comes than is promised or fits."""


@functools.cache
def read_own(path: str) -> ModuleType:
    """Import a file of the pack, such as "models/catalogue.py", by itself: a package named `models` may be another's."""
    name = f"nextcontrol_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).absolute().parents[1] / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def shown(text: object, longest: int = 100) -> str:
    """As `shown` of models/foreign.py: a foreign text on one short, printable line."""
    return str(read_own("models/foreign.py").shown(text, longest))


def is_plain_path(path: str) -> bool:
    """Whether a server's path may become a file below a folder of ours, on every system.

    Args:
        path: With forward slashes.

    Returns:
        False for what leads out, has drives, alternate streams, devices, control characters, dots or spaces at an end of a
        part, or is too long.
    """
    return 0 < len(path) <= PATH_CHARACTERS and path.isprintable() and all(map(_is_plain_name, path.split("/")))


def _is_plain_name(name: str) -> bool:
    is_dotted = not name or name.startswith((".", " ")) or name.endswith((".", " "))
    is_device = DEVICES.fullmatch(name.partition(".")[0].rstrip())
    return not (is_dotted or is_device or re.search(r'[\\:*?"<>|]', name) or len(name.encode()) > NAME_BYTES)


def origin(url: str) -> tuple[str, str, int]:
    """Take a web address apart.

    Returns:
        Scheme, host and port.

    Raises:
        ValueError: It is none, or has a user's name in it.
    """
    parts = urllib.parse.urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
        raise ValueError(f"'{shown(url)}' is no web address that begins with https:// or http://")
    return parts.scheme, parts.hostname, port


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to web addresses alone, and takes the token along only where it belongs.

    Args:
        home: Origin that the token is for.
    """

    def __init__(self, home: tuple[str, str, int] | None = None) -> None:
        self.home = home
        self.told: dict[str, str] = {}
        """What the first server says before it sends us to its store: its x-linked- headers."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """As urllib does; also refuses other schemes and drops the token."""
        self.told = linked(headers) | self.told
        place = origin(newurl)
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and place != self.home:
            following.remove_header("Authorization")
        return following


def linked(headers: Any) -> dict[str, str]:
    """The headers in which the hub describes a file that lies elsewhere."""
    return {name.lower(): value for name, value in headers.items() if name.lower().startswith("x-linked-")}


def within(seconds: float, action: Callable[[], Any]) -> Any:
    """Do what may be stuck in a read that never ends.

    Returns:
        The result of `action`.

    Raises:
        TimeoutError: It is not done by then. It is left alone, in a thread that keeps nothing alive.
    """
    done: list[Any] = []
    failed: list[BaseException] = []

    def act() -> None:
        try:
            done.append(action())
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            failed.append(error)

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not done:
        raise TimeoutError(f"no whole answer after {seconds:.0f} s")
    return done[0]


def open_url(url: str, headers: dict[str, str], redirects: Redirects, silence: float = SILENCE_SECONDS) -> Any:
    """Open a web address.

    Returns:
        The answer, which the caller closes.

    Raises:
        OSError: It cannot be reached, or answers with an error: urllib's and http.client's own.
        ValueError: It, or what it redirects to, is no web address.
    """
    origin(url)
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - `origin` has looked
    opener = urllib.request.build_opener(redirects)
    return within(ANSWER_SECONDS, lambda: opener.open(request, timeout=silence))


def read_answer(answer: Any, most: int) -> bytes:
    """Read all of a small answer.

    Returns:
        Its body.

    Raises:
        ConnectionError: It is cut off.
        ValueError: It has more than `most` bytes.
    """
    data: bytes = within(ANSWER_SECONDS, lambda: answer.read(most + 1))
    if len(data) > most:
        raise ValueError(f"it has more than {most} bytes")
    if answer.length:
        raise ConnectionError(f"cut off {answer.length} bytes before its end")
    return data


def copy_answer(answer: Any, output: Any, start: int, most: int, show: Callable[[int, int], None], size: int = 0) -> int:
    """Write a large answer as it comes.

    Args:
        answer: From `open_url`.
        output: A file, at its place.
        start: Bytes that it has already.
        most: Bytes that it may have.
        show: Told the bytes so far and `size`.
        size: That is promised, 0 if unknown.

    Returns:
        The bytes in all.

    Raises:
        OSError: The connection ends.
        TimeoutError: It is so slow that it never would.
        TooMuchError: More than `most` come.
        SetupError: It cannot be written.
    """
    done, mark, end = start, start, time.monotonic() + PIECE_SECONDS
    while data := answer.read1(CHUNK):  # what is there: a read of a whole chunk waits for a drip
        done += len(data)
        if done > most:
            raise TooMuchError(f"more than {most} bytes")
        try:
            output.write(data)
        except OSError as error:
            raise SetupError(f"'{output.name}' cannot be written ({error.strerror}): make room, or free the folder.") from error
        show(done, size)
        if done - mark >= PIECE_BYTES:
            mark, end = done, time.monotonic() + PIECE_SECONDS
        elif time.monotonic() > end:
            raise TimeoutError(f"{done - mark} bytes in {PIECE_SECONDS:.0f} s")
    return done


def read_count(text: str | None) -> int:
    """Read a number of bytes from a header.

    Returns:
        It; 0 where there is no header.

    Raises:
        ValueError: It is none.
    """
    if not text:
        return 0
    if not re.fullmatch("[0-9]{1,15}", text) or int(text) > LARGEST_SIZE:
        raise ValueError(f"the server tells a size of '{shown(text, 40)}'")
    return int(text)


def free_bytes(folder: Path) -> int:
    """Disk space for a download of unknown size."""
    return max(0, shutil.disk_usage(folder).free - SPARE_BYTES)


def reason_of(error: BaseException) -> str:
    """Why a request failed, in a few printable words; http.client's errors quote the server."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}"
    inner = getattr(error, "reason", error) or error
    return shown(inner if str(inner) else type(error).__name__, 160)


FAILURES = (OSError, http.client.HTTPException)
"""What a connection that may work later fails with."""
