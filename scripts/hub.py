"""Files of the Hugging Face hub: what a folder there holds, and fetching a file so that an interrupted download goes on.

HF_ENDPOINT names another address for the hub, HF_TOKEN is sent to it and to nobody else. Standard library only.
"""

from __future__ import annotations

import functools
import hashlib
import http.client
import json
import math
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import downloads
from downloads import read_own, shown
from provide import SetupError, say

if TYPE_CHECKING:
    from collections.abc import Callable

ATTEMPTS = 5
PROGRESS_BYTES = 1 << 16
"""What an attempt must bring to count as none that failed."""
PAUSE_SECONDS = 1.0
"""Before the second attempt; each further one waits twice as long."""
PAGES, PAGE_BYTES, ENTRIES, LIST_SECONDS = 100, 8 << 20, 20_000, 120.0
"""What a list of files may have at most. The hub sends 1,000 entries a page, 300 kB."""
LINK_CHARACTERS = 4096
SERVER_FAULTS = frozenset({408, 429, 500, 502, 503, 504})
SHA256 = re.compile(r"[0-9a-f]{64}")
# Of a whole repository: what transformers reads. Other formats of the same weights are passed over.
WANTED_SUFFIXES = (".json", ".safetensors", ".txt", ".model")


@dataclass(frozen=True)
class RemoteFile:
    """A file on the hub; size and hash are empty where they are not known beforehand."""

    repository: str
    path: str
    size: int = 0
    sha256: str = ""

    @property
    def url(self) -> str:
        """Where it is fetched from."""
        return f"{endpoint()}/{self.repository}/resolve/main/{urllib.parse.quote(self.path)}"


def read_catalogue() -> tuple[Any, ...]:
    """`CATALOGUE` of models/catalogue.py."""
    return tuple(read_own("models/catalogue.py").CATALOGUE)


