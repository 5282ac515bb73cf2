"""Check everything: ruff, mypy and pytest, beside a real ComfyUI.

    python3 scripts/test.py [--release VERSION] [arguments of pytest]

The first run sets up what is needed (see host.py); a ComfyUI of your own is used with NEXTCONTROL_COMFYUI=PATH, the official
archive of another version with --release VERSION.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from extras import Extra, find_extras
from host import find_host
from host_server import PACK_NAME, link_folder
from private_host import ROOT
from provide import SetupError, cache_home, say

if TYPE_CHECKING:
    from host import Host

# Like `python -m`, with the tools last on the path, where they cannot replace a package of the host, and without the
# working directory, where the pack's nodes/ would hide ComfyUI's nodes.py.
RUN_MODULE = """
import runpy, sys
tools, module = sys.argv[1:3]
del sys.argv[1:3]
sys.path = [place for place in sys.path if place] + [tools]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chromium-headless-shell")
CHROMIUM_PLACES = (
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "${ProgramFiles}/Google/Chrome/Application/chrome.exe",
    "${ProgramFiles(x86)}/Google/Chrome/Application/chrome.exe",
    "${LOCALAPPDATA}/Google/Chrome/Application/chrome.exe",
)
# Folders whose modules scripts and tests import by their bare names.
IMPORTED_FROM = ("scripts", "tests", "tests/golden")
HALF = "tests/nodes"
"""About half of the suite, by time."""
REPOSITORY = "https://github.com/nextcontrol/nextcontrol"
NO_CHROMIUM = (
    "browser tests not run: no Chromium found; install it (Debian: apt-get install chromium) or set NEXTCONTROL_CHROMIUM"
)


@dataclass(frozen=True)
class Stage:
    """One command and the folder it runs in."""

    name: str
    command: list[str]
    folder: Path
    is_beside: bool = False
    """Runs at the same time as the stage before it; its output follows that one's."""


class Begun:
    """A stage that runs."""

    def __init__(self, stage: Stage, environment: dict[str, str], is_shown: bool) -> None:
        self.name = stage.name
        self._start = time.monotonic()
        self._kept = None if is_shown else tempfile.TemporaryFile()  # noqa: SIM115 - closed in `end`
        error = None if is_shown else subprocess.STDOUT
        self._process = subprocess.Popen(
            stage.command, cwd=stage.folder, env=environment, stdout=self._kept, stderr=error
        )  # fmt: skip

    def end(self) -> tuple[int, float]:
        """Wait for it and show what it has kept back; its exit status, and how many seconds it took."""
        try:
            status = self._process.wait()
            seconds = time.monotonic() - self._start
            if self._kept is not None:
                self._kept.seek(0)
                shutil.copyfileobj(self._kept, sys.stdout.buffer)
                sys.stdout.flush()
            return status, seconds
        finally:
            self.stop()

    def stop(self) -> None:
        """End it, if it still runs."""
        self._process.kill()
        self._process.wait()
        if self._kept is not None:
            self._kept.close()


def check_tests() -> None:
    """Refuse a copy that holds no tests.

    Raises:
        SetupError: There are none.
    """
    if not (ROOT / "tests").is_dir():
        message = (
            f"'{ROOT}' has no folder 'tests': the published archive comes without it, clone {REPOSITORY} and run this there."
        )
        raise SetupError(message)


