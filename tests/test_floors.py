"""Imports go down only: every file of the pack is read with `ast` and held to the floors of docs/CONTRIBUTING.md."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]

FLOORS = {"models": 0, "preprocessors": 0, "training": 1, "nodes/host": 2, "nodes": 3, "scripts": 4}
TOP = 4
STDLIB = frozenset(sys.stdlib_module_names)
# The host's modules; `comfy_api` is the part of it that nodes are written against.
HOST = frozenset({
    "comfy", "comfy_api", "comfy_config", "comfy_execution", "comfy_extras", "execution", "folder_paths", "nodes", "server",
})  # fmt: skip
MODELS = STDLIB | {"torch", "safetensors", "einops", "numpy"}
LIGHT = STDLIB | {"torch", "numpy"}
# A table of contents, and socket types: what nodes may share.
SHARED = "nodes/sockets.py"
CONTENTS = "nodes/extension.py"


class Import(NamedTuple):
    """One import statement's target."""

    line: int
    name: str
    """Dotted, absolute; or a path inside the pack, such as "models/detect"."""
    is_own: bool
    """Relative, that is of the pack itself."""
    is_top: bool
    """Runs when the file is imported."""


def floor_of(path: str) -> int:
    """The floor of a file or folder of the pack, from its path."""
    parts = PurePosixPath(path).parts
    return next((FLOORS[folder] for folder in ("/".join(parts[:2]), *parts[:1]) if folder in FLOORS), TOP)


