"""ComfyUI's HTTP interface, as far as the scripts and tests use it."""

from __future__ import annotations

import http.client
import json
import mimetypes
import urllib.error
import urllib.request
import uuid
from typing import TYPE_CHECKING, Any

from downloads import Redirects, reason_of, shown

if TYPE_CHECKING:
    from pathlib import Path


LARGEST_ANSWER, LARGEST_COMPLAINT = 1 << 30, 1 << 20
"""Bytes: of a picture or a video, and of an error."""


class ServerError(RuntimeError):
    """The server did not start, or a request failed."""


class NoAnswerError(ServerError):
    """Nobody answers."""


class HttpError(ServerError):
    """The server answered with an error; `status` is its code and `body` the answer, as JSON where it is."""

    def __init__(self, method: str, path: str, status: int, body: Any) -> None:
        super().__init__(f"{method} {path} answers {status}: {shown(body, 1000)}")
        self.status = status
        self.body = body


class Client:
    """Asks the ComfyUI at `address`, "http://host:port". Every path starts with a slash."""

    def __init__(self, address: str) -> None:
        self.address = address

    def fetch(self, path: str, body: bytes | None = None, content_type: str = "application/json") -> bytes:
        """GET `path`, or POST `body` to it.

        Returns:
            The body of the answer.

        Raises:
            HttpError: The answer is an error.
            NoAnswerError: There is no answer.
            ServerError: It is too large.
        """
        headers = {} if body is None else {"Content-Type": content_type}
        request = urllib.request.Request(self.address + path, body, headers)  # noqa: S310 - the address is the caller's
        try:
            # A proxy of the environment cannot reach this machine.
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), Redirects())
            with opener.open(request, timeout=60) as answer:
                content: bytes = answer.read(LARGEST_ANSWER + 1)
        except urllib.error.HTTPError as error:
            raise HttpError(request.get_method(), path, error.code, _decode(error.read(LARGEST_COMPLAINT))) from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            message = f"{request.get_method()} {self.address}{path} gets no answer ({reason_of(error)})."
            raise NoAnswerError(message) from error
        if len(content) > LARGEST_ANSWER:
            message = f"{request.get_method()} {self.address}{path} answers with more than {LARGEST_ANSWER >> 20} MB."
            raise ServerError(message)
        return content

    def get_json(self, path: str) -> Any:
        """The decoded answer to GET `path`; errors as in `fetch`."""
        return _decode(self.fetch(path))

    def post_json(self, path: str, body: Any) -> Any:
        """The decoded answer to POST `path` with `body` as JSON, None if it is empty; errors as in `fetch`."""
        return _decode(self.fetch(path, json.dumps(body).encode()))

    def upload_image(self, path: Path) -> dict[str, str]:
        """Upload a picture, overwriting one of that name; {name, subfolder, type} as LoadImage wants it."""
        boundary = uuid.uuid4().hex
        name = path.name.translate({ord('"'): "%22", ord("\r"): "%0D", ord("\n"): "%0A"})  # as browsers do
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n'.encode(),
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'.encode(),
            f"Content-Type: {kind}\r\n\r\n".encode(),
            path.read_bytes(),
            f"\r\n--{boundary}--\r\n".encode(),
        ]
        content_type = f"multipart/form-data; boundary={boundary}"
        answer: dict[str, str] = _decode(self.fetch("/upload/image", b"".join(parts), content_type))
        return answer


def _decode(body: bytes) -> Any:
    try:
        return json.loads(body) if body else None
    except (ValueError, RecursionError):
        return body.decode("utf-8", errors="replace")
