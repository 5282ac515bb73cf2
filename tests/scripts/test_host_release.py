"""Any release of ComfyUI: fetched from a server in this process, unpacked with care, set up without the gigabytes."""

from __future__ import annotations

import http.server
import io
import socket
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import host
import host_release
import private_host
import provide
import pytest

SCRIPTS = Path(host.__file__).parent


class Hub(http.server.ThreadingHTTPServer):
    """Hands out archives by the last part of their address: bytes, or a status."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.archives: dict[str, bytes | int] = {}
        self.asked: list[str] = []
        self.missing = 0
        """Bytes that are promised and not sent."""


class Handler(http.server.BaseHTTPRequestHandler):
    """One request to a `Hub`."""

    server: Hub

    def do_GET(self) -> None:
        """Answer."""
        self.server.asked.append(self.path)
        found = self.server.archives.get(self.path.rpartition("/")[2], 404)
        self.send_response(found if isinstance(found, int) else 200)
        if isinstance(found, bytes):
            self.send_header("Content-Length", str(len(found)))
        self.end_headers()
        if isinstance(found, bytes):
            self.wfile.write(found[: len(found) - self.server.missing])

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("no_proxy", "*")
    with Hub() as server:
        address = f"http://127.0.0.1:{server.server_address[1]}/tags/v{{version}}.zip"
        for module in (host_release, private_host):
            monkeypatch.setattr(module, "ADDRESS", address)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    folder = tmp_path / "room"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def archive_of(version: str, **files: str) -> bytes:
    """What the hub makes of a tag, in small."""
    content = io.BytesIO()
    texts = {
        "main.py": "", "comfyui_version.py": f'__version__ = "{version}"\n', "comfy/sd.py": "",
        "requirements.txt": "torch\ntorchsde\ntorchaudio\neinops\n",
    }  # fmt: skip
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("ComfyUI-0/", "")
        for name, text in (texts | files).items():
            file.writestr(f"ComfyUI-0/{name}", text)
    return content.getvalue()


def fetch(hub: Hub, folder: Path, archive: bytes | int) -> Path:
    hub.archives["v0.33.0.zip"] = archive
    return host_release.fetch_release("0.33.0", folder)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the set-up runs, instead of running it: the interpreter's place is filled, and nothing is installed."""
    found = []

    def run(self: private_host.Steps, command: list[str | Path], environment: object = None) -> tuple[int, list[str]]:
        words = [str(part) for part in command]
        found.append(words)
        if "venv" in words:
            python = Path(words[-1]) / Path(private_host.PYTHON).relative_to("venv")
            python.parent.mkdir(parents=True)
            python.touch()
        return 0, []

    monkeypatch.setattr(private_host.Steps, "run", run)
    monkeypatch.setattr(private_host, "NEEDED_GB", 0)
    return found


@pytest.mark.parametrize(
    ("version", "audio"), [("0.8.0", []), ("0.33.0", [host_release.AUDIO]), ("1.0.0", [host_release.AUDIO])]
)
def test_a_release_is_fetched_once_and_set_up(
    hub: Hub, commands: list[list[str]], room: Path, home: Path, version: str, audio: list[str]
) -> None:
    hub.archives[f"v{version}.zip"] = archive_of(version)
    found = host.find_host(release=f"v{version}")
    assert (found.version, found.comfyui.parent) == (version, found.python.parents[2])
    names = sorted(path.relative_to(found.comfyui).as_posix() for path in found.comfyui.rglob("*"))
    assert names == ["comfy", "comfy/sd.py", "comfyui_version.py", "custom_nodes", "main.py", "requirements.txt"]
    assert [words[-1] for words in commands if "--no-deps" in words] == audio
    required = (found.comfyui.parent / "requirements.txt").read_text().splitlines()
    assert required == ["torchsde", "einops", *private_host.TORCH]
    assert host.find_host(release=version) == found
    assert hub.asked == [f"/tags/v{version}.zip"]
    assert list(room.iterdir()) == []
    assert found.comfyui.is_relative_to(home)


def test_a_release_is_another_folder_than_the_pinned_one_and_than_another_release() -> None:
    recipes = [private_host.host_recipe(version) for version in (None, "0.8.0", "0.33.0")]
    assert len({provide.keyed_folder("host", recipe) for recipe in recipes}) == 3


