"""A server is started in a throw-away folder, asked, and stopped; the ComfyUI here is a stand-in of a few lines."""

from __future__ import annotations

import sys
from pathlib import Path

import host
import pytest
from host_client import HttpError, NoAnswerError, ServerError
from host_server import Server

# Answers as ComfyUI does, imports the pack as far as `open` goes, and says goodbye on SIGINT.
STAND_IN = """
import http.server, json, sys
from pathlib import Path

def option(name):
    return sys.argv[sys.argv.index(name) + 1]

class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, status, body):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def do_GET(self):
        known = self.path == "/system_stats"
        self.answer(200 if known else 404, {"system": {"argv": sys.argv}} if known else {"unknown": self.path})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(200, {"type": self.headers["Content-Type"].split(";")[0], "body": body.decode("latin-1")})

pack = Path(option("--base-directory")) / "custom_nodes" / "nextcontrol"
if "broken" in (pack / "__init__.py").read_text():
    print(f"Cannot import {pack} module for custom nodes: No module named 'x'")
    print(f"0.0 seconds (IMPORT FAILED): {pack}", flush=True)
if "deadly" in (pack / "__init__.py").read_text():
    sys.exit("no such GPU")
try:
    http.server.HTTPServer((option("--listen"), int(option("--port"))), Handler).serve_forever()
except KeyboardInterrupt:
    (pack / "goodbye").touch()
"""


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    folder = tmp_path / "any name"
    folder.mkdir()
    (folder / "__init__.py").touch()
    return folder


@pytest.fixture
def server(comfyui: Path, pack: Path) -> Server:
    (comfyui / "main.py").write_text(STAND_IN)
    return Server(host.Host(Path(sys.executable), comfyui, "0"), pack, ["--cpu"])


def test_it_answers_until_the_block_ends_and_is_stopped_politely(server: Server, pack: Path) -> None:
    with server:
        argv = server.get_json("/system_stats")["system"]["argv"]
        assert server.post_json("/prompt", {"a": 1}) == {"type": "application/json", "body": '{"a": 1}'}
    assert argv[-1] == "--cpu"
    assert argv[argv.index("--whitelist-custom-nodes") + 1 :][:2] == ["nextcontrol", "--disable-auto-launch"]
    with pytest.raises(NoAnswerError, match=r"GET http://127.0.0.1:\d+/system_stats gets no answer"):
        server.get_json("/system_stats")
    assert (pack / "goodbye").exists() == (sys.platform != "win32")


def test_the_folder_goes_and_the_pack_stays(server: Server, pack: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    model.write_text("weights")
    with server:
        assert (server.base / "custom_nodes" / "nextcontrol" / "__init__.py").exists()
        assert server.add_model("controlnext", model).read_text() == "weights"
        assert (server.base / "models" / "controlnext" / "model.safetensors").exists()
    assert not server.base.exists()
    assert (pack / "__init__.py").exists()
    assert model.read_text() == "weights"


def test_an_error_answer_carries_status_and_body(server: Server) -> None:
    with server, pytest.raises(HttpError, match=r"GET /nothing answers 404: ") as caught:
        server.get_json("/nothing")
    assert caught.value.status == 404
    assert caught.value.body == {"unknown": "/nothing"}


def test_a_picture_is_sent_as_a_form(server: Server, tmp_path: Path) -> None:
    picture = tmp_path / "dot.png"
    picture.write_bytes(b"\x89PNG\r\n\x00\xff")
    with server:
        answer = server.upload_image(picture)
    assert answer["type"] == "multipart/form-data"
    assert 'name="image"; filename="dot.png"\r\nContent-Type: image/png\r\n\r\n\x89PNG\r\n\x00\xff\r\n--' in answer["body"]


def test_a_host_that_dies_shows_its_last_words(server: Server, pack: Path) -> None:
    (pack / "__init__.py").write_text("deadly")
    with pytest.raises(ServerError, match=r"ended with status 1 while starting. Its log ends:\nno such GPU$"), server:
        pytest.fail("it is up")
    assert not server.base.exists()


def test_a_pack_that_cannot_be_imported_is_an_error(server: Server, pack: Path) -> None:
    (pack / "__init__.py").write_text("broken")
    with (
        pytest.raises(ServerError, match=r"cannot import the pack '.*any name': Cannot import .*No module named 'x'\n"),
        server,
    ):
        pytest.fail("it is up")
    assert (pack / "goodbye").exists() == (sys.platform != "win32")
