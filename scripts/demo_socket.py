"""What ComfyUI reports over its websocket while it works, without any package: the client's half of RFC 6455."""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import uuid
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from downloads import shown
from host_client import ServerError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10
LARGEST_FRAME = 1 << 28
"""Bytes; a preview of many pictures has some millions."""


class Socket:
    """Messages of the server at `address`; open it before posting a prompt, and post it with `client_id`.

    Args:
        address: "http://host:port".
        timeout: Seconds of silence after which the server counts as gone.
    """

    def __init__(self, address: str, timeout: float = 600.0) -> None:
        self.client_id = uuid.uuid4().hex
        place = urlsplit(address)
        try:
            self._socket = socket.create_connection((place.hostname or "", place.port or 80), timeout)
            self._stream = self._socket.makefile("rb")
            self._shake_hands(place.netloc)
        except OSError as error:
            message = f"The websocket of {address} does not open ({error})."
            raise ServerError(message) from error

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stream.close()
        self._socket.close()

    def messages(self) -> Iterator[dict[str, Any]]:
        """Read what the server reports.

        Yields:
            Each text message, decoded: {type, data}. Previews are skipped.

        Raises:
            ServerError: The connection ended.
        """
        while True:
            try:
                kind, content = self._read_frame()
            except (OSError, struct.error) as error:
                message = "The server has ended or does not report any more."
                raise ServerError(message) from error
            if kind == CLOSE:
                message = "The server has closed the connection."
                raise ServerError(message)
            if kind == PING:
                self._send(PONG, content)
            elif kind == TEXT:
                yield _decode(content)

    def _shake_hands(self, host: str) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [f"GET /ws?clientId={self.client_id} HTTP/1.1", f"Host: {host}", "Upgrade: websocket", "Connection: Upgrade"]
        lines += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "", ""]
        self._socket.sendall("\r\n".join(lines).encode())
        status = self._stream.readline().decode(errors="replace").strip()
        if " 101 " not in f"{status} ":
            message = f"it answers '{status}'"
            raise OSError(message)
        while self._stream.readline().strip():
            pass

    def _read_frame(self) -> tuple[int, bytes]:
        """One message; ComfyUI never splits one into several frames."""
        first, length = struct.unpack("!BB", self._stream.read(2))
        if length >= 126:
            size, code = (2, "!H") if length == 126 else (8, "!Q")
            (length,) = struct.unpack(code, self._stream.read(size))
        if length > LARGEST_FRAME:
            message = f"a message of {length} bytes"
            raise OSError(message)
        content = self._stream.read(length)
        if len(content) < length:
            message = "cut off"
            raise OSError(message)
        return first & 15, content

    def _send(self, kind: int, content: bytes) -> None:
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(content))
        self._socket.sendall(struct.pack("!BB", 128 | kind, 128 | len(content)) + mask + masked)


def _decode(content: bytes) -> dict[str, Any]:
    try:
        message = json.loads(content)
    except (ValueError, RecursionError) as error:
        text = f"The server reports what is no message ({shown(error)})."
        raise ServerError(text) from error
    is_message = isinstance(message, dict) and isinstance(message.get("data", {}), dict) and "type" in message
    if not is_message:
        text = f"The server reports what is no message ('{shown(message)}')."
        raise ServerError(text)
    return dict(message)
