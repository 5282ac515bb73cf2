"""Files of the Hugging Face hub: what a folder there holds, and fetching a file so that an interrupted download goes on.

HF_ENDPOINT names another address for the hub, HF_TOKEN is sent to it and to nobody else. Standard library only.
"""

from __future__ import annotations

import functools
import hashlib
import http.client
import importlib.util
import json
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from provide import SetupError

if TYPE_CHECKING:
    from collections.abc import Callable

CHUNK = 1 << 20
ATTEMPTS = 5
TIMEOUT_SECONDS = 30.0
PAUSE_SECONDS = 1.0
"""Before the second attempt; each further one waits twice as long."""
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
    """`CATALOGUE` of models/catalogue.py, read as a file: a package named `models` is not ours to import."""
    name = "nextcontrol_catalogue"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).absolute().parents[1] / "models" / "catalogue.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return tuple(module.CATALOGUE)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Remembers what the hub says before it sends us to its store, and keeps the token from that store."""

    def __init__(self) -> None:
        self.told: dict[str, str] = {}

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        self.told |= {name.lower(): value for name, value in headers.items() if name.lower().startswith("x-linked-")}
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and _host(newurl) != _host(req.full_url):
            following.remove_header("Authorization")
        return following


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
    path = urllib.parse.quote(folder.strip("/"))
    url: str | None = f"{endpoint()}/api/models/{repository}/tree/main{'/' if path else ''}{path}?recursive=true"
    files = []
    while url:
        answer, _ = _retried(functools.partial(_open, url, {}), url)
        with answer:
            entries = json.load(answer)
            url = _next_page(answer.headers.get("Link", ""))
        for entry in entries:
            large = entry.get("lfs") or {}
            if entry.get("type") == "file" and _is_safe(entry["path"]):
                files.append(RemoteFile(repository, entry["path"], int(entry.get("size", 0)), large.get("oid", "")))
    return files if folder else _wanted(files)


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
        raise SetupError(f"'{file.path}' came with {found} bytes and {size} are expected: it was discarded, fetch it again.")
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
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        part.unlink()
        raise ConnectionError("the file is shorter than before") from error
    with answer:
        is_rest = answer.status == http.HTTPStatus.PARTIAL_CONTENT
        if is_rest and not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise ConnectionError("the server sent another part than asked for")
        start = start if is_rest else 0
        length = answer.headers.get("Content-Length")
        size = int(told.get("x-linked-size") or (start + int(length) if length else 0))
        _check_space(part, (size or file.size) - start)
        with part.open("r+b" if is_rest else "wb") as output:
            output.seek(start)
            _copy(answer, output, start, size or file.size, show)
    digest = told.get("x-linked-etag", "").strip('"')
    return size, digest if SHA256.fullmatch(digest) else ""


def _copy(answer: Any, output: Any, start: int, size: int, show: Callable[[int, int], None]) -> None:
    done = start
    try:
        while data := answer.read(CHUNK):
            output.write(data)
            done += len(data)
            show(done, size)
    finally:
        output.flush()
        os.fsync(output.fileno())
    if done < size:
        raise ConnectionError(f"cut off after {done} of {size} bytes")


def _retried(action: Callable[[], Any], url: str, part: Path | None = None) -> Any:
    """The result of `action`, tried again while the connection fails; what brings `part` forward does not count as failing."""
    failures = 0
    while True:
        before = part.stat().st_size if part and part.exists() else 0
        try:
            return action()
        except urllib.error.HTTPError as error:
            reason: object = f"HTTP {error.code}"
            if error.code not in SERVER_FAULTS:
                raise SetupError(_refusal(error.code, url)) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
        after = part.stat().st_size if part and part.exists() else 0
        failures = 0 if after > before else failures + 1
        if failures >= ATTEMPTS:
            raise SetupError(
                f"'{url}' cannot be fetched ({reason}): check the connection and run this again, it goes on where it stopped; "
                "HF_ENDPOINT names a mirror of the hub."
            )
        time.sleep(PAUSE_SECONDS * 2 ** max(failures - 1, 0))


def _refusal(code: int, url: str) -> str:
    if code in {401, 403}:
        has_token = "the token in HF_TOKEN is not allowed to" if os.environ.get("HF_TOKEN") else "that needs HF_TOKEN"
        return f"The hub refuses '{url}' (HTTP {code}), {has_token}: accept the licence on its page and set HF_TOKEN."
    if code == http.HTTPStatus.NOT_FOUND:
        return f"The hub has no '{url}' (HTTP 404): it may have moved, look at the repository's page."
    return f"The hub answers '{url}' with HTTP {code}: look at the repository's page."


def _open(url: str, headers: dict[str, str]) -> tuple[Any, dict[str, str]]:
    if not _host(url)[0].startswith("http"):
        raise SetupError(f"HF_ENDPOINT ('{endpoint()}') is no web address: it begins with https://.")
    redirects = _Redirects()
    request = urllib.request.Request(url, headers={"User-Agent": "nextcontrol", **headers})  # noqa: S310 - the user's HF_ENDPOINT
    if token := os.environ.get("HF_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    answer = urllib.request.build_opener(redirects).open(request, timeout=TIMEOUT_SECONDS)
    told = {name.lower(): value for name, value in answer.headers.items() if name.lower().startswith("x-linked-")}
    return answer, {**told, **redirects.told}


def _host(url: str) -> tuple[str, str]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.netloc


def _next_page(link: str) -> str | None:
    found = re.search(r'<([^>]+)>\s*;\s*rel="next"', link)
    return urllib.parse.urljoin(f"{endpoint()}/", found.group(1)) if found else None


def _is_safe(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and "\\" not in path and not any(part.startswith(".") for part in parts)


def _wanted(files: list[RemoteFile]) -> list[RemoteFile]:
    top = [file for file in files if "/" not in file.path]
    has_safe = any(file.path.endswith(".safetensors") for file in top)
    suffixes = WANTED_SUFFIXES if has_safe else (*WANTED_SUFFIXES, ".bin")
    return [file for file in top if file.path.endswith(suffixes)]


def _hash_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            digest.update(data)
    return digest.hexdigest()


def _check_space(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise SetupError(f"'{part.parent}' has {free / 1e6:.0f} MB free and {needed / 1e6:.0f} MB are needed: make room.")
