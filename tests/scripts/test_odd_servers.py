"""Servers that say anything: the token stays at home, names stay below the folder, every odd answer is one sentence."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import threading
import time
from collections.abc import Iterator

import demo_job
import demo_socket
import downloads
import host_release
import hub
import pytest
from host_client import Client, ServerError
from provide import SetupError

TREE = "/api/models/owner/name/tree/main"
FILE = {"type": "file", "path": "config.json", "size": 2}


class OddHub(http.server.ThreadingHTTPServer):
    """Answers each path with a status, headers and a body, or does what a function does."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: dict = {}
        self.asked: list[tuple[str, str]] = []
        self.address = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    """One request to an `OddHub`."""

    server: OddHub

    def do_GET(self) -> None:
        """Answer."""
        self.server.asked.append((self.path, self.headers.get("Authorization", "")))
        reply = self.server.replies.get(self.path) or self.server.replies.get(self.path.partition("?")[0]) or (404, {}, b"")
        self.close_connection = True
        with contextlib.suppress(OSError):
            if callable(reply):
                reply(self)
                return
            status, headers, body = reply
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextlib.contextmanager
def running() -> Iterator[OddHub]:
    with OddHub() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def odd(monkeypatch):
    with running() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setattr(hub, "PAUSE_SECONDS", 0.0)
        yield server


def page(entries: object, **headers: str) -> tuple:
    return 200, headers, json.dumps(entries).encode()


def sentence(action) -> str:
    """The one line of the error that the user reads."""
    with pytest.raises((SetupError, ServerError)) as caught:
        action()
    text = str(caught.value)
    assert len(text) < 600
    assert text.isprintable()
    assert "secret" not in text
    return text


ENTRIES = {
    "no object": "x", "null": None, "a list": [], "no type": {"path": "config.json", "size": 2},
    "no path": {"type": "file", "size": 2},
    "no size": {"type": "file", "path": "config.json"}, "a path of numbers": {**FILE, "path": 7},
    "a size of letters": {**FILE, "size": "2"}, "a negative size": {**FILE, "size": -1}, "no number": {**FILE, "size": True},
    "a size with parts": {**FILE, "size": 2.5}, "a size past all disks": {**FILE, "size": 10**40},
    "not a number": {**FILE, "size": float("nan")}, "lfs of another kind": {**FILE, "lfs": [1]},
    "a hash of another kind": {**FILE, "lfs": {"oid": 7}}, "a hash that is none": {**FILE, "lfs": {"oid": "\x1b[2J" * 9000}},
    "a long one": {"type": 7, "x": "\x1b\n" * 100_000},
}  # fmt: skip


@pytest.mark.parametrize("kind", ENTRIES)
def test_an_entry_that_describes_no_file_is_one_sentence(odd, kind):
    odd.replies[TREE] = page([FILE, ENTRIES[kind]])
    assert "does not answer as the hub does" in sentence(lambda: hub.list_folder("owner/name"))
    assert len(odd.asked) == 1


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b'"x"', b"7", b"null", b"<html>", b"[" * 200_000, b"[" + b"9" * 5000 + b"]", b"\xff\xfe\x00\xd8", b"[1",
     b"[" + b" " * (9 << 20)],
    ids=["empty", "object", "string", "number", "null", "html", "deep", "digits", "no text", "cut", "long"],
)  # fmt: skip
def test_a_page_that_is_no_list_is_one_sentence(odd, body):
    odd.replies[TREE] = 200, {}, body
    assert "does not answer as the hub does" in sentence(lambda: hub.list_folder("owner/name"))
    assert len(odd.asked) == 1


def test_a_list_without_end_is_one_sentence(odd, monkeypatch):
    for name, most, size in (("PAGES", 5, 1), ("ENTRIES", 30, 10)):
        odd.asked.clear()
        monkeypatch.setattr(hub, name, most)
        odd.replies[TREE] = page([FILE] * size, Link=f'<{odd.address}{TREE}?again>; rel="next"')
        assert "does not end" in sentence(lambda: hub.list_folder("owner/name"))
        assert len(odd.asked) <= 5
    monkeypatch.setattr(hub, "LIST_SECONDS", 0.0)
    assert "does not end" in sentence(lambda: hub.list_folder("owner/name"))


