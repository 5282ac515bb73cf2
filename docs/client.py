"""Run a workflow in API format on a ComfyUI server: set inputs, upload pictures, show the progress, fetch the results."""

import argparse
import asyncio
import io
import json
import re
import sys
import uuid
from contextlib import suppress
from pathlib import Path, PureWindowsPath
from typing import Any

import aiohttp


def read_workflow(path: Path) -> dict[str, Any]:
    """Node id to {class_type, inputs, _meta}."""
    try:
        graph = json.loads(path.read_text(encoding="utf-8-sig"))  # With a byte order mark, as Windows writes it, or without.
    except (ValueError, RecursionError) as reason:
        sys.exit(f"{path} is no JSON ({shown(reason)}).")
    kinds = {"class_type": str, "inputs": dict, "_meta": dict}
    for node in graph.values() if isinstance(graph, dict) else [None]:
        if not isinstance(node, dict) or not all(isinstance({"_meta": {}, **node}.get(k), kinds[k]) for k in kinds):
            sys.exit(f"{path} is not in API format: File > Export (API) on ComfyUI's page writes it.")
    return graph


def shown(text: object) -> str:
    """What a server says, as one line of a terminal."""
    line = str(text).strip("\r\n").expandtabs()[:1000].replace("\n", " ")
    return "".join(sign if sign.isprintable() else "?" for sign in line)


def save(folder: Path, node: str, name: str, data: bytes) -> Path:
    """Write a result into the folder, whatever the server calls it, and never over another file.

    On Windows a name may also be a drive (C:x), a stream (a:b) or a device (CON): the node in front and the signs that are
    replaced make it a plain one.

    Returns:
        Its path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base = Path(re.sub(r"[^\w. -]", "_", PureWindowsPath(name).name).strip(". "))
    stem = f"{re.sub(r'[^0-9A-Za-z]', '_', node)[:20]}_{base.stem}".encode()[:180].decode(errors="ignore")
    number = 1
    while True:
        path = folder / f"{stem}{f' ({number})' if number > 1 else ''}{base.suffix[:10]}"
        with suppress(FileExistsError), path.open("xb") as file:
            file.write(data)
            return path
        number += 1


def set_input(graph: dict[str, Any], place: str, text: str) -> None:
    """Set NODE.INPUT; NODE is an id, or a class or title that one or more nodes have."""
    name, _, key = place.rpartition(".")
    nodes = [
        n for i, n in graph.items() if name in {i, n["class_type"], n.get("_meta", {}).get("title")} and key in n["inputs"]
    ]
    if not nodes:
        sys.exit(f"'{place}' is none of " + ", ".join(f"{i}.{k}" for i in graph for k in graph[i]["inputs"]))
    try:
        for node in nodes:
            node["inputs"][key] = text if isinstance(node["inputs"][key], str) else json.loads(text)
    except (ValueError, RecursionError):
        sys.exit(f"{place} takes a number, true or false, not '{text}'")


def refusal(answer: dict[str, Any]) -> str:
    """What the server has against a workflow: a line for each wrong input, or one for the whole; "" if nothing."""
    wrong = [(i, node["class_type"], error) for i, node in answer["node_errors"].items() for error in node["errors"]]
    lines = [shown(f"{kind} (node {i}): {error['message']}: {error['details']}") for i, kind, error in wrong]
    whole = {"message": "", "details": "", **answer.get("error", {})}
    about = whole.get("extra_info", {})  # Newer servers put the class here and its title into the message.
    where = f"{about['class_type']} (node {about['node_id']}): " if about.get("class_type") else ""
    return "\n".join(lines) or shown((where + "{message} {details}".format(**whole)).strip())


async def run(args: argparse.Namespace, http: aiohttp.ClientSession) -> None:
    """Queue the workflow with its inputs set, follow it, and fetch what it makes."""
    graph, client = read_workflow(args.workflow), uuid.uuid4().hex
    for place, file in args.image:
        with Path(file).open("rb") as picture:
            form = aiohttp.FormData({"image": picture}, quote_fields=False)
            set_input(graph, place, (await (await http.post("/upload/image", data=form)).json())["name"])
    for place, text in args.set:
        set_input(graph, place, text)
    async with http.ws_connect(f"/ws?clientId={client}", max_msg_size=1 << 28) as reports:  # Before the job: none is missed.
        body = {"prompt": graph, "client_id": client}
        answer = await (await http.post("/prompt", json=body, raise_for_status=False)).json()
        job = answer.get("prompt_id") or sys.exit(refusal(answer))
        try:
            if wrong := refusal(answer):  # Of one output; the others are queued all the same.
                sys.exit(wrong)
            async for report in reports:
                message: dict[str, Any] = json.loads(report.data) if isinstance(report.data, str) else {"type": "a preview"}
                kind, data = message["type"], message.get("data", {})
                if kind in {"executing", "progress"} and data.get("prompt_id") == job:
                    if data["node"] is None:  # The end, in whatever way.
                        break
                    steps = f" {data['value']}/{data['max']}" if kind == "progress" else ""
                    print(shown(graph.get(data["node"], {}).get("class_type", data["node"])) + shown(steps), flush=True)
            else:
                raise ConnectionError(f"{args.server} has closed the connection.")
        except BaseException:  # Ctrl-C is one.
            with suppress(aiohttp.ClientError):  # A server that is gone: what is raised says so.
                await http.post("/queue", json={"delete": [job]})
                await http.post("/interrupt", json={"prompt_id": job})
            raise
    result = (await (await http.get(f"/history/{job}")).json())[job]
    for kind, data in result["status"]["messages"]:
        if kind in {"execution_error", "execution_interrupted"}:
            reason = data.get("exception_message", "interrupted").strip()
            sys.exit(shown(f"{data['node_type']} (node {data['node_id']}): {reason}"))
    for node, made in result["outputs"].items():
        for entry in (entry for entries in made.values() for entry in entries):
            if isinstance(entry, dict) and "filename" in entry:
                file = {key: entry[key] for key in ("filename", "subfolder", "type")}
                data = await (await http.get("/view", params=file)).read()
                print(save(args.output, node, entry["filename"], data))
            elif isinstance(entry, str):  # A report, the name of a file that was written, ...
                print("\n".join(map(shown, entry.splitlines())))


def assignment(option: str) -> list[str]:
    """Split NODE.INPUT=VALUE."""
    place, text = option.split("=", 1)
    return [place, text]


async def main(args: argparse.Namespace) -> None:
    """Run in a session of its own, in which every refused request is an error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # For a terminal that lacks a letter.
    timeout = aiohttp.ClientTimeout(None)
    async with aiohttp.ClientSession(args.server, timeout=timeout, raise_for_status=True) as http:
        await run(args, http)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workflow", type=Path, help="in API format")
    parser.add_argument("--set", type=assignment, action="append", default=[], metavar="NODE.INPUT=VALUE")
    parser.add_argument("--image", type=assignment, action="append", default=[], metavar="NODE.INPUT=FILE")
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder for what the workflow makes")
    parser.add_argument("--server", default="http://127.0.0.1:8188")
    try:
        asyncio.run(main(parser.parse_args()))
    except KeyboardInterrupt:
        sys.exit("Cancelled.")
    except (OSError, aiohttp.ClientError) as reason:  # No such file, no such server, a refused request.
        sys.exit(shown(reason))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as reason:  # Something else than expected.
        sys.exit(f"The server does not answer as ComfyUI does ({type(reason).__name__}: {shown(reason)}).")