def split_release(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Take --release off, which comes first.

    Returns:
        The version, or None, and the arguments of pytest.

    Raises:
        SetupError: No version follows.
    """
    if not arguments or arguments[0].partition("=")[0] != "--release":
        return None, arguments
    _, equals, version = arguments[0].partition("=")
    version, rest = (version, arguments[1:]) if equals else (" ".join(arguments[1:2]), arguments[2:])
    if not version:
        message = "--release needs the version of a ComfyUI, such as 0.3.75."
        raise SetupError(message)
    return version, rest


def find_tools(host: Host) -> Path:
    """The folder with the packages of the `dev` extras, installed for the host's Python on the first call.

    Returns:
        A folder for the end of `sys.path`; its bin/ holds the commands.

    Raises:
        SetupError: The host's Python has no pip, or pip fails.
    """
    # A second torch or OpenCV beside the host's must not come in: what is bare brings nothing along.
    wanted = (Extra("dev", "tools for the tests"), Extra("dev-bare", "optional packages", is_bare=True))
    return find_extras(host, "tools", wanted, ["lib/pytest", "lib/mypy", "lib/controlnet_aux"])


def find_chromium() -> str | None:
    """The browser for the tests that need one.

    Returns:
        Its path; None if there is none.

    Raises:
        SetupError: NEXTCONTROL_CHROMIUM names no program.
    """
    if chosen := os.environ.get("NEXTCONTROL_CHROMIUM"):
        if found := shutil.which(chosen):
            return found
        message = f"NEXTCONTROL_CHROMIUM ('{chosen}') is no program: give the path of a Chromium or unset it."
        raise SetupError(message)
    places = (*CHROMIUM_NAMES, *map(os.path.expandvars, CHROMIUM_PLACES))
    return next(filter(None, map(shutil.which, places)), None)


def build_stages(host: Host, tools: Path, room: Path, chromium: str | None, arguments: list[str]) -> list[Stage]:
    """The stages in order; `room` holds the checkout under the pack's published name, and nothing else.

    Returns:
        What `run_stages` takes.

    Raises:
        SetupError: The tools have no ruff.
    """
    ruff = shutil.which("ruff", path=os.pathsep.join([str(tools / "bin"), str(tools / "Scripts")]))
    if ruff is None:
        message = f"'{tools}' has no ruff: delete that folder and run this again."
        raise SetupError(message)
    module = [str(host.python), "-c", RUN_MODULE, str(tools)]
    # The checkout may have any name, and modules get their names from folders: mypy sees it as `nextcontrol`.
    mypy = ["mypy", "--config-file", f"{PACK_NAME}/pyproject.toml", "--explicit-package-bases", PACK_NAME]
    pytest = ["pytest", "-o", f"cache_dir={cache_home() / 'pytest'}"]
    if chromium is None:
        pytest += ["-m", "not browser"]
    return [
        Stage("ruff check", [ruff, "check"], ROOT),
        Stage("ruff format", [ruff, "format", "--check"], ROOT),
        Stage("mypy", [*module, *mypy], room),
        *_build_pytest([*module, *pytest], arguments),
    ]


def _build_pytest(pytest: list[str], arguments: list[str]) -> list[Stage]:
    """One stage for what was asked for; the whole suite in two halves, which take about the same time."""
    if arguments:
        return [Stage("pytest", [*pytest, *arguments], ROOT)]
    return [
        Stage("pytest", [*pytest, "tests", f"--ignore={HALF}"], ROOT),
        Stage(f"pytest {HALF}", [*pytest, HALF], ROOT, is_beside=True),
    ]


def build_environment(host: Host, chromium: str | None) -> dict[str, str]:
    """The environment of every stage: where the host is, no network, and nothing written into the checkout."""
    environment = {
        **os.environ,
        "NEXTCONTROL_COMFYUI": str(host.comfyui),
        "NEXTCONTROL_PYTHON": str(host.python),
        "HF_HUB_OFFLINE": "1",
        # The tests' networks are small: their threads would wait for each other longer than they compute.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "RUFF_CACHE_DIR": str(cache_home() / "ruff"),
        "MYPY_CACHE_DIR": str(cache_home() / "mypy"),
        # The host first, as on the path of a test run.
        "MYPYPATH": os.pathsep.join([str(host.comfyui), *(f"{PACK_NAME}/{folder}" for folder in IMPORTED_FROM)]),
    }
    if chromium is not None:
        environment["NEXTCONTROL_CHROMIUM"] = chromium
    return environment


def run_stages(stages: list[Stage], environment: dict[str, str]) -> int:
    """Run all stages, also after a failed one, and sum up; 0 if all of them passed."""
    verdicts = []
    failed = False
    begun: list[Begun] = []
    try:
        for number, stage in enumerate(stages):
            print(f"== {stage.name}", flush=True)
            if not stage.is_beside:
                others = itertools.takewhile(lambda other: other.is_beside, stages[number + 1 :])
                begun = [Begun(stage, environment, True), *(Begun(other, environment, False) for other in others)]
            status, seconds = begun.pop(0).end()
            failed = failed or status != 0
            verdict = f"FAILED (exit {status})" if status else "passed"
            verdicts.append(f"{stage.name} {verdict} in {seconds:.1f} s")
            print(f"== {verdicts[-1]}\n", flush=True)
    finally:
        for one in begun:
            one.stop()
    print(f"== {'; '.join(verdicts)}", flush=True)
    return int(failed)


def main(arguments: list[str]) -> int:
    """Set up, run, sum up."""
    if arguments in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    try:
        check_tests()
        release, arguments = split_release(arguments)
        host = find_host(release=release)
        chromium = find_chromium()
        tools = find_tools(host)
        print(f"ComfyUI {host.version} in '{host.comfyui}', Python '{host.python}'", flush=True)
        if chromium is None:
            print(NO_CHROMIUM, flush=True)
        with tempfile.TemporaryDirectory() as room:
            link_folder(Path(room) / PACK_NAME, ROOT)
            stages = build_stages(host, tools, Path(room), chromium, arguments)
            return run_stages(stages, build_environment(host, chromium))
    except SetupError as error:
        say(f"test.py: {error}")
        return 1
    except KeyboardInterrupt:
        say("test.py: interrupted.")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
