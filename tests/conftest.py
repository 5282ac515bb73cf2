"""A real ComfyUI in the test process, and the pack under the fixed name `nextcontrol`."""

from __future__ import annotations

import atexit
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


def _host_folder() -> Path:
    """ComfyUI's folder: from the environment that scripts/test.py sets, else asked from scripts/host.py."""
    if chosen := os.environ.get("NEXTCONTROL_COMFYUI"):
        return Path(chosen)
    answer = subprocess.run([sys.executable, str(ROOT / "scripts" / "host.py")], capture_output=True, text=True, check=True)
    return Path(json.loads(answer.stdout)["comfyui"])


# The pack's own folder is not on the path: its `nodes` would hide ComfyUI's.
sys.path[:0] = [str(ROOT / "tests"), str(GOLDENS)]
sys.path.append(str(ROOT / "scripts"))

from host_library import import_host, import_pack  # noqa: E402

_base = Path(tempfile.mkdtemp(prefix="nextcontrol-tests-"))
atexit.register(shutil.rmtree, _base, ignore_errors=True)
import_host(_host_folder(), _base, is_cpu=True)
import_pack()


IS_DYNAMIC = os.environ.get("NEXTCONTROL_DYNAMIC_VRAM") == "1"
# It compares with and without.
collect_ignore = ["nodes/test_dynamic_vram.py"] if IS_DYNAMIC else []


@pytest.fixture(scope="session", autouse=True)
def dynamic_vram_of_the_run():
    """NEXTCONTROL_DYNAMIC_VRAM=1 runs all other tests under dynamic VRAM; see dynamic_vram.py."""
    if not IS_DYNAMIC:
        yield
        return
    from dynamic_vram import dynamic_vram

    with dynamic_vram():
        yield


@pytest.fixture(autouse=True)
def no_gradients():
    """Nodes run in inference mode, and so do the tests."""
    import torch

    with torch.inference_mode():
        yield


@pytest.fixture
def gradients(no_gradients):
    """For tests that train."""
    import torch

    with torch.inference_mode(mode=False), torch.enable_grad():
        yield


@pytest.fixture(scope="module")
def one_thread():
    """Networks and pictures this small only wait for each other's threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def cancel_at(monkeypatch):
    """Presses cancel as the host's server does, once a bar of `total` stands at `value`; lists what that bar was told.

    Nothing hangs on the bar's hook: newer hosts call it at most ten times a second.
    """
    import comfy.model_management
    import comfy.utils

    update = comfy.utils.ProgressBar.update_absolute

    def press(value: int, total: int) -> list[int]:
        told: list[int] = []

        def tell(bar, done, *more, **named):
            update(bar, done, *more, **named)
            if bar.total == total:
                is_due = max(told, default=-1) < value <= done
                told.append(done)
                if is_due:
                    comfy.model_management.interrupt_current_processing()

        monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", tell)
        return told

    yield press
    comfy.model_management.interrupt_current_processing(False)


@pytest.fixture(scope="session")
def base_folder(pack_nodes) -> Path:
    """The host's base folder, with `models`, `input` and `output` in it, our model folders registered."""
    return _base


@pytest.fixture(scope="session")
def pack_nodes() -> dict[str, type]:
    """Our nodes by id, registered as the host would."""
    import asyncio

    import nextcontrol

    async def collect() -> dict[str, type]:
        extension = await nextcontrol.comfy_entrypoint()
        return {node.GET_SCHEMA().node_id: node for node in await extension.get_node_list()}

    return asyncio.run(collect())
