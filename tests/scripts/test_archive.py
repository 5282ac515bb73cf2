"""The archive that the registry hands out, unpacked: it holds what the pack needs and names, and works without the checkout."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import folder_paths
import pytest
from demo_job import read_workflow, run_job, set_inputs
from host import Host
from host_server import Server
from pathspec import PathSpec  # mypy brings it along

ROOT = Path(__file__).resolve().parents[2]
COMFYUI = Path(folder_paths.__file__).parent
MEGABYTES = 30
LEFT_OUT = re.compile(r"\.|tests/|docs/images/")
"""How the paths begin that a clone has and the archive has not."""
NAMED = re.compile(
    r"(?<![\w./$-])(?:(?:docs|demo|scripts|tests|workflows|web|locales)/[\w./-]*\w|"
    r"(?:models|nodes|preprocessors|training)/[\w/]+\.py)(?![*\w/]|\.\w)"
)
"""Of the pack's files and folders; models/ without .py is ComfyUI's."""
ADDRESS = re.compile(r"https?://[^\s)>\"'`]+")
CITED = re.compile(r"(?:Source: [\w.-]+/[\w.-]+\s|[\w.-]+/[\w.-]+@)(?:[^;).]|\.(?=\w))*")
"""Files of another project."""
LINK = re.compile(r"\]\(([^)<>\s#]+)(?:#[^)\s]*)?\)")
FOR_A_CLONE = {
    ("docs/CONTRIBUTING.md", "tests/"): "the page is for those who work on a clone",
    ("docs/distributed.md", "tests/"): "says which tests a clone has",
    ("README.md", "tests/"): "says which run a measurement is from, and how a clone is laid out",
    ("README.zh-CN.md", "tests/"): "as README.md",
    ("scripts/test.py", "tests"): "without tests it says in one sentence where they are",
    ("README.md", "docs/images/"): "the page is read on the hub; the pictures are a tenth of its size for one view",
    ("README.zh-CN.md", "docs/images/"): "as README.md",
    ("demo/README.md", "docs/images/"): "as README.md",
    ("docs/proof.md", "docs/images/"): "as README.md",
    ("scripts/convergence.py", "docs/images/"): "makes the folder",
    ("scripts/registry_pictures.py", "docs/images/"): "says that it needs a clone",
}
"""File of the archive and beginning of a name in it that leads out of the archive, and why that is well."""


def listed() -> list[str]:
    """What the repository knows, or every file where there is no repository: what comfy-cli chooses from."""
    command = [shutil.which("git") or "git", "ls-files"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.splitlines()
    everything = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    names = names or [path.as_posix() for path in everything if ".git" not in path.parts]
    return [name for name in names if (ROOT / name).exists()]


def published() -> list[str]:
    """The files that `comfy node publish` packs, as comfy-cli 1.23.0 finds them (comfy_cli/file_utils.py: zip_files)."""
    lines = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the name `gitwildmatch`, which comfy-cli uses
        ignored = PathSpec.from_lines("gitwildmatch", [line.strip() for line in lines if line.strip() and line[0] != "#"])
    return [name for name in listed() if not ignored.match_file(name)]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "node.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in published():
            file.write(ROOT / name, name)
    return path


@pytest.fixture(scope="module")
def pack(archive: Path) -> Path:
    """The archive, unpacked where ComfyUI Manager would: in the custom_nodes of what looks like a ComfyUI."""
    comfyui = archive.parent / "ComfyUI"
    folder = comfyui / "custom_nodes" / "nextcontrol"
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder)
    for name in ("main.py", "comfyui_version.py"):
        (comfyui / name).touch()
    return folder


@pytest.fixture(scope="module")
def server(pack: Path) -> Iterator[Server]:
    """A real ComfyUI that knows this copy alone."""
    with Server(Host(Path(sys.executable), COMFYUI, ""), pack, ["--cpu"]) as running:
        yield running


def run_script(pack: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A script of the copy, from a folder that is nobody's."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=pack.parents[2], env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def texts(pack: Path) -> Iterator[tuple[str, str]]:
    """Every page, and every string in the code: what people are told."""
    for path in sorted(pack.rglob("*")):
        name = path.relative_to(pack).as_posix()
        if path.suffix == ".md":
            yield name, path.read_text(encoding="utf-8")
        elif path.suffix == ".py":
            strings = (node.value for node in ast.walk(parsed(path)) if isinstance(node, ast.Constant))
            yield name, "\n".join(text for text in strings if isinstance(text, str))
        elif path.suffix == ".json" and name.startswith(("locales/", "workflows/")):
            yield name, "\n".join(strings_of(json.loads(path.read_text(encoding="utf-8"))))


def strings_of(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings_of(part)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def names_in(name: str, text: str) -> set[str]:
    """The pack's files that a text names, as paths from the pack's folder; what a page links to counts from the page."""
    text = CITED.sub("", ADDRESS.sub("", text))
    if not name.endswith(".md"):
        return set(NAMED.findall(text))
    # ComfyUI's panel puts the folder of the English pages before the pictures of every language.
    folder = Path("web/docs") if name.startswith("web/docs/") else Path(name).parent
    return set(NAMED.findall(text)) | {os.path.normpath(folder / place) for place in LINK.findall(text)}


def test_everything_but_tests_and_pictures_for_the_hub_is_published(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(archive) as file:
        found = file.namelist()
    assert found == [name for name in listed() if not LEFT_OUT.match(name)]
    size = archive.stat().st_size / 1e6
    with capsys.disabled():
        print(f" [the archive: {len(found)} files, {size:.1f} MB] ", end="")  # noqa: T201 - to be read in every run
    assert size < MEGABYTES


def test_every_file_that_a_text_names_is_there(pack: Path) -> None:
    missing, count, used = [], 0, set()
    for name, text in texts(pack):
        for named in names_in(name, text):
            count += 1
            excuse = next((key for key in FOR_A_CLONE if key[0] == name and named.startswith(key[1])), None)
            if (pack / named).exists():
                continue
            used.add(excuse)
            if excuse is None:
                missing.append(f"{name}: {named}")
    assert not missing, "\n".join(missing)
    assert count > 250
    assert used == set(FOR_A_CLONE)


def test_no_code_imports_a_module_that_only_a_clone_has(pack: Path) -> None:
    only_there = {path.stem for path in (ROOT / "tests").rglob("*.py")} - {
        path.stem for path in (pack / "scripts").glob("*.py")
    }
    for path in pack.rglob("*.py"):
        for node in ast.walk(parsed(path)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                modules = [str(node.module)]
            assert not {module.partition(".")[0] for module in modules} & only_there, path


def test_the_scripts_run(pack: Path) -> None:
    every = "import importlib, pathlib, sys; sys.path.insert(0, sys.argv[1]); "
    every += "[importlib.import_module(path.stem) for path in pathlib.Path(sys.argv[1]).glob('*.py')]"
    answer = run_script(pack, "-c", every, str(pack / "scripts"))
    assert answer.returncode == 0, answer.stderr
    answer = run_script(pack, str(pack / "scripts" / "train.py"), "--help")
    assert "CONFIG.json names files as the nodes do" in answer.stdout, answer.stderr
    answer = run_script(pack, str(pack / "scripts" / "models.py"), "list")
    assert answer.stdout.startswith(f"In '{pack.parents[1] / 'models'}':\n"), answer.stderr
    assert "ctrlora_sd15_basecn700k.ckpt" in answer.stdout


def test_that_there_are_no_tests_is_one_sentence(pack: Path) -> None:
    answer = run_script(pack, str(pack / "scripts" / "test.py"), "-q")
    assert answer.returncode == 1
    assert answer.stdout == ""
    expected = f"test.py: '{pack}' has no folder 'tests': the published archive comes without it, clone "
    assert answer.stderr == f"{expected}https://github.com/nextcontrol/nextcontrol and run this there.\n"


def test_comfyui_serves_its_nodes_pages_texts_and_workflows(server: Server, pack: Path, pack_nodes: dict[str, type]) -> None:
    assert {name for name in server.get_json("/object_info") if name.startswith("NextControl")} == set(pack_nodes)
    for page in (pack / "web" / "docs").rglob("*.*"):
        assert server.fetch(f"/extensions/nextcontrol/docs/{page.relative_to(pack / 'web' / 'docs').as_posix()}")
    assert "NextControlCanny" in server.get_json("/i18n")["zh"]["nodeDefs"]
    templates = server.get_json("/workflow_templates")["nextcontrol"]
    assert {f"{name}.json" for name in templates} == {path.name for path in (pack / "workflows").glob("*.json")}


@pytest.mark.parametrize("name", ["demo_controlnext", "demo_train_ctrlora"])
def test_a_demo_workflow_runs_on_the_demo_model(server: Server, pack: Path, name: str) -> None:
    graph = read_workflow(pack / "workflows" / "api" / f"{name}.json")
    assert set_inputs(graph, "steps", 2)
    few = {"subset": 8, "batch_size": 2, "accumulation_steps": 1, "preview_every": 0, "validation_pairs": 0}
    for key, value in (few | {"sensitivity_every": 0, "rank": 4}).items():
        set_inputs(graph, key, value, ("NextControlTrainCtrLoRA", "NextControlPairDataset"))
    entry = run_job(server, graph)
    assert entry["status"]["status_str"] == "success"
    assert sum(len(output.get("images", [])) for output in entry["outputs"].values()) >= 3