def test_no_connection_is_one_sentence_and_leaves_nothing(home: Path, room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = probe.getsockname()[1]
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{closed}")
    monkeypatch.setenv("TMPDIR", str(room))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for script, *further in (("host.py",), ("test.py", "-q")):
        command = [sys.executable, str(SCRIPTS / script), "--release", "0.33.0", *further]
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert (answer.returncode, answer.stdout) == (1, "")
        address = host_release.ADDRESS.format(version="0.33.0")
        assert answer.stderr.startswith(f"{script}: ComfyUI 0.33.0 cannot be fetched from '{address}' (")
        advice = "check the connection and the proxy, then run this again, or use a ComfyUI of your own with "
        assert answer.stderr.endswith(f"): {advice}NEXTCONTROL_COMFYUI=PATH or --comfyui PATH.\n")
        assert answer.stderr.count("\n") == 1
    assert not home.exists()
    assert list(room.iterdir()) == []


def test_a_refused_archive_leaves_nothing(hub: Hub, home: Path, room: Path) -> None:
    hub.archives["v0.33.0.zip"] = archive_of("0.33.0")[:-40]
    with pytest.raises(
        provide.SetupError, match=r"^'comfyui\.zip' cannot be unpacked \(File is not a zip file\): run this again"
    ):
        private_host.private_folder("0.33.0")
    assert not home.exists()
    assert list(room.iterdir()) == []


def test_what_the_hub_answers_is_said(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(provide.SetupError, match=r"^There is no ComfyUI 0\.33\.0 at 'http.*/v0\.33\.0\.zip': give the version"):
        fetch(hub, tmp_path, 404)
    with pytest.raises(
        provide.SetupError, match=r"^ComfyUI 0\.33\.0 cannot be fetched \('http.*' answers 503\): check the conn"
    ):
        fetch(hub, tmp_path, 503)


def test_a_connection_that_ends_too_early_is_said(hub: Hub, tmp_path: Path) -> None:
    hub.missing = 30
    with pytest.raises(provide.SetupError, match=r"cannot be unpacked \(File is not a zip file\)|cannot be fetched"):
        fetch(hub, tmp_path, archive_of("0.33.0"))


def test_an_archive_of_something_else_is_refused(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(provide.SetupError, match=r"^What 'http.*' hands out is not ComfyUI 0\.33\.0: try another version"):
        fetch(hub, tmp_path, archive_of("0.8.0"))


@pytest.mark.parametrize("name", ["../out.py", "comfy/../../out.py", "/out.py", "C:/out.py", "..\\out.py"])
def test_a_path_that_leads_out_is_refused_before_anything_is_unpacked(hub: Hub, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    with pytest.raises(provide.SetupError, match=r"out\.py' leads out of the archive's folder: nothing is unpacked"):
        fetch(hub, folder, archive_of("0.33.0", **{name: "x"}))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["comfyui.zip"]


def test_an_archive_is_bounded(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = archive_of("0.33.0", weights="0" * 100_000)
    monkeypatch.setattr(host_release, "TREE_BYTES", 100_000)
    with pytest.raises(provide.SetupError, match=r"^'comfyui\.zip' has 5 files and 0 MB and is no ComfyUI, or use"):
        fetch(hub, tmp_path, large)
    monkeypatch.setattr(host_release, "ARCHIVE_BYTES", 100_000)
    with pytest.raises(provide.SetupError, match=r"^'http.*' has more than 0 MB and is no ComfyUI: check"):
        fetch(hub, tmp_path, large)
    assert not (tmp_path / "comfyui").exists()


@pytest.mark.parametrize("text", ["", "0.3", "latest", "0.3.75.1", "../1.2.3", "0.3.75/..", "1.2.3\n", "1.2.٣", "-1.2.3"])
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(
        provide.SetupError, match=r"(?s)is no version of ComfyUI: give one of three numbers, such as 0\.3\.75\.$"
    ):
        host_release.check_version(text)
    assert host_release.check_version("v0.33.0") == "0.33.0"


def test_a_release_beside_a_comfyui_of_ones_own_is_refused(comfyui: Path) -> None:
    with pytest.raises(provide.SetupError, match=r"^--release 0\.33\.0 brings a ComfyUI and a Python of its own: leave out"):
        host.find_host(comfyui, release="0.33.0")
