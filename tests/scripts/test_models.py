"""Fetching models from a hub that stutters, cuts, refuses and lies; a real HTTP server takes its place."""

from __future__ import annotations

import hashlib
import http.server
import importlib.util
import json
import sys
import threading
from pathlib import Path

import hub
import provide
import pytest

SCRIPT = Path(hub.__file__).with_name("models.py")
DATA = bytes(range(256)) * 4096
DIGEST = hashlib.sha256(DATA).hexdigest()


class Hub(http.server.ThreadingHTTPServer):
    """Holds files by path, and what goes wrong with each."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.files: dict[str, bytes] = {}
        self.trees: dict[str, list[dict]] = {}
        self.asked: list[tuple[str, str, str]] = []
        self.cuts: list[int] = []
        self.codes: list[int] = []
        self.digest = ""
        self.has_ranges = self.has_sizes = True
        self.store = ""

    @property
    def address(self) -> str:
        """For HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answers(http.server.BaseHTTPRequestHandler):
    """As the hub answers: metadata and a redirect for large files, then the bytes."""

    server: Hub

    def do_GET(self) -> None:
        """Answer, or fail as asked."""
        hub_ = self.server
        path = self.path.partition("?")[0]
        hub_.asked.append((path, self.headers.get("Range", ""), self.headers.get("Authorization", "")))
        if hub_.codes:
            self.send_error(hub_.codes.pop(0))
        elif path.startswith("/api/models/"):
            self.send_tree(path, self.path)
        elif (name := path.replace("/resolve/main/", "/")) in hub_.files and "/resolve/main/" in path and hub_.store:
            self.send_response(302)
            self.send_header("Location", f"{hub_.store}{name}")
            self.send_linked(hub_.files[name])
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif name in hub_.files:
            self.send_file(hub_.files[name])
        else:
            self.send_error(404)

    def send_linked(self, data: bytes) -> None:
        """What the hub knows of a large file."""
        if self.server.has_sizes:
            self.send_header("X-Linked-Size", str(len(data)))
        if self.server.digest:
            self.send_header("X-Linked-Etag", f'"{self.server.digest}"')

    def send_tree(self, path: str, whole: str) -> None:
        """A folder's list, three entries a page."""
        pages = self.server.trees.get(path)
        if pages is None:
            self.send_error(404)
            return
        second = "cursor=2" in whole
        body = json.dumps(pages[3:] if second else pages[:3]).encode()
        self.send_response(200)
        if not second and len(pages) > 3:
            self.send_header("Link", f'<{self.server.address}{path}?recursive=true&cursor=2>; rel="next"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_file(self, data: bytes) -> None:
        """The bytes, cut where asked."""
        asked = self.headers.get("Range") if self.server.has_ranges else None
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_linked(data)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        end = self.server.cuts.pop(0) if self.server.cuts else len(data)
        self.wfile.write(data[start : max(start, end)])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def remote(monkeypatch):
    """A hub on this machine; no waiting between attempts."""
    with Hub() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"{server.address}/")
        for name in ("HF_TOKEN", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(hub, "PAUSE_SECONDS", 0.0)
        yield server
        server.shutdown()


@pytest.fixture
def models(monkeypatch):
    """scripts/models.py, under a name that hides nothing."""
    spec = importlib.util.spec_from_file_location("models_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "models_script", module)
    spec.loader.exec_module(module)
    return module


def ignore(done: int, size: int) -> None:
    """Nobody watches."""


FILE = hub.RemoteFile("owner/name", "a/big file.pth")


def get(target: Path, file: hub.RemoteFile = FILE) -> str:
    return hub.fetch(file, target, ignore)


def test_a_file_is_fetched_and_compared(remote, tmp_path):
    remote.files["/owner/name/a/big%20file.pth"] = DATA
    remote.digest = DIGEST
    seen = []
    target = tmp_path / "deep" / "big.pth"
    assert hub.fetch(FILE, target, lambda done, size: seen.append((done, size))) == "size and sha256"
    assert target.read_bytes() == DATA
    assert seen[-1] == (len(DATA), len(DATA))
    assert [path.name for path in target.parent.iterdir()] == ["big.pth"]


def test_a_cut_connection_is_continued_where_it_broke(remote, tmp_path):
    remote.files["/owner/name/a/big%20file.pth"] = DATA
    remote.digest, remote.cuts = DIGEST, [300_000, 300_000, 800_000]
    assert get(tmp_path / "x") == "size and sha256"
    assert (tmp_path / "x").read_bytes() == DATA
    # Each attempt asks for the last byte that it has once more.
    assert [asked[1] for asked in remote.asked] == ["", "bytes=299999-", "bytes=299999-", "bytes=799999-"]


def test_an_interrupted_run_is_continued_by_the_next(remote, tmp_path):
    remote.files["/owner/name/a/big%20file.pth"] = DATA
    remote.digest = DIGEST
    (tmp_path / "x.part").write_bytes(DATA[:500_000])
    get(tmp_path / "x")
    assert remote.asked[0][1] == "bytes=499999-"
    assert (tmp_path / "x").read_bytes() == DATA
    (tmp_path / "y.part").write_bytes(DATA)
    assert get(tmp_path / "y") == "size and sha256", "a part that is whole is compared as well"
    (tmp_path / "z.part").write_bytes(DATA * 2)
    assert get(tmp_path / "z") == "size and sha256", "a part of a longer file is begun anew"
    assert (tmp_path / "z").read_bytes() == DATA


def test_a_server_without_ranges_sends_all_of_it_again(remote, tmp_path):
    remote.files["/owner/name/a/big%20file.pth"] = DATA
    remote.digest, remote.has_ranges = DIGEST, False
    (tmp_path / "x.part").write_bytes(b"other" * 1000)
    get(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA


def test_a_wrong_hash_or_size_is_discarded(remote, tmp_path):
    remote.files["/owner/name/a/big%20file.pth"] = DATA
    remote.digest = "0" * 64
    with pytest.raises(provide.SetupError, match=r"^'a/big file\.pth' came with another sha256 than 000000000000…: it was"):
        get(tmp_path / "x")
    assert not list(tmp_path.iterdir())
    remote.digest = ""
    with pytest.raises(provide.SetupError, match=r"came with 1048576 bytes and 7 are expected: it was discarded"):
        get(tmp_path / "x", hub.RemoteFile("owner/name", "a/big file.pth", size=7))
    with pytest.raises(provide.SetupError, match=r"another sha256 than 111111111111…"):
        get(tmp_path / "x", hub.RemoteFile("owner/name", "a/big file.pth", sha256="1" * 64))
    assert not list(tmp_path.iterdir())
    assert get(tmp_path / "x") == "size", "without a hash the size is compared"


def test_a_connection_that_never_gets_on_is_given_up_and_keeps_what_it_has(remote, tmp_path):
    remote.files["/owner/name/a/big%20file.pth"] = DATA
    remote.cuts = [100_000] * 20
    with pytest.raises(
        provide.SetupError, match=r"cannot be fetched \(cut off after 100000 of 1048576 bytes\): check the conn"
    ):
        get(tmp_path / "x")
    assert len(remote.asked) == 1 + hub.ATTEMPTS
    assert (tmp_path / "x.part").read_bytes() == DATA[:100_000]


def test_an_overloaded_hub_is_asked_again(remote, tmp_path):
    remote.files["/owner/name/a/big%20file.pth"] = DATA
    remote.codes = [503, 429]
    get(tmp_path / "x")
    remote.codes = [500] * hub.ATTEMPTS
    with pytest.raises(provide.SetupError, match=r"cannot be fetched \(HTTP 500\): check the connection"):
        get(tmp_path / "y")


def test_a_refusal_says_what_to_do(remote, tmp_path, monkeypatch):
    remote.codes = [401, 403, 418]
    with pytest.raises(provide.SetupError, match=r"refuses .* \(HTTP 401\), that needs HF_TOKEN: accept the licence"):
        get(tmp_path / "x")
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    with pytest.raises(provide.SetupError, match=r"\(HTTP 403\), the token in HF_TOKEN is not allowed to"):
        get(tmp_path / "x")
    with pytest.raises(provide.SetupError, match=r"answers .* with HTTP 418"):
        get(tmp_path / "x")
    with pytest.raises(provide.SetupError, match=r"has no '.*big%20file\.pth' \(HTTP 404\): it may have moved"):
        get(tmp_path / "x")
    assert len(remote.asked) == 4, "none of these is tried again"
    monkeypatch.setenv("HF_ENDPOINT", "hub.example")
    with pytest.raises(provide.SetupError, match=r"HF_ENDPOINT \('hub\.example'\) is no web address"):
        get(tmp_path / "x")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(provide.SetupError, match=r"cannot be fetched \(.*refused\): check the connection"):
        get(tmp_path / "x")


def test_the_token_goes_to_the_hub_and_not_to_its_store(remote, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with Hub() as store:
        threading.Thread(target=store.serve_forever, args=(0.01,), daemon=True).start()
        remote.files["/owner/name/a/big%20file.pth"] = store.files["/owner/name/a/big%20file.pth"] = DATA
        remote.store, remote.digest, store.has_sizes = store.address, DIGEST, False
        (tmp_path / "x.part").write_bytes(DATA[:1000])
        assert get(tmp_path / "x") == "size and sha256", "the hub's own word before the redirect counts"
        store.shutdown()
    assert remote.asked[0][2] == "Bearer hf_secret"
    assert store.asked == [("/owner/name/a/big%20file.pth", "bytes=999-", "")]


def test_a_file_that_is_there_is_never_overwritten(remote, tmp_path):
    remote.files["/owner/name/a/big%20file.pth"] = DATA
    (tmp_path / "x").write_text("mine")
    with pytest.raises(provide.SetupError, match="has appeared meanwhile"):
        get(tmp_path / "x")
    assert (tmp_path / "x").read_text() == "mine"


def entry(path: str, data: bytes = DATA, **more) -> dict:
    return {"type": "file", "path": path, "size": len(data), "oid": "0" * 40, **more}


def test_a_folder_is_listed_page_by_page_and_leads_nowhere_else(remote):
    large = {"lfs": {"oid": DIGEST, "size": len(DATA)}}
    remote.trees["/api/models/owner/name/tree/main/sub"] = [
        entry("sub/a.safetensors", **large), {"type": "directory", "path": "sub/deep", "oid": "x"}, entry("sub/../../evil"),
        entry("/etc/evil"), entry("sub/.hidden"), entry("sub\\evil"), entry("sub/deep/b.bin"),
    ]  # fmt: skip
    found = hub.list_folder("owner/name", "sub/")
    assert found == [
        hub.RemoteFile("owner/name", "sub/a.safetensors", len(DATA), DIGEST),
        hub.RemoteFile("owner/name", "sub/deep/b.bin", len(DATA)),
    ]


def test_of_a_whole_repository_each_weight_comes_once(remote):
    names = [
        "README.md",
        "config.json",
        "model.safetensors",
        "pytorch_model.bin",
        "onnx/model.onnx",
        "tf_model.h5",
        "vocab.txt",
    ]
    remote.trees["/api/models/owner/name/tree/main"] = [entry(name) for name in names]
    assert [file.path for file in hub.list_folder("owner/name")] == ["config.json", "model.safetensors", "vocab.txt"]
    remote.trees["/api/models/owner/name/tree/main"].pop(2)
    assert [file.path for file in hub.list_folder("owner/name")] == ["config.json", "pytorch_model.bin", "vocab.txt"]


# The command


def test_fetch_puts_every_kind_where_the_nodes_look(models, remote, comfyui, capsys):
    remote.files["/lllyasviel/Annotators/ControlNetHED.pth"] = DATA
    remote.files["/xyfJASON/ctrlora/ctrlora-basecn/ctrlora_sd15_basecn700k.ckpt"] = DATA
    name = "controlnext-sdxl-anime-canny"
    for file in ("controlnet.safetensors", "unet.safetensors"):
        remote.files[f"/Eugeoter/{name}/{file}"] = DATA
    folder = "ControlNeXt-SD1.5/vidit_depth"
    remote.trees[f"/api/models/Pbihao/ControlNeXt/tree/main/{folder}"] = [entry(f"{folder}/unet.safetensors")]
    remote.files[f"/Pbihao/ControlNeXt/{folder}/unet.safetensors"] = DATA
    depth = "depth-anything/Depth-Anything-V2-Small-hf"
    remote.trees[f"/api/models/{depth}/tree/main"] = [entry("config.json"), entry("model.safetensors")]
    remote.files[f"/{depth}/config.json"] = remote.files[f"/{depth}/model.safetensors"] = DATA
    names = ["ControlNetHED.pth", "ctrlora_sd15_basecn700k.ckpt", name, "controlnext-sd15-vidit_depth", depth.split("/")[1]]
    assert models.main(["fetch", *names, "--comfyui", str(comfyui)]) == 0
    found = {path.relative_to(comfyui / "models").as_posix() for path in (comfyui / "models").rglob("*") if path.is_file()}
    assert found == {
        "annotators/ControlNetHED.pth", "ctrlora/ctrlora-basecn/ctrlora_sd15_basecn700k.ckpt",
        f"controlnext/{name}/controlnet.safetensors", f"controlnext/{name}/unet.safetensors",
        f"controlnext/{folder}/unet.safetensors", "annotators/Depth-Anything-V2-Small-hf/config.json",
        "annotators/Depth-Anything-V2-Small-hf/model.safetensors",
    }  # fmt: skip
    assert "ControlNetHED.pth: 1.0 MB, size checked, licence: Apache-2.0" in capsys.readouterr().out
    remote.asked.clear()
    remote.files.clear()
    assert models.main(["fetch", *names[:3], "--comfyui", str(comfyui)]) == 0
    assert remote.asked == [], "what is there is not asked for"
    assert capsys.readouterr().out.count("there already") == 4


def test_one_failure_does_not_keep_the_others_back(models, remote, comfyui, capsys):
    remote.files["/lllyasviel/Annotators/sk_model.pth"] = DATA
    assert models.main(["fetch", "netG.pth", "sk_model.pth", "--comfyui", str(comfyui)]) == 1
    assert (comfyui / "models" / "annotators" / "sk_model.pth").read_bytes() == DATA
    assert "The hub has no" in capsys.readouterr().err


def test_a_file_whose_hash_the_catalogue_knows_is_held_to_it(models, remote, comfyui, capsys):
    remote.files["/TheMistoAI/MistoLine/Anyline/MTEED.pth"] = DATA[:248298]
    assert models.main(["fetch", "MTEED.pth", "--comfyui", str(comfyui)]) == 1
    assert "came with another sha256 than a3c2d8a8ce94…" in capsys.readouterr().err


def test_list_says_what_is_there(models, comfyui, capsys):
    places = [
        "annotators/mine/sk_model.pth",
        "annotators/netG.pth.part",
        "controlnext/controlnext-sdxl-anime-canny/unet.safetensors",
    ]
    for place in places:
        (comfyui / "models" / place).parent.mkdir(parents=True, exist_ok=True)
        (comfyui / "models" / place).write_bytes(b"x")
    assert models.main(["list", "--comfyui", str(comfyui)]) == 0
    rows = {line.split()[-1]: line.split() for line in capsys.readouterr().out.splitlines() if line}
    assert rows["sk_model.pth"][:3] == ["yes", "17", "MB"]
    assert rows["netG.pth"][0] == "part"
    assert rows["controlnext-sdxl-anime-canny"][:2] == ["part", "?"]
    assert rows["MTEED.pth"][0] == "no"
    assert rows["ctrlora_sd15_basecn700k.ckpt"][:3] == ["no", "1542", "MB"]


def test_names_are_unique_and_an_unknown_one_has_neighbours(models, comfyui, capsys):
    names = [item.name for item in models.read_catalogue()]
    assert len(set(names)) == len(names)
    assert models.main(["fetch", "ControlNetHD.pth", "--comfyui", str(comfyui)]) == 1
    assert "'ControlNetHD.pth' is not in the list; nearest is ControlNetHED.pth" in capsys.readouterr().err


def test_the_comfyui_folder_is_found_or_asked_for(models, comfyui, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(comfyui)
    monkeypatch.setattr(models, "ROOT", tmp_path / "elsewhere" / "scripts")
    assert models.find_comfyui(None) == comfyui
    monkeypatch.chdir(tmp_path)
    assert models.find_comfyui(Path("comfyui")) == comfyui
    monkeypatch.setenv("NEXTCONTROL_COMFYUI", str(comfyui))
    assert models.find_comfyui(None) == comfyui
    monkeypatch.delenv("NEXTCONTROL_COMFYUI")
    (tmp_path / "comfyui").rename(tmp_path / "other")
    assert models.main(["list"]) == 1
    assert "No ComfyUI is found here: give its folder with --comfyui PATH" in capsys.readouterr().err
    assert models.main(["list", "--comfyui", str(tmp_path)]) == 1
    assert "is not a ComfyUI folder" in capsys.readouterr().err
