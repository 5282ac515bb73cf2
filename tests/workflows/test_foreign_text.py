"""What a stranger writes into the text and list inputs of every node: the server goes on, and says one short sentence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from host_client import HttpError
from real_server import DEMOS, NAMES, SMALL, api_workflow, wait

PREFIX = "NextControl"
HOST_NODES = {
    "IMAGE": ("LoadImage", 0), "MASK": ("LoadImage", 1),
    "MODEL": (f"{PREFIX}LoadDemoModel", 0), "CLIP": (f"{PREFIX}LoadDemoModel", 1),
    "VAE": (f"{PREFIX}LoadDemoModel", 2), "CONDITIONING": ("CLIPTextEncode", 0), "LATENT": ("EmptyLatentImage", 0),
    "CLIP_VISION": ("CLIPVisionLoader", 0), "VIDEO": ("LoadVideo", 0),
}  # fmt: skip
"""Where what a socket takes comes from, beside our own nodes."""
FOREIGN = {"half a pair": "x\ud800y", "long": "line\r\n\x1b[2J\u202e\u2028../" * 5000}
LONGEST = 700


@pytest.fixture(scope="module")
def nodes(server) -> dict[str, Any]:
    return server.get_json("/object_info")


@pytest.fixture(scope="module")
def usual() -> dict[str, dict[str, Any]]:
    """What the workflows write into each class's inputs, those of the demo first."""
    found: dict[str, dict[str, Any]] = {}
    for name in [*DEMOS, *NAMES]:
        for node in api_workflow(name).values():
            values = {key: value for key, value in node["inputs"].items() if not isinstance(value, list)}
            found[node["class_type"]] = values | found.get(node["class_type"], {})
    return found


def specs_of(node: dict[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """The inputs of a class: type and options, the optional ones too."""
    listed = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
    return {name: (spec[0], spec[1] if len(spec) > 1 else {}) for name, spec in listed.items()}


def is_text(kind: Any) -> bool:
    return isinstance(kind, list) or kind in {"STRING", "COMBO"}


class Graph:
    """A node with everything that its sockets need, small."""

    def __init__(self, nodes: dict[str, Any], usual: dict[str, dict[str, Any]]) -> None:
        self.nodes, self.usual = nodes, usual
        self.graph: dict[str, dict[str, Any]] = {}

    def add(self, kind: str) -> str:
        """A node of a class; one of each."""
        if kind in self.graph:
            return kind
        values = self.graph[kind] = {"class_type": kind, "inputs": {}}
        required = self.nodes[kind]["input"].get("required", {})
        for name, (type_, options) in specs_of(self.nodes[kind]).items():
            small = SMALL | {"width": 64, "height": 64, "resolution": 64, "steps": 1, "image": "astronaut.png"}
            if name in small and (is_text(type_) or type_ in {"INT", "FLOAT"}):
                values["inputs"][name] = small[name]
            elif name in self.usual.get(kind, {}):
                values["inputs"][name] = self.usual[kind][name]
            elif is_text(type_) or type_ in {"INT", "FLOAT", "BOOLEAN"}:
                listed = (type_ if isinstance(type_, list) else options.get("options")) or [""]
                if name in required:
                    values["inputs"][name] = options.get("default", listed[0])
            elif name in required:
                values["inputs"][name] = self.link(type_)
        return kind

    def link(self, type_: str) -> list[Any]:
        """To a node that has an output of that type."""
        wanted = type_.split(",")
        for one in wanted:
            if one in HOST_NODES:
                kind, place = HOST_NODES[one]
                return [self.add(kind), place]
        for kind in sorted(self.nodes):
            if kind.startswith(PREFIX):
                for place, one in enumerate(self.nodes[kind]["output"]):
                    if one in wanted:
                        return [self.add(kind), place]
        raise LookupError(type_)


def texts_of(entry: Any) -> Iterator[str]:
    """Every text in an answer."""
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, dict | list):
        for inner in entry.values() if isinstance(entry, dict) else entry:
            yield from texts_of(inner)


def graph_for(nodes, usual, kind: str, name: str, text: str) -> dict[str, dict[str, Any]]:
    graph = Graph(nodes, usual)
    graph.add(kind)
    graph.graph[kind]["inputs"][name] = text
    if not nodes[kind]["output_node"]:
        graph.graph["end"] = {"class_type": "PreviewAny", "inputs": {"source": [kind, 0]}}
    return graph.graph


def sayings(server, graph: dict[str, dict[str, Any]]) -> list[str]:
    """What our nodes say to it; the host's own complaints are the host's."""
    try:
        answer = server.post_json("/prompt", {"prompt": graph})
    except HttpError as error:
        if error.status != 400:
            return []  # the host's own log could not take the text
        answer = error.body
    if job := answer.get("prompt_id"):
        entry = wait(server, job)
        failed = [data for kind, data in entry["status"]["messages"] if kind == "execution_error"]
        return [data["exception_message"] for data in failed] + list(texts_of(entry["outputs"]))
    errors = [error for node in answer["node_errors"].values() for error in node["errors"]]
    ours = [error for error in errors if error["type"] in {"custom_validation_failed", "exception_during_validation"}]
    return [error["details"] for error in ours]


def is_sentence(text: str) -> bool:
    return len(text) <= LONGEST and text.replace("\n", "").isprintable()


def check_alive(server, place: str, seed: int) -> None:
    """The server still runs prompts: a small one, each time another."""
    nodes = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": seed}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    job = server.post_json("/prompt", {"prompt": nodes})["prompt_id"]
    try:
        assert wait(server, job)["status"]["status_str"] == "success"
    except TimeoutError:
        pytest.fail(f"the server runs no prompts any more after {place}:\n{server.log_tail()}")


def test_foreign_text_in_any_input_of_any_node_is_one_short_sentence_and_the_server_goes_on(server, nodes, usual):
    faults: list[str] = []
    heard = tried = 0
    for kind in sorted(name for name in nodes if name.startswith(PREFIX)):
        for name in (name for name, (type_, _) in specs_of(nodes[kind]).items() if is_text(type_)):
            for what, text in FOREIGN.items():
                said = sayings(server, graph_for(nodes, usual, kind, name, text))
                faults += [
                    f"{kind}.{name} ({what}): {len(one)} characters: {one[:200]!r}" for one in said if not is_sentence(one)
                ]
                heard, tried = heard + bool(said), tried + 1
        check_alive(server, kind, tried)
    assert faults == []
    assert (tried > 100, heard > 50) == (True, True), (tried, heard)
