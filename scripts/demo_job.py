"""A workflow through a running ComfyUI: what is changed in it, its progress in the terminal, its pictures."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from demo_socket import Socket
from downloads import shown
from host_client import Client, HttpError, ServerError
from provide import SetupError

if TYPE_CHECKING:
    from pathlib import Path

    from host_server import Server

MESSAGE, NAME = 1000, 60
"""Characters of a server's complaint, and of a title in a file's name."""

Graph = dict[str, dict[str, Any]]


def read_workflow(path: Path) -> Graph:
    """A workflow in API format; for one as the page saves it, its twin in the sub-folder api/.

    Returns:
        Node id to {class_type, inputs, _meta}.

    Raises:
        SetupError: There is no such file, or it is something else.
    """
    try:
        graph = _parse(path)
        if isinstance(graph, dict) and isinstance(graph.get("nodes"), list):
            twin = path.parent / "api" / path.name
            if not twin.is_file():
                message = f"'{path}' is as the page saves it and the API format is needed: export it with File > Export (API)."
                raise SetupError(message)
            graph = _parse(twin)
    except OSError as error:
        message = f"'{path}' cannot be read ({error.strerror}): give the path of a workflow."
        raise SetupError(message) from error
    except ValueError as error:
        message = f"'{path}' is not JSON ({shown(error)}): give a workflow in API format, from File > Export (API)."
        raise SetupError(message) from error
    if not isinstance(graph, dict) or not all(map(_is_node, graph.values())):
        message = f"'{path}' is not a workflow: give one in API format, from File > Export (API)."
        raise SetupError(message)
    return graph


def _parse(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError as error:
        message = "it is nested too deeply"
        raise ValueError(message) from error


def _is_node(entry: Any) -> bool:
    is_whole = isinstance(entry, dict) and isinstance(entry.get("class_type"), str) and isinstance(entry.get("inputs"), dict)
    return is_whole and isinstance(entry.get("_meta", {}), dict)


def set_inputs(graph: Graph, name: str, value: Any, kinds: tuple[str, ...] = ()) -> int:
    """Give an input that is not connected a value, in every node that has it; of the node classes `kinds`, if any.

    Returns:
        How many were set.
    """
    nodes = [node for node in graph.values() if not kinds or node["class_type"] in kinds]
    inputs = [node["inputs"] for node in nodes if name in node["inputs"] and not isinstance(node["inputs"][name], list)]
    for values in inputs:
        values[name] = value
    return len(inputs)


def title_of(graph: Graph, node: str) -> str:
    """What the page calls a node."""
    entry = graph[node]
    return str(entry.get("_meta", {}).get("title") or entry["class_type"])


def run_job(server: Server, graph: Graph) -> dict[str, Any]:
    """Run a workflow and show its progress on stdout.

    Returns:
        Its entry of the server's history.

    Raises:
        ServerError: The workflow is refused, a node fails, or the server ends.
    """
    with Socket(server.address) as reports:
        try:
            answer = server.post_json("/prompt", {"prompt": graph, "client_id": reports.client_id})
        except HttpError as error:
            raise ServerError(_refusal(error.body, graph)) from error
        if answer["node_errors"]:
            raise ServerError(_refusal(answer, graph))
        job = answer["prompt_id"]
        progress = Progress(graph)
        for message in reports.messages():
            data = message.get("data", {})
            if data.get("prompt_id") != job:
                continue
            if message["type"] == "execution_error":
                progress.end()
                text = shown(str(data["exception_message"]).strip(), MESSAGE)
                reason = f"'{title_of(graph, str(data['node_id']))}' failed: {text}"
                raise ServerError(reason)
            if message["type"] == "execution_interrupted":
                progress.end()
                reason = "The job was interrupted."
                raise ServerError(reason)
            if message["type"] == "progress":
                progress.move(data["value"], data["max"])
            if message["type"] == "executing":
                progress.end()
                if data["node"] is None:
                    break
                progress.begin(str(data["node"]))
    entry: dict[str, Any] = server.get_json(f"/history/{job}")[job]
    return entry


def _refusal(body: Any, graph: Graph) -> str:
    """Why a workflow was not accepted, in one line."""
    if not isinstance(body, dict):
        return f"The workflow is refused: {shown(body, MESSAGE)}"
    reasons = [
        f"'{title_of(graph, node)}': {error['details'] or error['message']}"
        for node, entry in (body.get("node_errors") or {}).items()
        for error in entry["errors"]
    ]
    whole = "; ".join(reasons) or body.get("error", {}).get("message", body)
    return f"The workflow is refused: {shown(whole, MESSAGE)}"


class Progress:
    """A line for each node: updated on a terminal, printed when the node is done elsewhere."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._title = self._bar = ""
        self._start = 0.0

    def begin(self, node: str) -> None:
        """A node starts."""
        self._title, self._bar, self._start = title_of(self._graph, node), "", time.monotonic()
        self._show()

    def move(self, value: int, total: int) -> None:
        """It has done `value` of `total` steps."""
        filled = 20 * value // max(total, 1)
        self._bar = f"[{'#' * filled}{'.' * (20 - filled)}] {value}/{total}"
        if sys.stdout.isatty():
            self._show()
        elif value * 4 // total != (value - 1) * 4 // total and value < total:
            self._show(end="\n")

    def end(self) -> None:
        """It is done."""
        if self._title:
            self._show(end="\n")
        self._title = ""

    def _show(self, end: str = "") -> None:
        is_terminal = sys.stdout.isatty()
        if not end and not is_terminal:
            return
        text = f"  {self._title:<24.24} {self._bar:<30} {time.monotonic() - self._start:6.1f} s"
        width = shutil.get_terminal_size().columns - 1
        print(f"\r{text[:width]:<{width}}" if is_terminal else text, end=end, flush=True)


def fetch_pictures(server: Client, graph: Graph, outputs: dict[str, Any], folder: Path) -> list[tuple[str, Path]]:
    """Save what a job has made.

    Args:
        server: That ran it.
        graph: That it ran.
        outputs: Of its history entry.
        folder: For the files; names are made from the nodes' titles.

    Returns:
        The title of the node and the file, in the order of the nodes.
    """
    found = []
    for node in sorted(outputs, key=lambda node: (len(node), node)):
        title = title_of(graph, node)
        for number, entry in enumerate(outputs[node].get("images", [])):
            name = "".join(c if c.isalnum() else "_" for c in title.lower()[:NAME]) + (f"_{number}" if number else "")
            path = folder / f"{name}{_suffix_of(entry)}"
            path.write_bytes(server.fetch(f"/view?{urlencode(entry)}"))
            found.append((title, path))
    return found


def _suffix_of(entry: Any) -> str:
    """How a picture's file ends: all that is taken from the server's name for it."""
    name = entry.get("filename") if isinstance(entry, dict) else None
    found = re.search(r"\.[A-Za-z0-9]{1,8}\Z", name) if isinstance(name, str) else None
    if found is None:
        message = f"The server's '{shown(name)}' is no picture: look at its log."
        raise ServerError(message)
    return found.group()
