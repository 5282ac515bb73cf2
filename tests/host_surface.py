"""What the pack uses of ComfyUI, read from its files; what a ComfyUI has of it; and the list of both in docs/CONTRIBUTING.md.

With a ComfyUI's path, `python tests/host_surface.py COMFYUI` writes what it has into `oldest_host.json`, and
`python tests/host_surface.py COMFYUI --list` writes the list into the page. It needs that ComfyUI's Python.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import itertools
import json
import re
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "tests" / "oldest_host.json"
PAGE = ROOT / "docs" / "CONTRIBUTING.md"
HEAD = "| Of ComfyUI | What the pack uses |\n| --- | --- |\n"
HOST = ("comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "server", "execution", "node_helpers")
IO = "comfy_api.latest.io"
NODE = f"{IO}.ComfyNode"
CUSTOM = f"{IO}.Custom()"
"""What `io.Custom("NAME")` returns: a socket type of our own."""
SCHEMA = f"{IO}.Schema"
OWN = {"advanced"}
"""Keywords of `nodes/sockets.py: schema()` itself."""
OBJECTS = {
    "comfy.controlnet.ControlBase": ("comfy.controlnet.ControlNet",),
    "comfy.model_base.BaseModel": (),
    "comfy.model_patcher.ModelPatcher": (),
    "comfy.sd.CLIP": (),
    "comfy.sd.VAE": (),
    "server.PromptServer": (),
}
"""Classes, and those that add to them, whose objects reach the pack through sockets. Members are matched by name: a few too
many may be listed, such as a `clone` of something else."""

Used = dict[str, set[str]]


def used() -> Used:
    """Names of the host that the pack's runtime code uses, each with the keywords that it is called with."""
    found: Used = {}
    for _, tree in trees():
        names = _names(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute | ast.Name) and (name := _dotted(node, names)):
                found.setdefault(_public(name), set())
            if isinstance(node, ast.Call) and (name := _dotted(node.func, names)) and name == _public(name):
                found.setdefault(name, set()).update(keyword.arg for keyword in node.keywords if keyword.arg)
            if isinstance(node, ast.ClassDef) and NODE in {_dotted(base, names) for base in node.bases}:
                methods = (item.name for item in node.body if isinstance(item, ast.FunctionDef))
                found |= {f"{NODE}.{name}": set() for name in methods if not name.startswith("_")}
    found[SCHEMA] -= OWN
    places = {name.rpartition(".")[0] for name in found}
    return {
        name: found[name]
        for name in sorted(found)
        if name not in places and not (has(name) and isinstance(resolve(name), ModuleType))
    }


@functools.cache
def words() -> set[str]:
    """Attributes, and keys between quotes, in the two folders that see objects of the host."""
    nodes = itertools.chain.from_iterable(ast.walk(tree) for path, tree in trees() if path.is_relative_to(ROOT / "nodes"))
    return {node.attr if isinstance(node, ast.Attribute) else str(node.value) for node in nodes if _is_word(node)}


@functools.cache
def trees() -> list[tuple[Path, ast.Module]]:
    """Every file that runs inside ComfyUI."""
    folders = [sorted((ROOT / name).rglob("*.py")) for name in ("models", "preprocessors", "training", "nodes")]
    paths = itertools.chain([ROOT / "__init__.py"], *folders)
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in paths]


def resolve(name: str) -> Any:
    """What a dotted name means in the host at hand.

    Raises:
        AttributeError: The host has no such thing.
    """
    parts = name.split(".")
    found: Any = importlib.import_module(parts[0])
    for number, part in enumerate(parts[1:], 2):
        if part == "Custom()":
            found = found.Custom("NAME")
        elif not hasattr(found, part) and isinstance(found, ModuleType):
            try:
                found = importlib.import_module(".".join(parts[:number]))
            except ModuleNotFoundError as error:
                raise AttributeError(name) from error
        else:
            found = getattr(found, part)
    return found


def has(name: str) -> bool:
    """Whether the host at hand has it."""
    try:
        resolve(name)
    except AttributeError:
        return False
    return True


def parameters(name: str) -> list[str] | None:
    """The parameters of something callable, None of anything else; "**" stands for any keyword."""
    thing = resolve(name)
    if not callable(thing):
        return None
    try:
        found = inspect.signature(thing).parameters.values()
    except ValueError:
        return None
    return ["**" if one.kind is one.VAR_KEYWORD else one.name for one in found]


def members(name: str) -> set[str]:
    """What objects of a class have: methods, and attributes that its methods set."""
    found = set()
    for kind in itertools.chain.from_iterable(resolve(one).__mro__ for one in (name, *OBJECTS[name])):
        if kind.__module__.partition(".")[0] in HOST:
            source = inspect.getsource(kind)
            found |= {*vars(kind), *re.findall(r"\bself\.(\w+)(?:: [^=\n]+)? = ", source)}
    return {one for one in found if not one.startswith("_")}