def imports_of(path: str, tree: ast.Module) -> Iterator[Import]:
    """Every import of a file, those inside functions and `TYPE_CHECKING` blocks too."""
    later = {id(inner) for node in ast.walk(tree) if is_later(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name, False, id(node) not in later)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield Import(node.lineno, node.module or "", False, id(node) not in later)
        elif isinstance(node, ast.ImportFrom):
            folder = PurePosixPath(path).parts[: -node.level]
            base = [*folder, *(node.module or "").split(".")] if node.module else list(folder)
            # `from . import x` names a module, `from .x import y` a member.
            targets = [base] if node.module else [[*base, alias.name] for alias in node.names]
            for target in targets:
                yield Import(node.lineno, "/".join(target), True, id(node) not in later)


def is_later(node: ast.AST) -> bool:
    """Whether what is inside does not run at import."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return True
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def faults_of(path: str, source: str, siblings: frozenset[str] = frozenset()) -> list[str]:
    """Everything in a file that the layout forbids.

    Args:
        path: Inside the pack, with forward slashes.
        source: The file's text.
        siblings: Names of the modules in scripts/, which import each other absolutely.
    """
    tree = ast.parse(source, path)
    faults = [(found.line, fault) for found in imports_of(path, tree) for fault in import_faults(path, found, siblings)]
    return [f"{path}:{line}: {fault}" for line, fault in [*faults, *other_faults(path, tree)]]


def import_faults(path: str, found: Import, siblings: frozenset[str]) -> Iterator[str]:
    """What is wrong with one import."""
    floor, folder, top = floor_of(path), PurePosixPath(path).parts[0], found.name.split(".")[0]
    if found.is_own:
        yield from own_import_faults(path, floor, found.name)
        return
    if folder == "scripts":
        if found.is_top and top not in STDLIB | siblings:
            yield f"imports {top} at the top: scripts start with the standard library alone"
        return
    # The host's `nodes` has the name of a folder of ours: inside nodes/host it can only be the host's.
    if top in {"nextcontrol", "models", "preprocessors", "training"} or (top == "nodes" and floor != FLOORS["nodes/host"]):
        yield f"imports {found.name} absolutely: inside the pack imports are relative"
    elif top in HOST and not may_import_host(path, floor, top):
        yield f"imports {top}: only nodes/host sees the host"
    elif folder == "models" and top not in MODELS:
        yield f"imports {top}: models need torch, safetensors, einops and numpy only"
    elif folder == "preprocessors" and found.is_top and top not in LIGHT:
        yield f"imports {top} at the top: heavy imports belong into the function"
    elif path == "__init__.py":
        yield f"imports {found.name}: importing the pack does no work"


def own_import_faults(path: str, floor: int, target: str) -> Iterator[str]:
    """What is wrong with an import of another file of the pack."""
    if path == "__init__.py" and target != CONTENTS.removesuffix(".py"):
        yield f"imports {target}: the entry point knows {CONTENTS} only"
    if floor_of(target) > floor:
        yield f"imports {target}, which is a higher floor"
    is_node = floor == FLOORS["nodes"] and path != CONTENTS
    if is_node and floor_of(target) == FLOORS["nodes"] and f"{target}.py" != SHARED:
        yield f"imports {target}: nodes do not import each other"
    if path.startswith("models/") and target.startswith("preprocessors"):
        yield f"imports {target}: networks know nothing of pictures"


def may_import_host(path: str, floor: int, module: str) -> bool:
    """Whether a file may see a module of ComfyUI."""
    return floor == FLOORS["nodes/host"] or (floor == FLOORS["nodes"] and module == "comfy_api")


def other_faults(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Calls and handlers that the style forbids."""
    is_script = path.startswith("scripts/")
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield node.lineno, "catches everything: name the exception"
        if not isinstance(node, ast.Call) or is_script:
            continue
        if isinstance(node.func, ast.Name) and node.func.id == "print":
            yield node.lineno, "prints: use the logger 'nextcontrol'"
        if ast.unparse(node.func) in {"logging.basicConfig", "basicConfig"}:
            yield node.lineno, "configures logging for the whole host"


def pack_files() -> list[str]:
    folders = ("models", "preprocessors", "training", "nodes", "scripts")
    files = [ROOT / "__init__.py", *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    return sorted(path.relative_to(ROOT).as_posix() for path in files)


SCRIPTS = frozenset(path.stem for path in (ROOT / "scripts").glob("*.py"))


@pytest.mark.parametrize("path", pack_files())
def test_the_file_keeps_to_its_floor(path):
    assert faults_of(path, (ROOT / path).read_text(encoding="utf-8"), SCRIPTS) == []


def test_every_floor_has_files():
    assert {floor_of(path) for path in pack_files()} >= {0, 2, 3, 4}
    assert "models/detect.py" in pack_files()


def test_no_python_file_lies_outside_the_floors():
    known = {"__init__.py", "models", "preprocessors", "training", "nodes", "scripts", "tests", "docs"}
    found = {path.relative_to(ROOT).parts[0] for path in (*ROOT.glob("*.py"), *ROOT.glob("*/*.py"))}
    assert {name for name in found if not name.startswith(".")} <= known


@pytest.mark.parametrize(
    ("path", "floor"),
    [
        ("models/detect.py", 0),
        ("preprocessors/canny.py", 0),
        ("training/loop.py", 1),
        ("nodes/host/attach.py", 2),
        ("nodes/host/deeper/file.py", 2),
        ("nodes/host/__init__.py", 2),
        ("nodes/apply.py", 3),
        ("nodes/__init__.py", 3),
        ("scripts/demo.py", 4),
        ("__init__.py", 4),
    ],
)
def test_the_floor_follows_from_the_path(path, floor):
    assert floor_of(path) == floor


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("__init__.py", "async def comfy_entrypoint():\n    from .nodes.extension import NextControlExtension"),
        ("models/detect.py", "import re\nimport torch\nfrom einops import rearrange\nfrom .state_dict import unwrap"),
        ("preprocessors/canny.py", "import numpy as np\ndef canny():\n    import cv2"),
        ("preprocessors/canny.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from PIL import Image"),
        ("training/loop.py", "import torch\nfrom ..models.ctrlora import CtrLoRA\nfrom . import config"),
        ("nodes/host/folders.py", "import folder_paths\nimport nodes\nfrom ...models.detect import x\nfrom .files import y"),
        ("nodes/apply.py", "from comfy_api.latest import io\nfrom .host.attach import a\nfrom .sockets import schema"),
        ("nodes/apply.py", "from . import sockets\nfrom ..models import injection"),
        ("nodes/extension.py", "from .apply import ApplyControlNeXt\nfrom . import hints"),
        ("scripts/demo.py", "import json\nfrom host import find_host\ndef draw():\n    import torch\nprint('done')"),
        ("models/detect.py", "try:\n    pass\nexcept ValueError:\n    pass"),
    ],
)
def test_what_the_layout_allows_passes(path, source):
    assert faults_of(path, source, frozenset({"host"})) == []


