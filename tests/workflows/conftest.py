"""One real ComfyUI for all tests here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Last: nothing of the host may be replaced by a script of its name.
sys.path += [folder for folder in (str(ROOT / "scripts"), str(Path(__file__).parent)) if folder not in sys.path]


@pytest.fixture(scope="session")
def server():
    from host import find_host
    from host_server import Server
    from real_server import fill

    with Server(find_host(), ROOT, ["--cpu"]) as running:
        fill(running)
        yield running
