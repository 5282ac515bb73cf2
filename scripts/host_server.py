"""A ComfyUI server with only this pack in it, in a throw-away folder.

Not called `server`: that name belongs to a module of ComfyUI.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from host_client import Client, NoAnswerError, ServerError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from host import Host

PACK_NAME = "nextcontrol"
# A process group of its own: Ctrl-C reaches the script, and the script stops the server.
OWN_GROUP: dict[str, Any]
if sys.platform == "win32":
    STOP = signal.CTRL_BREAK_EVENT
    OWN_GROUP = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
else:
    STOP = signal.SIGINT

    def _hear_interrupts() -> None:
        """In the server's process, before it runs: what a shell's background job ignores, its children ignore too."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    OWN_GROUP = {"start_new_session": True, "preexec_fn": _hear_interrupts}
START_SECONDS = 180.0
# Without these the page opens with the template dialog and asks to update.
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.InstalledVersion": "1.32.9",
    "Comfy.Locale": "en",
    "Comfy.Notification.ShowVersionUpdates": False,
    "Comfy.UseNewMenu": "Top",
    "Comfy.Minimap.Visible": False,
}


class Server(Client):
    """A running ComfyUI, between `with Server(host, pack_root) as server:` and the end of the block.

    Attributes:
        base: ComfyUI's base directory: models, input, output, user and custom_nodes; removed at the end.
        log: What the server prints.
    """

    base: Path
    log: Path

    def __init__(self, host: Host, pack_root: Path, extra_args: Sequence[str] = ()) -> None:
        super().__init__("")
        self.host = host
        self.pack_root = pack_root.resolve()
        self.extra_args = list(extra_args)
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Server:
        with contextlib.ExitStack() as stack:
            # realpath: on macOS the temporary folder is itself behind a link, and the host reports resolved paths.
            self.base = Path(tempfile.mkdtemp(prefix="nextcontrol-")).resolve()
            # Removes links and junctions, never what they point at.
            stack.callback(shutil.rmtree, self.base, ignore_errors=True)
            self._prepare()
            port = _free_port()
            self.address = f"http://127.0.0.1:{port}"
            process = self._start(port)
            stack.callback(_stop, process)
            self._wait_until_ready(process)
            self._cleanup = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._cleanup.close()

    def add_model(self, kind: str, path: Path) -> Path:
        """Put a file into models/`kind`, as a link where links are allowed; a running server sees it at once."""
        target = self.base / "models" / kind / path.name
        link_file(path, target)
        return target

    def log_tail(self, lines: int = 30) -> str:
        """The end of the log."""
        return "\n".join(self._log_text().splitlines()[-lines:])

    def _log_text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def fetch(self, path: str, body: bytes | None = None, content_type: str = "application/json") -> bytes:
        """As `Client.fetch`; where there is no answer, the error shows what the server printed last."""
        try:
            return super().fetch(path, body, content_type)
        except NoAnswerError as error:
            message = f"{error} The server's log ends:\n{self.log_tail()}"
            raise NoAnswerError(message) from error

    def _prepare(self) -> None:
        self.log = self.base / "server.log"
        settings = self.base / "user" / "default" / "comfy.settings.json"
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps(SETTINGS), encoding="utf-8")
        packs = self.base / "custom_nodes"
        packs.mkdir()
        # The published name: the checkout may be called anything, and ComfyUI names the pack after its folder.
        link_folder(packs / PACK_NAME, self.pack_root)

    def _start(self, port: int) -> subprocess.Popen[bytes]:
        command = [str(self.host.python), "main.py", "--listen", "127.0.0.1", "--port", str(port)]
        command += ["--base-directory", str(self.base), "--database-url", "sqlite:///:memory:"]
        command += ["--disable-all-custom-nodes", "--whitelist-custom-nodes", PACK_NAME]
        command += ["--disable-auto-launch", "--disable-api-nodes", "--log-stdout"]
        if "--cpu" not in self.extra_args and not has_accelerator(self.host.python):
            command.append("--cpu")
        # No byte code: the pack is a link to somebody's checkout.
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONIOENCODING": "utf-8"}
        with self.log.open("wb") as log:
            return subprocess.Popen(
                command + self.extra_args,
                cwd=self.host.comfyui,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                **OWN_GROUP,
            )

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        end = time.monotonic() + START_SECONDS
        while not self._is_up():
            if process.poll() is not None:
                message = f"ComfyUI ended with status {process.returncode} while starting. Its log ends:\n{self.log_tail()}"
                raise ServerError(message)
            if time.monotonic() > end:
                message = f"ComfyUI is not ready after {START_SECONDS:.0f} s. Its log ends:\n{self.log_tail()}"
                raise ServerError(message)
            time.sleep(0.1)
        # ComfyUI starts all the same when a pack cannot be imported, and only the log says so.
        about_pack = [line for line in self._log_text().splitlines() if PACK_NAME in line]
        if any("IMPORT FAILED" in line for line in about_pack):
            reasons = "\n".join(line for line in about_pack if "annot import" in line)
            message = f"ComfyUI cannot import the pack '{self.pack_root}': {reasons}\nIts log ends:\n{self.log_tail(60)}"
            raise ServerError(message)

    def _is_up(self) -> bool:
        try:
            stats = self.get_json("/system_stats")
        except ServerError:
            return False
        # Whoever answers must be the server started here, not another one that took the port.
        return str(self.base) in stats["system"]["argv"]


@functools.cache
def has_accelerator(python: Path) -> bool:
    """Whether the torch of an interpreter sees a GPU or the like; without one ComfyUI starts only with --cpu.

    Returns:
        What torch says; asking takes seconds, once per process. It is not kept longer: the same cache may be used with
        a GPU today and without one tomorrow.

    Raises:
        ServerError: The interpreter cannot import torch.
    """
    answer = subprocess.run(
        [python, "-c", "import torch; print(torch.accelerator.is_available())"],
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode:
        message = f"'{python}' cannot import torch:\n{answer.stderr[-2000:]}"
        raise ServerError(message)
    return answer.stdout.strip() == "True"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def link_file(path: Path, target: Path) -> None:
    """Make `target` the same file as `path`, by a link where links are allowed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.symlink_to(path.resolve())
    except OSError:
        shutil.copyfile(path, target)


def link_folder(link: Path, folder: Path) -> None:
    """Make `link` another name of `folder`."""
    try:
        link.symlink_to(folder, target_is_directory=True)
    except OSError:
        if sys.platform != "win32":
            raise
        # Windows refuses symbolic links to ordinary users; junctions it allows.
        subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(folder)], check=True, capture_output=True)


def _stop(process: subprocess.Popen[bytes]) -> None:
    # Asked politely ComfyUI cleans up within 2 s.
    process.send_signal(STOP)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
