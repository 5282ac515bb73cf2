"""What the pack asks of ComfyUI: listed in docs/CONTRIBUTING.md, and there from the oldest ComfyUI that it was tried on."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json

import nextcontrol
import pytest
from comfy_api.latest import io
from host_surface import OBJECTS, PAGE, RECORD, SCHEMA, has, members, parameters, resolve, table, used, whole, words
from nextcontrol.nodes import sockets
from nextcontrol.nodes.extension import NODES

OLDEST = json.loads(RECORD.read_text(encoding="utf-8"))
GUARDED = {
    f"{SCHEMA}(search_aliases=)",
    f"{SCHEMA}(has_intermediate_output=)",
    "comfy.model_management.in_training",
    "comfy.quant_ops.QuantizedTensor",
}
"""Newer, and left out where the host does not know it."""
NAMESAKES = {
    "comfy.model_patcher.ModelPatcher": {"cached_patcher_init", "get_free_memory", "is_dynamic"},
    "comfy.sd.CLIP": {"decode", "is_dynamic"},
    "comfy.sd.VAE": {"is_dynamic", "model_size", "size"},
}
"""Newer members whose names are used of other things, such as tensors or a module of the host, or only where they are there;
`cached_patcher_init` and the `size` of a VAE are only written."""
WRITE = "run `python tests/host_surface.py COMFYUI --list` with the path of a ComfyUI"


@pytest.fixture(scope="module")
def surface():
    return used()


def lacking(surface, known: dict[str, list[str] | None]) -> set[str]:
    """What is used and not in `known`: names, and keywords as NAME(KEYWORD=)."""
    missing = {name for name in surface if name not in known}
    for name in surface.keys() - missing:
        accepted = known[name]
        if accepted is not None and "**" not in accepted:
            missing |= {f"{name}({keyword}=)" for keyword in surface[name] - set(accepted)}
    return missing


@pytest.fixture
def oldest_api(monkeypatch):
    """The host's own `io`, which refuses each keyword that the oldest ComfyUI does not know."""
    for name in [SCHEMA, *(name for name in whole("io") if name.endswith((".Input", ".Output")))]:
        known = OLDEST["names"].get(name, [])
        monkeypatch.setattr(resolve(name), "__init__", refusing(resolve(name).__init__, set(known)))


def refusing(init, known: set[str]):
    """A constructor without the keywords that are not in `known`, in its signature as well."""
    kept = [one for name, one in inspect.signature(init).parameters.items() if name in {"self", *known}]

    @functools.wraps(init)
    def checked(self, *args, **keywords):
        if unknown := keywords.keys() - known:
            raise TypeError(f"unexpected keyword {sorted(unknown)}")
        init(self, *args, **keywords)

    checked.__signature__ = inspect.Signature(kept)
    return checked


def test_the_page_lists_what_the_pack_uses():
    assert table() in PAGE.read_text(encoding="utf-8"), WRITE


def test_the_oldest_host_has_each_of_them_or_it_is_guarded(surface):
    assert len(surface) > 70
    assert lacking(surface, OLDEST["names"]) == GUARDED


def test_this_host_has_each_of_them_or_it_is_guarded(surface):
    assert lacking(surface, {name: parameters(name) for name in surface if has(name)}) <= GUARDED


@pytest.mark.parametrize("name", OBJECTS)
def test_the_oldest_hosts_objects_have_what_is_used_of_them(name):
    here = members(name) & words()
    assert here
    assert here <= {*OLDEST["members"][name], *NAMESAKES.get(name, ())}


def test_every_node_loads_on_the_oldest_hosts_interface(oldest_api):
    with pytest.raises(TypeError, match="search_aliases"):
        io.Schema(node_id="X", search_aliases=["x"])
    with pytest.raises(TypeError, match="of_the_future"):
        io.Image.Input("x", of_the_future=1)
    extension = asyncio.run(nextcontrol.comfy_entrypoint())
    nodes = asyncio.run(extension.get_node_list())
    assert len(nodes) == len(NODES)
    for node in nodes:
        schema = node.define_schema()
        assert schema.node_id.startswith("NextControl")


def test_a_newer_hosts_schema_gets_what_the_oldest_does_not_know(monkeypatch):
    taken = {}

    class NewerSchema:
        def __init__(self, node_id, search_aliases=None):
            taken.update(node_id=node_id, search_aliases=search_aliases)

    monkeypatch.setattr(sockets.io, "Schema", NewerSchema)
    sockets.schema(node_id="X", search_aliases=["edge"], of_the_future=1)
    assert taken == {"node_id": "X", "search_aliases": ["edge"]}