def drip(handler: Handler) -> None:
    """A byte now and then, always in time for the next."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for _ in range(200):
        handler.wfile.write(b"X")
        time.sleep(0.02)


def test_an_answer_that_drips_is_given_up(odd, monkeypatch, tmp_path):
    monkeypatch.setattr(downloads, "ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(hub, "ATTEMPTS", 1)
    odd.replies[TREE] = drip
    assert "no whole answer after 0 s" in sentence(lambda: hub.list_folder("owner/name"))
    monkeypatch.setattr(downloads, "ANSWER_SECONDS", 60.0)
    monkeypatch.setattr(downloads, "PIECE_SECONDS", 0.05)

    def body(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        drip(handler)

    odd.replies["/owner/name/resolve/main/x"] = body
    get = lambda: hub.fetch(hub.RemoteFile("owner/name", "x"), tmp_path / "x", lambda *_: None)  # noqa: E731
    come = re.search(r"\((\d+) bytes in 0 s\)", sentence(get))
    assert int(come[1]) < 150, "it is not waited for all that drips"


NAMES = [
    "C:x.json", "c:/x.json", "a:b.json", "CON", "nul.json", "COM1.json", "LPT¹.json", "AUX .json", "sub/NUL.json", "x.json.",
    "x.json ",
    "sub./x.json", "sub /x.json", "a\nb.json", "a\x00.json", "a\u202ebidi.json", "\ud800.json", "//server/x.json", "/x.json",
    "../x.json",
    "a/../../x.json", "a//x.json", "a\\x.json", "", ".", "..", "a?.json", "a*.json", "x" * 230 + ".json", "a/" * 300 + "x.json",
    "other/x.json",
]  # fmt: skip


def test_a_name_that_leads_elsewhere_on_any_system_is_passed_over(odd, capsys):
    paths = [*(name if name.startswith(("/", "..", "other", "C:", "c:")) else f"sub/{name}" for name in NAMES), "sub/good.json"]
    odd.replies[f"{TREE}/sub"] = page([{**FILE, "path": path} for path in paths])
    assert [file.path for file in hub.list_folder("owner/name", "sub/")] == ["sub/good.json"]
    assert capsys.readouterr().err.count("\n") == 1
    odd.replies[TREE] = page([{**FILE, "path": path} for path in [*NAMES, "good.json"]])
    assert [file.path for file in hub.list_folder("owner/name")] == ["good.json"]


@pytest.mark.parametrize("name", ["a:b.py", "NUL", "comfy/con.txt", "x.", "x /y.py", "a\nb.py", "a\u202eb.py"])
def test_an_archive_with_such_a_name_is_refused(tmp_path, name):
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("ComfyUI-0/main.py", "")
        file.writestr(f"ComfyUI-0/{name}", "x")
    assert "nothing is unpacked" in sentence(lambda: host_release.unpack_tree(tmp_path / "a.zip", tmp_path / "tree"))
    assert not (tmp_path / "tree").exists()


def redirect(url: str) -> tuple:
    return 302, {"Location": url}, b""


def test_the_token_goes_to_the_hub_alone_by_every_way(odd):
    with running() as other:
        other.replies["/next"] = page([])
        odd.replies["/home"] = page([])
        for following in (
            f"{other.address}/next",
            f"{odd.address}/away",
            f"//127.0.0.1:{other.server_address[1]}/next",
            "/home",
        ):
            odd.replies["/away"] = redirect(f"{other.address}/next")
            odd.replies[TREE] = page([FILE], Link=f'<{following}>; rel="next"')
            assert len(hub.list_folder("owner/name")) == 1
            odd.replies[TREE] = redirect(following)
            assert hub.list_folder("owner/name") == []
        other.replies["/back"] = redirect(f"{odd.address}/home")
        odd.replies[TREE] = redirect(f"{other.address}/back")
        odd.asked.clear()
        assert hub.list_folder("owner/name") == []
        assert [token for _, token in odd.asked] == ["Bearer hf_secret", ""]
        other.shutdown()
    assert len(other.asked) == 7
    assert {token for _, token in other.asked} == {""}


def test_a_redirect_from_https_to_http_of_the_same_host_loses_the_token():
    home = downloads.origin("https://hub.example")
    request = downloads.urllib.request.Request("https://hub.example/a", headers={"Authorization": "Bearer x"})
    ways = {"http://hub.example/b": False, "https://hub.example:8443/b": False, "https://HUB.example:443/b": True, "/b": True,
            "https://evil.example/b": False}  # fmt: skip
    for way, is_kept in ways.items():
        url = downloads.urllib.parse.urljoin(request.full_url, way)
        following = downloads.Redirects(home).redirect_request(request, None, 302, "", {}, url)
        assert following.has_header("Authorization") == is_kept, way


SCHEMES = [
    "file:///etc/passwd",
    "ftp://127.0.0.1/x",
    "data:,[]",
    "http://user@127.0.0.1/",
    "http://[",
    "http://127.0.0.1:99999/",
    "javascript:1",
]


@pytest.mark.parametrize("url", SCHEMES)
def test_other_schemes_and_odd_addresses_are_refused_everywhere(odd, monkeypatch, tmp_path, url):
    odd.replies[TREE] = page([FILE], Link=f'<{url}>; rel="next"')
    sentence(lambda: hub.list_folder("owner/name"))
    odd.replies[TREE] = redirect(url)
    sentence(lambda: hub.list_folder("owner/name"))
    monkeypatch.setattr(host_release, "ADDRESS", f"{odd.address}/{{version}}")
    odd.replies["/1.2.3"] = redirect(url)
    sentence(lambda: host_release.fetch_release("1.2.3", tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", url)
    assert "is no web address" in sentence(lambda: hub.list_folder("owner/name"))


@pytest.mark.parametrize(
    "headers",
    [{"X-Linked-Size": "many"}, {"X-Linked-Size": "-5"}, {"X-Linked-Size": "9" * 5000}, {"X-Linked-Size": "9" * 15},
     {"Content-Length": "-3"},
     {"Location": "\x1b[2J" * 50}, {"X-Linked-Size": "3"}],
)  # fmt: skip
def test_a_file_with_odd_headers_is_one_sentence(odd, tmp_path, headers):
    file = hub.RemoteFile("owner/name", "x", size=2)
    odd.replies["/owner/name/resolve/main/x"] = (302 if "Location" in headers else 200), headers, b"{}"
    sentence(lambda: hub.fetch(file, tmp_path / "x", lambda *_: None))
    assert not (tmp_path / "x").exists()


def test_a_stream_of_unknown_size_leaves_room_on_the_disk(odd, tmp_path, monkeypatch):
    def body(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(1000):
            handler.wfile.write(bytes(10_000))

    odd.replies["/owner/name/resolve/main/x"] = body
    monkeypatch.setattr(downloads, "free_bytes", lambda _: 1_000_000)
    assert "does not end" in sentence(lambda: hub.fetch(hub.RemoteFile("owner/name", "x"), tmp_path / "x", lambda *_: None))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 0


def test_a_trickle_does_not_count_as_getting_on(odd, tmp_path):
    def body(handler: Handler) -> None:
        start = int(handler.headers.get("Range", "bytes=0-")[6:-1])
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Range", f"bytes {start}-999/1000")
        handler.send_header("Content-Length", str(1000 - start))
        handler.end_headers()
        handler.wfile.write(b"xx")

    odd.replies["/owner/name/resolve/main/x"] = body
    assert "cut off after" in sentence(lambda: hub.fetch(hub.RemoteFile("owner/name", "x"), tmp_path / "x", lambda *_: None))
    assert len(odd.asked) == hub.ATTEMPTS


def test_a_server_that_speaks_no_http_and_a_token_with_a_line_break_are_one_sentence(odd, monkeypatch):
    odd.replies[TREE] = lambda handler: handler.wfile.write(b"\x1b[2J" * 9000 + b"\r\n\r\n")
    sentence(lambda: hub.list_folder("owner/name"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret\nX-Evil: 1")
    assert "HF_TOKEN has signs" in sentence(lambda: hub.list_folder("owner/name"))


def test_a_folder_that_cannot_be_written_is_not_called_the_connection(odd, tmp_path):
    odd.replies["/owner/name/resolve/main/x"] = 200, {}, b"{}"
    (tmp_path / "x.part").mkdir()
    assert "cannot be written (Is a directory)" in sentence(
        lambda: hub.fetch(hub.RemoteFile("owner/name", "x"), tmp_path / "x", lambda *_: None)
    )


GRAPH = {"1": {"class_type": "SaveImage", "inputs": {}, "_meta": {"title": "../" + "t" * 5000}}}


@pytest.mark.parametrize("name", ["x.png/../../evil", "a.\\evil", "evil", "x.png\n", "x.p:g", "x." + "p" * 300, 7, None])
def test_the_demo_takes_no_path_from_the_server(odd, tmp_path, name):
    odd.replies["/view"] = 200, {}, b"x"
    outputs = {"1": {"images": [{"filename": name}]}}
    sentence(lambda: demo_job.fetch_pictures(Client(odd.address), GRAPH, outputs, tmp_path))
    outputs["1"]["images"][0] = {"filename": "../../evil.png"}
    ((_, path),) = demo_job.fetch_pictures(Client(odd.address), GRAPH, outputs, tmp_path)
    assert path.parent == tmp_path
    assert path.suffix == ".png"


def test_the_scripts_client_takes_any_answer(odd):
    client = Client(odd.address)
    odd.replies["/deep"] = 200, {}, b"[" * 200_000
    assert client.get_json("/deep").startswith("[[")
    odd.replies["/no"] = 500, {}, b"\x1b[2J\n" * 9000
    odd.replies["/http"] = lambda handler: handler.wfile.write(b"\x1b[2J" * 9000 + b"\r\n\r\n")
    odd.replies["/file"] = redirect("file:///etc/passwd")
    for path in ("/no", "/http", "/file"):
        with pytest.raises(ServerError) as caught:
            client.get_json(path)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 1200


@pytest.mark.parametrize("content", [b"[" * 200_000, b"7", b"{", b'{"type": "x", "data": 7}', b"\xff"])
def test_a_report_that_is_none_is_one_sentence(content):
    sentence(lambda: demo_socket._decode(content))


def test_a_workflow_with_a_byte_order_mark_is_read_and_an_odd_one_is_one_sentence(tmp_path):
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(GRAPH), encoding="utf-8-sig")
    assert demo_job.read_workflow(path) == GRAPH
    for text in ("[" * 200_000, "7", '{"1": 7}', '{"1": {"class_type": 7, "inputs": {}}}', '{"1": {"class_type": "x"}}'):
        path.write_text(text, encoding="utf-8")
        sentence(lambda: demo_job.read_workflow(path))
