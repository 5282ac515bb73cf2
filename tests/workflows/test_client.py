"""The client of docs/http_api.md: the page shows it as it is, and a real ComfyUI does what it asks for."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from urllib.parse import urlsplit

import pytest
from aiohttp import web
from host_server import OWN_GROUP
from PIL import Image
from real_server import ROOT, WORKFLOWS, small_graph, wait

CLIENT = ROOT / "docs" / "client.py"
PAGE = ROOT / "docs" / "http_api.md"
GALLERY = WORKFLOWS / "api" / "hints_gallery.json"
RED = (255, 0, 0)


def run_client(server, workflow: Path, *options: str | Path, address: str = "") -> subprocess.CompletedProcess[str]:
    """As a user calls it, by an interpreter that has aiohttp."""
    return subprocess.run(
        command(server, workflow, *options, address=address), capture_output=True, text=True, timeout=120, check=False
    )


def command(server, workflow: Path, *options: str | Path, address: str = "") -> list[str | Path]:
    """A call of the client."""
    return [sys.executable, "-I", CLIENT, workflow, "--server", address or server.address, *options]


@pytest.fixture(scope="module")
def canny(server, tmp_path_factory) -> Path:
    """LoadImage, one hint, SaveImage: small, and with one output only."""
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "astronaut.png"}},  # No title, as graphs written by hand.
        "2": {
            "class_type": "NextControlCanny",
            "inputs": {"image": ["1", 0], "resolution": 128, "low_threshold": 100, "high_threshold": 200},
            "_meta": {"title": "Edges"},
        },
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "x"}, "_meta": {"title": "Save"}},
    }
    path = tmp_path_factory.mktemp("client") / "canny.json"
    path.write_text(json.dumps(graph), encoding="utf-8")
    return path


def refusal(server, workflow: Path, *options: str | Path) -> str:
    """The one line that the client ends with; nothing is left in the queue."""
    result = run_client(server, workflow, *options)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    wait_for_idle(server)
    return line


def wait_for_idle(server) -> None:
    """Until the queue is empty: what is stopped ends at its next step."""
    end = time.monotonic() + 20
    while any(server.get_json("/queue").values()):
        assert time.monotonic() < end
        time.sleep(0.05)


class Cable:
    """Lies between client and server, and can be cut."""

    def __init__(self, server) -> None:
        self.server = urlsplit(server.address)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.ends = [self.listener]
        Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # Cut.
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection((self.server.hostname, self.server.port))
                self.ends += [near, far]
                for ends in ((near, far), (far, near)):
                    Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """All that goes through it, and what would."""
        for end in self.ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def test_the_page_shows_the_client_as_it_is():
    assert f"```python\n{CLIENT.read_text(encoding='utf-8')}```\n" in PAGE.read_text(encoding="utf-8")


def test_a_shared_workflow_runs_on_an_uploaded_picture_and_its_results_are_fetched(server, tmp_path):
    photo = tmp_path / "red photo.png"
    Image.new("RGB", (96, 64), RED).save(photo)
    graph = json.loads(GALLERY.read_text(encoding="utf-8"))
    sizes = [f"{node}.resolution=64" for node in graph if "resolution" in graph[node]["inputs"]]
    options = [text for size in sizes for text in ("--set", size)]
    result = run_client(server, GALLERY, *options, "--image", f"LoadImage.image={photo}", "--output", tmp_path / "results")
    assert result.returncode == 0, result.stderr
    files = [Path(line) for line in result.stdout.splitlines() if line.endswith(".png")]
    assert set(files) == set((tmp_path / "results").iterdir())
    previews = {node for node in graph if graph[node]["class_type"] == "PreviewImage"}
    assert {file.name.partition("_")[0] for file in files} >= previews
    (palette,) = (file for file in files if file.name.startswith("7_"))
    with Image.open(palette) as picture:
        assert min(picture.size) == 64
        assert picture.convert("RGB").getextrema() == tuple((value, value) for value in RED)


def test_an_input_is_set_by_class_and_title_and_progress_is_shown(server, canny, tmp_path):
    options = ["--set", "NextControlCanny.resolution=192", "--set", "Save.filename_prefix=7", "--output", tmp_path / "one"]
    result = run_client(server, canny, *options)
    assert result.returncode == 0, result.stderr
    (file,) = (tmp_path / "one").glob("3_*")  # Beside the preview of the hint node itself.
    assert file.name.startswith("3_7_")
    with Image.open(file) as picture:
        assert min(picture.size) == 192
    # The node itself, and how far it is.
    assert {"NextControlCanny", "NextControlCanny 1/1"} <= set(result.stdout.splitlines())


def test_a_wrong_input_is_named_in_one_line(server, canny):
    line = refusal(server, canny, "--set", "NextControlCanny.resolution=-8")
    assert line == "NextControlCanny (node 2): Value -8 smaller than min of 0: resolution"
    assert refusal(server, canny, "--set", "2.resolution=large") == "2.resolution takes a number, true or false, not 'large'"
    assert refusal(server, canny, "--set", "Canny.resolution=8").startswith("'Canny.resolution' is none of 1.image, ")


def test_a_wrong_input_of_one_output_among_others_stops_them_all(server):
    line = refusal(server, GALLERY, "--set", "NextControlJpeg.quality=1000")
    assert line == "NextControlJpeg (node 16): Value 1000 bigger than max of 100: quality"


def test_a_node_that_fails_says_why_in_one_line(server, tmp_path):
    graph = small_graph(control_file="controlnext-sd15/broken.safetensors")
    (server.base / "models" / "controlnext" / "controlnext-sd15" / "broken.safetensors").write_bytes(b"nothing")
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(graph), encoding="utf-8")
    line = refusal(server, path)
    assert line.startswith("NextControlLoadControlNeXt (node 3): ")
    assert "broken.safetensors" in line


def test_a_whole_that_is_no_workflow_is_refused_in_one_line(server, tmp_path):
    node = {"class_type": "NotThere", "inputs": {}, "_meta": {"title": "x"}}
    path = tmp_path / "graph.json"
    path.write_text(json.dumps({"1": node}), encoding="utf-8")
    line = refusal(server, path)
    assert "NotThere" in line
    assert line.endswith("Node ID '#1'")
    path.write_text(json.dumps({"1": {**node, "class_type": "NextControlCanny"}}), encoding="utf-8")
    assert "no outputs" in refusal(server, path)


def test_a_file_as_the_page_saves_it_and_a_wrong_option_are_said(server, canny):
    assert "is not in API format" in refusal(server, WORKFLOWS / GALLERY.name, "--set", "2.resolution=64")
    result = run_client(server, canny, "--set", "2.resolution")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].endswith("argument --set: invalid assignment value: '2.resolution'")


def test_a_result_that_is_gone_is_said_and_leaves_no_file(server, canny, tmp_path):
    options = ["--set", "Save.filename_prefix=gone", "--output", tmp_path / "lost"]
    assert run_client(server, canny, *options).returncode == 0
    (saved,) = (server.base / "output").glob("gone_*")
    saved.unlink()
    for file in (tmp_path / "lost").iterdir():
        file.unlink()
    result = run_client(server, canny, *options)  # Computes nothing, and names the old file.
    assert result.returncode == 1
    assert result.stderr.startswith("404")
    assert not list((tmp_path / "lost").glob("*gone*"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send Ctrl-C to one process")
def test_ctrl_c_stops_the_job_and_another_one_goes_on(server, tmp_path):
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(small_graph(steps=10_000)), encoding="utf-8")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # Also where the tests themselves run in the background and ignore Ctrl-C.
    with subprocess.Popen(command(server, path), **pipes, **OWN_GROUP) as client:
        while not client.stdout.readline().startswith("KSampler 1/"):
            assert client.poll() is None, client.stderr.read()
        waiting = server.post_json("/prompt", {"prompt": small_graph(seed=77)})["prompt_id"]
        client.send_signal(signal.SIGINT)
        assert client.wait(20) == 1
        assert client.stderr.read() == "Cancelled.\n"
    assert wait(server, waiting)["status"]["status_str"] == "success"
    wait_for_idle(server)


def test_a_lost_connection_is_said(server, tmp_path):
    path, cable = tmp_path / "graph.json", Cable(server)
    path.write_text(json.dumps(small_graph(steps=10_000)), encoding="utf-8")
    call = command(server, path, address=cable.address)
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as client:
        while not client.stdout.readline().startswith("KSampler 1/"):
            assert client.poll() is None, client.stderr.read()
        cable.cut()
        assert client.wait(20) == 1
        assert client.stderr.read() == f"{cable.address} has closed the connection.\n"
    server.post_json("/interrupt", {})
    wait_for_idle(server)


def test_captions_are_uploaded_beside_the_pictures(server):
    # As the page says: any file goes under the name `image`, into a folder of `input/`.
    parts = ['"image"; filename="cat.txt"\r\n\r\na cat', '"subfolder"\r\n\r\nuploads/cats']
    body = "".join(f"--edge\r\nContent-Disposition: form-data; name={part}\r\n" for part in parts) + "--edge--\r\n"
    server.fetch("/upload/image", body.encode(), "multipart/form-data; boundary=edge")
    assert (server.base / "input" / "uploads" / "cats" / "cat.txt").read_text(encoding="utf-8") == "a cat"


class Odd:
    """A server that answers as the test says, in place of a ComfyUI."""

    def __init__(self) -> None:
        self.prompt: object = {"prompt_id": "1", "node_errors": {}}
        self.reports: list[object] = [{"type": "executing", "data": {"node": None, "prompt_id": "1"}}]
        self.history: object = {}
        self.loop = asyncio.new_event_loop()
        self.address = ""
        started = Event()
        Thread(target=self._run, args=(started,), daemon=True).start()
        started.wait()

    def _run(self, started: Event) -> None:
        asyncio.set_event_loop(self.loop)
        app = web.Application()
        app.router.add_get("/ws", self.ws)
        for path in ("/prompt", "/queue", "/interrupt", "/history/1", "/view"):
            app.router.add_route("*", path, self.answer)
        runner = web.AppRunner(app)
        self.loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self.loop.run_until_complete(site.start())
        self.address = "http://{}:{}".format(*runner.addresses[0])
        started.set()
        self.loop.run_forever()

    async def answer(self, request: web.Request) -> web.Response:
        """What the test says."""
        body = {"/prompt": self.prompt, "/history/1": self.history, "/view": b"data"}.get(request.path, {})
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return web.Response(body=data, content_type="application/json")

    async def ws(self, request: web.Request) -> web.WebSocketResponse:
        """The reports, and then silence."""
        socket_ = web.WebSocketResponse()
        await socket_.prepare(request)
        for report in self.reports:
            await socket_.send_str(report if isinstance(report, str) else json.dumps(report))
        await socket_.receive()
        return socket_


@pytest.fixture
def odd():
    server = Odd()
    yield server
    server.loop.call_soon_threadsafe(server.loop.stop)


NAMES = [
    "../../evil", "/etc/evil", "..\\..\\evil", "C:\\evil", "C:evil", "a:b", "CON", "nul.png", "", ".", "..",
    "a\nb", "a\x00b", "\ud800",
    "\u202egnp.x", "x" * 5000, "é" * 300 + ".png", ".bashrc", "x. ", "3/../../evil",
]  # fmt: skip


def test_whatever_a_server_calls_its_results_they_are_new_files_of_the_folder(odd, canny, tmp_path):
    nodes = ["3", "../../evil", "C:", "CON"]
    entries = [{"filename": name, "subfolder": "", "type": "output"} for name in [*NAMES, "a.png", "a.png"]]
    odd.history = {"1": {"status": {"messages": []}, "outputs": {node: {"images": entries} for node in nodes}}}
    folder = tmp_path / "below" / "results"
    folder.mkdir(parents=True)
    (folder / "3_a.png").write_text("mine", encoding="utf-8")
    (folder / "3_a (2).png").symlink_to(tmp_path / "planted")
    result = run_client(odd, canny, "--output", folder)
    assert result.returncode == 0, result.stderr
    made = list(folder.iterdir())
    assert len(made) == 2 + len(nodes) * len(entries)
    assert len(result.stdout.splitlines()) == len(nodes) * len(entries)
    assert {path for path in tmp_path.rglob("*") if path.parent != folder} == {folder.parent, folder}
    assert (folder / "3_a.png").read_text(encoding="utf-8") == "mine"
    assert (folder / "3_a (4).png").is_file()
    assert (folder / "3_evil").is_file()
    assert all(re.fullmatch(r"[\w. ()-]*_[\w. ()-]*", path.name) and not path.name.endswith((".", " ")) for path in made)


ODD = {
    "a prompt of another kind": {"prompt": 7}, "no prompt": {"prompt": {}}, "no JSON": {"prompt": b"<html>"},
    "deep": {"prompt": b"[" * 200_000}, "errors that are none": {"prompt": {"node_errors": {"1": 7}}},
    "an error of escapes": {"prompt": {"node_errors": {}, "error": {"message": "\x1b[2J\n" * 9000, "details": ""}}},
    "a report of another kind": {"reports": [7]}, "a report without data": {"reports": [{"type": "progress", "data": 7}]},
    "a deep report": {"reports": ["[" * 200_000]}, "no history": {}, "a history that is none": {"history": {"1": 7}},
    "results that are none": {"history": {"1": {"status": {"messages": []}, "outputs": {"3": {"images": 7}}}}},
    "a result without a place": {"history": {"1": {"status": {"messages": []}, "outputs": {"3": {"images": [{"filename": 7}]}}}}
    },
    "a failure of escapes": {"history": {"1": {"status": {"messages": [
        ["execution_error", {"node_type": "\x1b", "node_id": 7, "exception_message": "\x1b[2J\ud800\n" * 9000}]
    ]}, "outputs": {}}}},
}  # fmt: skip


def test_an_odd_answer_is_one_line(odd, canny, tmp_path):
    for kind, answers in ODD.items():
        vars(odd).update({"prompt": {"prompt_id": "1", "node_errors": {}}, "history": {}} | answers)
        odd.reports = answers.get("reports", [{"type": "executing", "data": {"node": None, "prompt_id": "1"}}])
        result = run_client(odd, canny, "--output", tmp_path / "results")
        assert result.returncode == 1, kind
        (line,) = result.stderr.splitlines()
        assert line.isprintable(), kind
        assert len(line) < 1100, kind
    assert not (tmp_path / "results").exists()


def test_a_workflow_as_windows_writes_it_is_read_and_an_odd_one_is_one_line(server, canny, tmp_path):
    path = tmp_path / "graph.json"
    path.write_text(canny.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert run_client(server, path, "--output", tmp_path / "results").returncode == 0
    path.write_text("[" * 200_000, encoding="utf-8")
    assert "is no JSON" in refusal(server, path)
    for text in ("7", '{"1": 7}', '{"1": {"class_type": "x"}}', '{"1": {"class_type": "x", "inputs": {}, "_meta": 7}}'):
        path.write_text(text, encoding="utf-8")
        assert "is not in API format" in refusal(server, path)


def test_no_server_and_no_file_are_one_line(server, canny, tmp_path):
    result = run_client(server, canny, address="http://127.0.0.1:9")
    assert result.returncode == 1
    assert "Cannot connect to host 127.0.0.1:9" in result.stderr
    assert "nowhere.json" in refusal(server, tmp_path / "nowhere.json")