def record() -> dict[str, Any]:
    """What the host at hand has: all of `io` and `ui`, and what the pack uses of the rest."""
    from comfyui_version import __version__

    names = sorted({*used(), *whole("io"), *whole("ui")})
    known = {name: parameters(name) for name in names if has(name)}
    return {"version": __version__, "names": known, "members": {name: sorted(members(name)) for name in OBJECTS}}


def whole(module: str) -> list[str]:
    """Every public name of `io` or `ui`, with the parts of the socket types."""
    place = f"comfy_api.latest.{module}"
    thing = resolve(place)
    names = [name for name in getattr(thing, "__all__", vars(thing)) if not name.startswith("_")]
    parts = [f"{name}.{part}" for name in names for part in ("Input", "Output") if hasattr(getattr(thing, name), part)]
    return [f"{place}.{name}" for name in (*names, *parts)]


def to_lines(found: dict[str, Any]) -> str:
    """A record as JSON, one name a line."""
    parts = []
    for part in ("names", "members"):
        entries = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in found[part].items())
        parts.append(f' "{part}": {{\n' + ",\n".join(entries) + "\n }")
    return "{\n" + ",\n".join([f' "version": {json.dumps(found["version"])}', *parts]) + "\n}\n"


def table() -> str:
    """The list for the page."""
    rows: dict[str, list[str]] = {}
    for name, keywords in used().items():
        module, _, thing = name.removeprefix("comfy_api.latest.").rpartition(".")
        arguments = f"({', '.join(f'{keyword}=' for keyword in sorted(keywords))})" if keywords else ""
        rows.setdefault(f"{module or 'comfy_api.latest'}`", []).append(thing + arguments)
    seen = words()
    for name, known in json.loads(RECORD.read_text(encoding="utf-8"))["members"].items():
        rows[f"{name}` object"] = sorted(seen.intersection(known))
    lines = [f"| `{name} | {', '.join(f'`{value}`' for value in rows[name])} |\n" for name in sorted(rows)]
    return HEAD + "".join(lines)


def _public(name: str) -> str:
    """Without what is said of an object at the end: a name ends at the first thing that is neither module nor class."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        try:
            thing = resolve(".".join(parts[:end]))
        except AttributeError:
            break
        if not isinstance(thing, ModuleType | type):
            return ".".join(parts[:end])
    return name


def _names(tree: ast.Module) -> dict[str, str]:
    """What the file calls things of the host, to their dotted names."""
    own = dict.fromkeys(_own_types(), CUSTOM) | dict.fromkeys(("schema", "preview_schema"), SCHEMA)
    names = {node.name: SCHEMA for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "schema"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            aliases = [(alias.asname or alias.name.partition(".")[0], alias) for alias in node.names]
            names |= {short: alias.name if alias.asname else short for short, alias in aliases if short in HOST or alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module == "sockets":
            names |= {alias.name: own[alias.name] for alias in node.names if alias.name in own}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    names = {short: name for short, name in names.items() if name.partition(".")[0] in HOST}
    renamed = [node for node in ast.walk(tree) if isinstance(node, ast.Assign) and _dotted(node.value, names)]
    return names | {ast.unparse(target): _dotted(node.value, names) for node in renamed for target in node.targets}


def _own_types() -> list[str]:
    tree = ast.parse((ROOT / "nodes" / "sockets.py").read_text(encoding="utf-8"))
    made = [node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("io.Custom(")]
    return [ast.unparse(target) for node in made for target in node.targets]


def _dotted(node: ast.AST, names: dict[str, str]) -> str:
    """The dotted name of an expression, if it is one of the host."""
    match node:
        case ast.Name(id=short):
            return names.get(short, "")
        case ast.Attribute(value=value, attr=part):
            place = _dotted(value, names)
            return place and f"{place}.{part}"
    return ""


def _is_word(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) or (isinstance(node, ast.Constant) and str(node.value).isidentifier())


def write_list() -> None:
    """Put the table into the page, in place of the one that is there."""
    text = PAGE.read_text(encoding="utf-8")
    start = text.index(HEAD)
    end = text.index("\n\n", start) + 1
    PAGE.write_text(text[:start] + table() + text[end:], encoding="utf-8")


if __name__ == "__main__":
    sys.path.append(str(ROOT / "scripts"))
    from host_library import import_host

    with tempfile.TemporaryDirectory() as base:
        import_host(Path(sys.argv[1]).resolve(), Path(base), is_cpu=True)
        if "--list" in sys.argv:
            write_list()
        else:
            RECORD.write_text(to_lines(record()), encoding="utf-8")