def endpoint() -> str:
    """The hub's address."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def list_folder(repository: str, folder: str = "") -> list[RemoteFile]:
    """The files of a folder on the hub, sub-folders too.

    Args:
        repository: "owner/name".
        folder: Without it the whole repository, of which only what transformers reads is listed.

    Returns:
        The files, with what the hub says of size and hash.

    Raises:
        SetupError: The hub cannot be reached, or has no such folder.
    """
    folder = folder.strip("/")
    path = urllib.parse.quote(folder)
    url: str | None = f"{endpoint()}/api/models/{repository}/tree/main{'/' if path else ''}{path}?recursive=true"
    files: list[RemoteFile] = []
    pages, count, end = 0, 0, time.monotonic() + LIST_SECONDS
    while url:
        if pages == PAGES or count > ENTRIES or time.monotonic() > end:
            raise SetupError(
                f"The hub's list of '{repository}' does not end ({pages} pages with {count} entries came in "
                f"{time.monotonic() - end + LIST_SECONDS:.0f} s): look at the repository's page."
            )
        entries, following = _retried(functools.partial(_read_page, url), url, end=end)
        files += [file for entry in entries if (file := _file_of(entry, repository, url))]
        pages, count, url = pages + 1, count + len(entries), following
    inside = f"{folder}/" if folder else ""
    plain = {file for file in files if downloads.is_plain_path(file.path) and file.path.startswith(inside)}
    # Such as .gitattributes, which is in every repository.
    odd = [file.path for file in files if file not in plain and "/." not in f"/{file.path}"]
    if odd:
        say(f"{len(odd)} files of '{repository}' are passed over, '{shown(odd[0])}' first: that is no name for a file here.")
    found = [file for file in files if file in plain]
    return found if folder else _wanted(found)


def _read_page(url: str) -> tuple[list[Any], str | None]:
    """The entries of one page of a list, and the address of the next."""
    answer, _ = _open(url, {})
    with answer:
        data = downloads.read_answer(answer, PAGE_BYTES)
        link = answer.headers.get("Link", "")
    try:
        entries = json.loads(data)
    except RecursionError as error:
        raise ValueError("its list is nested too deeply") from error
    if not isinstance(entries, list):
        raise ValueError(f"its list is '{shown(entries, 60)}'")
    return entries, _next_page(link)


def _file_of(entry: Any, repository: str, url: str) -> RemoteFile | None:
    """The file that an entry of a list describes; None for a folder."""
    kind, path = (entry.get("type"), entry.get("path")) if isinstance(entry, dict) else (None, None)
    if isinstance(kind, str) and isinstance(path, str):
        if kind != "file":
            return None
        size, large = entry.get("size"), entry.get("lfs") or {}
        digest = large.get("oid", "") if isinstance(large, dict) else None
        is_size = isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= downloads.LARGEST_SIZE
        if is_size and isinstance(digest, str) and (not digest or SHA256.fullmatch(digest)):
            return RemoteFile(repository, path, size, digest)
    raise SetupError(_odd(url, f"'{shown(entry)}' describes no file"))


def fetch(file: RemoteFile, target: Path, show: Callable[[int, int], None]) -> str:
    """Download a file; what an interrupted run left beside it as .part is continued.

    Args:
        file: What to fetch.
        target: Where it goes; must not exist.
        show: Told the bytes so far and the bytes in all, 0 if unknown.

    Returns:
        What was compared: "size and sha256", "size" or "nothing".

    Raises:
        SetupError: It cannot be fetched, or what came is not what the hub or the catalogue promised.
    """
    part = target.with_name(f"{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    size, sha256 = _retried(lambda: _receive(file, part, show), file.url, part)
    size, sha256 = file.size or size, file.sha256 or sha256
    if size and part.stat().st_size != size:
        found = part.stat().st_size
        part.unlink()
        raise SetupError(_other_size(file, found, size))
    if sha256 and _hash_of(part) != sha256:
        part.unlink()
        raise SetupError(f"'{file.path}' came with another sha256 than {sha256[:12]}…: it was discarded, fetch it again.")
    if target.exists():
        raise SetupError(f"'{target}' has appeared meanwhile: '{part}' is left beside it.")
    part.rename(target)
    return "size and sha256" if sha256 else "size" if size else "nothing"


def _receive(file: RemoteFile, part: Path, show: Callable[[int, int], None]) -> tuple[int, str]:
    """One attempt to bring `part` to its end. Returns size and hash as the hub tells them, 0 and "" if it does not."""
    # The last byte is asked for once more, so that a part that is whole gets an answer with the file's hash too.
    start = max(0, part.stat().st_size - 1) if part.exists() else 0
    try:
        answer, told = _open(file.url, {"Range": f"bytes={start}-"} if start else {})
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not start:
            raise
        part.unlink()
        raise ConnectionError("the file is shorter than before") from error
    with answer:
        is_rest = answer.status == http.HTTPStatus.PARTIAL_CONTENT
        if is_rest and not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise ConnectionError("the server sent another part than asked for")
        start = start if is_rest else 0
        length = downloads.read_count(answer.headers.get("Content-Length"))
        size = downloads.read_count(told.get("x-linked-size")) or (start + length if length else 0)
        if file.size and size and size != file.size:
            part.unlink(missing_ok=True)
            raise SetupError(_other_size(file, size, file.size))
        size = size or file.size
        _check_space(part, size - start)
        try:
            output = part.open("r+b" if is_rest else "wb")
        except OSError as error:
            raise SetupError(f"'{part}' cannot be written ({error.strerror}): make room, or free the folder.") from error
        with output:
            output.seek(start)
            _copy(answer, output, start, size, show)
    digest = told.get("x-linked-etag", "").strip('"')
    return size, digest if SHA256.fullmatch(digest) else ""


def _copy(answer: Any, output: Any, start: int, size: int, show: Callable[[int, int], None]) -> None:
    most = size or start + downloads.free_bytes(Path(output.name).parent)
    try:
        done = downloads.copy_answer(answer, output, start, most, show, size)
    except downloads.TooMuchError as error:
        output.truncate(0)
        raise SetupError(f"'{Path(output.name).name}' does not end ({error}): it was discarded.") from error
    finally:
        output.flush()
        os.fsync(output.fileno())
    if done < size:
        raise ConnectionError(f"cut off after {done} of {size} bytes")


def _retried(action: Callable[[], Any], url: str, part: Path | None = None, end: float = math.inf) -> Any:
    """The result of `action`, tried again while the connection fails; what brings `part` forward does not count as failing."""
    failures = 0
    while True:
        before = part.stat().st_size if part and part.exists() else 0
        try:
            return action()
        except urllib.error.HTTPError as error:
            reason = downloads.reason_of(error)
            if error.code not in SERVER_FAULTS:
                raise SetupError(_refusal(error.code, url)) from error
        except downloads.FAILURES as error:
            reason = downloads.reason_of(error)
        except ValueError as error:
            raise SetupError(_odd(url, downloads.reason_of(error))) from error
        after = part.stat().st_size if part and part.exists() else 0
        failures = 0 if after - before >= PROGRESS_BYTES else failures + 1
        if failures >= ATTEMPTS or time.monotonic() > end:
            raise SetupError(
                f"'{shown(url, 200)}' cannot be fetched ({reason}): check the connection and run this again, it goes on where "
                "it stopped; HF_ENDPOINT names a mirror of the hub."
            )
        time.sleep(PAUSE_SECONDS * 2 ** max(failures - 1, 0))


def _odd(url: str, reason: str) -> str:
    return f"'{shown(url, 200)}' does not answer as the hub does ({reason}): look at the repository's page, or at HF_ENDPOINT."


def _other_size(file: RemoteFile, found: int, size: int) -> str:
    return f"'{file.path}' came with {found} bytes and {size} are expected: it was discarded, fetch it again."


def _refusal(code: int, url: str) -> str:
    if code in {401, 403}:
        has_token = "the token in HF_TOKEN is not allowed to" if os.environ.get("HF_TOKEN") else "that needs HF_TOKEN"
        return (
            f"The hub refuses '{shown(url, 200)}' (HTTP {code}), {has_token}: accept the licence on its page and set HF_TOKEN."
        )
    if code == http.HTTPStatus.NOT_FOUND:
        return f"The hub has no '{shown(url, 200)}' (HTTP 404): it may have moved, look at the repository's page."
    return f"The hub answers '{shown(url, 200)}' with HTTP {code}: look at the repository's page."


def _open(url: str, headers: dict[str, str]) -> tuple[Any, dict[str, str]]:
    """Open an address of the hub's. Returns the answer and what is told of the file that it is."""
    try:
        home = downloads.origin(endpoint())
    except ValueError as error:
        raise SetupError(f"HF_ENDPOINT ('{shown(endpoint())}') is no web address: it begins with https://.") from error
    headers = {"User-Agent": "nextcontrol", **headers}
    token = os.environ.get("HF_TOKEN", "").strip()
    if not re.fullmatch(r"[!-~]*", token):  # http.client would quote it in its complaint
        raise SetupError("HF_TOKEN has signs that no token has: copy it again from the hub's page of tokens.")
    if token and downloads.origin(url) == home:
        headers["Authorization"] = f"Bearer {token}"
    redirects = downloads.Redirects(home)
    answer = downloads.open_url(url, headers, redirects)
    return answer, downloads.linked(answer.headers) | redirects.told


def _next_page(link: str) -> str | None:
    found = re.search(r'<([^<>]+)>\s*;\s*rel="next"', link[:LINK_CHARACTERS])
    return urllib.parse.urljoin(f"{endpoint()}/", found.group(1)) if found else None


def _wanted(files: list[RemoteFile]) -> list[RemoteFile]:
    top = [file for file in files if "/" not in file.path]
    has_safe = any(file.path.endswith(".safetensors") for file in top)
    suffixes = WANTED_SUFFIXES if has_safe else (*WANTED_SUFFIXES, ".bin")
    return [file for file in top if file.path.endswith(suffixes)]


def _hash_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(downloads.CHUNK):
            digest.update(data)
    return digest.hexdigest()


def _check_space(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise SetupError(f"'{part.parent}' has {free / 1e6:.0f} MB free and {needed / 1e6:.0f} MB are needed: make room.")