@pytest.mark.parametrize(
    ("path", "source", "fault"),
    [
        ("models/detect.py", "from ..training import loop", "higher floor"),
        ("models/detect.py", "def f():\n    from ..nodes.host.files import read_file", "higher floor"),
        ("models/detect.py", "from .. import nodes", "higher floor"),
        ("training/loop.py", "from ..nodes.host.backbone import wrap", "higher floor"),
        ("nodes/host/attach.py", "from ..apply import ApplyControlNeXt", "higher floor"),
        ("nodes/host/attach.py", "from .. import sockets", "higher floor"),
        ("nodes/apply.py", "from ..scripts import host", "higher floor"),
        ("models/detect.py", "import comfy.ops", "only nodes/host"),
        ("models/detect.py", "from comfy_api.latest import io", "only nodes/host"),
        ("preprocessors/pose.py", "def f():\n    import folder_paths", "only nodes/host"),
        ("training/loop.py", "def f():\n    import comfy.model_management", "only nodes/host"),
        ("nodes/apply.py", "import comfy.samplers", "only nodes/host"),
        ("nodes/apply.py", "from server import PromptServer", "only nodes/host"),
        ("nodes/apply.py", "import execution", "only nodes/host"),
        ("nodes/apply.py", "from nodes import MAX_RESOLUTION", "absolutely"),
        ("nodes/apply.py", "from nextcontrol.models import detect", "absolutely"),
        ("nodes/host/attach.py", "from models.detect import describe", "absolutely"),
        ("training/loop.py", "import preprocessors.canny", "absolutely"),
        ("nodes/apply.py", "from .loaders import LoadControlNeXt", "each other"),
        ("nodes/apply.py", "from . import hints", "each other"),
        ("nodes/apply.py", "from .extension import NODES", "each other"),
        ("models/detect.py", "import scipy", "torch, safetensors, einops and numpy only"),
        ("models/detect.py", "def f():\n    import cv2", "torch, safetensors, einops and numpy only"),
        ("models/detect.py", "from ..preprocessors.canny import canny", "nothing of pictures"),
        ("preprocessors/canny.py", "import cv2", "belong into the function"),
        ("preprocessors/canny.py", "from PIL import Image", "belong into the function"),
        ("preprocessors/canny.py", "try:\n    import timm\nexcept ImportError:\n    pass", "belong into the function"),
        ("preprocessors/canny.py", "class Canny:\n    import transformers", "belong into the function"),
        ("preprocessors/canny.py", "if True:\n    from scipy import ndimage", "belong into the function"),
        ("scripts/demo.py", "import torch", "standard library"),
        ("scripts/demo.py", "from playwright.sync_api import Page", "standard library"),
        ("__init__.py", "import torch", "does no work"),
        ("__init__.py", "from .nodes.apply import ApplyControlNeXt", "entry point"),
        ("models/detect.py", "print('x')", "prints"),
        ("nodes/apply.py", "import logging\nlogging.basicConfig(level=10)", "configures logging"),
        ("nodes/apply.py", "from logging import basicConfig\nbasicConfig()", "configures logging"),
        ("scripts/demo.py", "try:\n    pass\nexcept:\n    pass", "catches everything"),
        ("models/detect.py", "try:\n    pass\nexcept:\n    raise", "catches everything"),
    ],
)
def test_what_the_layout_forbids_is_found(path, source, fault):
    faults = faults_of(path, source, frozenset({"host"}))
    assert len(faults) == 1, faults
    assert fault in faults[0]
    assert faults[0].startswith(f"{path}:")
