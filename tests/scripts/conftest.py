"""The scripts as modules, an empty cache for each test, and a folder that looks like a ComfyUI."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# Last: nothing of the host may be replaced by a script of its name.
sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache and none of the variables that choose a host."""
    monkeypatch.delenv("NEXTCONTROL_COMFYUI", raising=False)
    monkeypatch.delenv("NEXTCONTROL_PYTHON", raising=False)
    monkeypatch.setenv("NEXTCONTROL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def comfyui(tmp_path: Path) -> Path:
    """A folder that looks like a ComfyUI."""
    folder = tmp_path / "comfyui"
    folder.mkdir()
    (folder / "main.py").write_text("")
    (folder / "comfyui_version.py").write_text('__version__ = "9.8.7"\n')
    return folder
