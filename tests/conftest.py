"""A real ComfyUI in the test process, and the pack under the fixed name `nextcontrol`."""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GOLDENS = ROOT / "tests" / "golden"


def _import_pack() -> None:
    """`import nextcontrol` finds the pack, wherever its folder lies and whatever it is called."""
    spec = importlib.util.spec_from_file_location("nextcontrol", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["nextcontrol"] = module
    spec.loader.exec_module(module)


def _host_folder() -> Path:
    """ComfyUI's folder: from the environment that scripts/test.py sets, else asked from scripts/host.py."""
    if chosen := os.environ.get("NEXTCONTROL_COMFYUI"):
        return Path(chosen)
    answer = subprocess.run([sys.executable, str(ROOT / "scripts" / "host.py")], capture_output=True, text=True, check=True)
    return Path(json.loads(answer.stdout)["comfyui"])


def _start_host() -> None:
    """Import ComfyUI as a library: CPU, a throw-away base folder, its own argument parser switched off.

    Both `nodes` and `utils` are also names of ours or of a folder inside the host, so the host's are imported first.
    """
    host = str(_host_folder())
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    sys.path.insert(0, host)
    base = tempfile.mkdtemp(prefix="nextcontrol-tests-")
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    (Path(base) / "custom_nodes").mkdir()

    from comfy.cli_args import args

    args.cpu, args.base_directory, args.database_url = True, base, "sqlite:///:memory:"
    import utils.extra_config  # noqa: F401, I001 - before `nodes`, which puts another `utils` on the path
    import nodes

    assert Path(nodes.__file__).parent == Path(host)


sys.path[:0] = [str(ROOT / "tests"), str(GOLDENS)]
_start_host()
_import_pack()


@pytest.fixture(autouse=True)
def no_gradients():
    """Nodes run in inference mode, and so do the tests."""
    import torch

    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def base_folder(pack_nodes) -> Path:
    """The host's base folder, with `models`, `input` and `output` in it, our model folders registered."""
    from comfy.cli_args import args

    return Path(args.base_directory)


@pytest.fixture(scope="session")
def pack_nodes() -> dict[str, type]:
    """Our nodes by id, registered as the host would."""
    import asyncio

    import nextcontrol

    async def collect() -> dict[str, type]:
        extension = await nextcontrol.comfy_entrypoint()
        return {node.GET_SCHEMA().node_id: node for node in await extension.get_node_list()}

    return asyncio.run(collect())
