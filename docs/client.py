"""Run a workflow in API format on a ComfyUI server: set inputs, upload pictures, show the progress, fetch the results."""

from __future__ import annotations

import argparse
import json
import socket
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode, urlsplit
from urllib.request import Request, urlopen


def ask(path: str, body: Any = None, kind: str = "application/json") -> bytes:
    """GET a path of the server, or POST to it; a refusal ends the program with the server's reasons."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urlopen(Request(args.server + path, data, {"Content-Type": kind})) as answer:
            return bytes(answer.read())
    except HTTPError as error:
        text = error.read().decode()
        sys.exit(reasons(json.loads(text)) if text.startswith("{") else f"{path}: {error} {text}")


def reasons(answer: dict[str, Any]) -> str:
    """What the server has against a workflow: a line for each wrong input, or one for the whole."""
    wrong = [(key, node["class_type"], error) for key, node in answer["node_errors"].items() for error in node["errors"]]
    lines = [f"{kind} (node {key}): {error['message']}: {error['details']}" for key, kind, error in wrong]
    return "\n".join(lines) or "{message} {details}".format(**answer["error"])


def set_input(graph: dict[str, Any], place: str, text: str) -> None:
    """Set NODE.INPUT; NODE is an id, or a class or title that one or more nodes have."""
    name, _, key = place.rpartition(".")
    nodes = [n for i, n in graph.items() if name in {i, n["class_type"], n["_meta"]["title"]} and key in n["inputs"]]
    if not nodes:
        sys.exit(f"'{place}' is none of " + ", ".join(f"{n['class_type']}.{k}" for n in graph.values() for k in n["inputs"]))
    try:
        value = json.loads(text)  # A number, true or false, ...
    except ValueError:
        value = text
    for node in nodes:
        node["inputs"][key] = text if isinstance(node["inputs"][key], str) else value


def upload(path: Path) -> str:
    """Put a picture into the server's input folder; the name it has there."""
    edge = uuid.uuid4().hex
    head = f'--{edge}\r\nContent-Disposition: form-data; name="image"; filename="{path.name}"\r\n\r\n'
    body = head.encode() + path.read_bytes() + f"\r\n--{edge}--\r\n".encode()
    return str(json.loads(ask("/upload/image", body, f"multipart/form-data; boundary={edge}"))["name"])


def listen(client: str) -> Iterator[dict[str, Any]]:
    """The server's reports, {type, data}, over its websocket: one that only listens needs no package."""
    place = urlsplit(args.server)
    with socket.create_connection((place.hostname or "", place.port or 80)) as line, line.makefile("rb") as stream:
        head = f"GET /ws?clientId={client} HTTP/1.1\r\nHost: {place.netloc}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        line.sendall(f"{head}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {'A' * 22}==\r\n\r\n".encode())
        while stream.readline().strip():
            pass
        while start := stream.read(2):
            length = start[1] if start[1] < 126 else int.from_bytes(stream.read(2 if start[1] == 126 else 8), "big")
            content = stream.read(length)
            if start[0] == 0x81:  # A text; previews are binary.
                yield json.loads(content)
    sys.exit("The server has ended.")


def run(graph: dict[str, Any]) -> dict[str, Any]:
    """Queue a workflow and show its progress; what its nodes put out."""
    client = uuid.uuid4().hex
    reports = listen(client)
    next(reports)  # The first is there at once. Listening before the job begins, none is missed.
    answer = json.loads(ask("/prompt", {"prompt": graph, "client_id": client}))
    job = answer["prompt_id"]
    try:
        if answer["node_errors"]:  # An output is refused, and the others are queued all the same.
            raise KeyboardInterrupt(reasons(answer))
        for kind, data in ((report["type"], report["data"]) for report in reports):
            if kind not in {"executing", "progress"} or data.get("prompt_id") != job:
                continue
            if data["node"] is None:  # The end, in whatever way.
                break
            steps = f" {data['value']}/{data['max']}" if kind == "progress" else ""
            print(graph.get(data["node"], {}).get("class_type", data["node"]) + steps)
    except KeyboardInterrupt as reason:
        ask("/queue", {"delete": [job]})
        ask("/interrupt", {"prompt_id": job})
        sys.exit(str(reason) or "Cancelled.")
    entry = json.loads(ask(f"/history/{job}"))[job]
    for kind, data in entry["status"]["messages"]:
        if kind in {"execution_error", "execution_interrupted"}:
            sys.exit(f"{data['node_type']} (node {data['node_id']}): {data.get('exception_message', 'interrupted').strip()}")
    return dict(entry["outputs"])


def main() -> None:
    """Set the inputs, run the workflow, fetch the files that it makes."""
    workflow = json.loads(args.workflow.read_text(encoding="utf-8"))
    for option in args.set:
        set_input(workflow, *option.split("=", 1))
    for place, file in (option.split("=", 1) for option in args.image):
        set_input(workflow, place, upload(Path(file)))
    args.output.mkdir(parents=True, exist_ok=True)
    for node, output in run(workflow).items():
        for entry in (entry for entries in output.values() for entry in entries):
            if isinstance(entry, dict) and "filename" in entry:
                path = args.output / f"{node}_{entry['filename']}"
                path.write_bytes(ask(f"/view?{urlencode(entry)}"))
                print(path)
            elif isinstance(entry, str):  # A report, the name of a file that was written, ...
                print(entry)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workflow", type=Path, help="in API format")
    parser.add_argument("--set", action="append", default=[], metavar="NODE.INPUT=VALUE")
    parser.add_argument("--image", action="append", default=[], metavar="NODE.INPUT=FILE")
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder for what the workflow makes")
    parser.add_argument("--server", default="http://127.0.0.1:8188")
    args = parser.parse_args()
    try:
        main()
    except OSError as reason:  # No such file, or no such server.
        sys.exit(str(reason))
