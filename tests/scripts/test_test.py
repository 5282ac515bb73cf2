"""The one command for all checks: nothing is left out, and the tools never replace a package of the host."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import host
import provide
import pytest

SCRIPT = Path(host.__file__).with_name("test.py")


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/test.py under another name: Python has a package `test` of its own."""
    spec = importlib.util.spec_from_file_location("checks", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "checks", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder of tools with a ruff that does nothing and a module that prints the path."""
    ruff = tmp_path / "tools" / ("Scripts/ruff.exe" if sys.platform == "win32" else "bin/ruff")
    ruff.parent.mkdir(parents=True)
    ruff.touch(mode=0o755)
    (tmp_path / "tools" / "show_path.py").write_text("import sys; print(*sys.argv[1:], *sys.path, sep='\\n')")
    return tmp_path / "tools"


def test_every_stage_runs_and_one_failure_fails_the_whole(
    checks: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def stage(status: int) -> object:
        command = [sys.executable, "-c", f"print('ran {status}'); raise SystemExit({status})"]
        return checks.Stage(f"stage {status}", command, tmp_path)

    assert checks.run_stages([stage(0)], {}) == 0
    # 5 is pytest's answer where no test ran.
    assert checks.run_stages([stage(5), stage(0)], {}) == 1
    lines = capfd.readouterr().out.splitlines()
    assert lines.count("ran 5") == 1
    assert lines.count("ran 0") == 2
    assert lines[-1].startswith("== stage 5 FAILED (exit 5) in ")
    assert "; stage 0 passed in " in lines[-1]


def test_a_stage_beside_another_runs_at_the_same_time_and_is_shown_after_it(
    checks: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # Each waits for the other's file.
    code = "import pathlib, sys, time\nprint('begins', *sys.argv[1:], flush=True)\npathlib.Path(sys.argv[1]).touch()\n"
    code += "while not pathlib.Path(sys.argv[2]).exists(): time.sleep(0.01)\nprint('ends', sys.argv[1])"
    stages = [
        checks.Stage(f"stage {own}", [sys.executable, "-c", code, own, other], tmp_path, is_beside=own == "b")
        for own, other in ("ab", "ba")
    ]
    assert checks.run_stages(stages, {}) == 0
    lines = [line for line in capfd.readouterr().out.splitlines() if line and " passed" not in line]
    assert lines == ["== stage a", "begins a b", "ends a", "== stage b", "begins b a", "ends b"]


def test_the_two_halves_are_the_whole_suite(checks: ModuleType) -> None:
    rest, half = (stage.command for stage in checks._build_pytest(["pytest"], []))
    assert rest == ["pytest", "tests", f"--ignore={half[1]}"]
    assert (checks.ROOT / half[1]).is_dir()
    assert [stage.command for stage in checks._build_pytest(["pytest"], ["-x"])] == [["pytest", "-x"]]


def test_only_without_a_browser_are_its_tests_left_out(checks: ModuleType, tools: Path, tmp_path: Path) -> None:
    found = host.Host(Path(sys.executable), tmp_path, "0")
    names = [stage.name for stage in checks.build_stages(found, tools, tmp_path, "/bin/chromium", [])]
    assert names == ["ruff check", "ruff format", "mypy", "pytest", "pytest tests/nodes"]
    with_browser = checks.build_stages(found, tools, tmp_path, "/bin/chromium", ["-x"])[-1].command
    without = checks.build_stages(found, tools, tmp_path, None, ["-x"])[-1].command
    assert without[-3:] == ["-m", "not browser", "-x"]
    assert with_browser == [*without[:-3], "-x"]


def test_a_browser_that_is_not_there_is_one_sentence(checks: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXTCONTROL_CHROMIUM", "/nowhere/chromium")
    with pytest.raises(provide.SetupError, match=r"NEXTCONTROL_CHROMIUM \('/nowhere/chromium'\) is no program: give"):
        checks.find_chromium()
    monkeypatch.setenv("NEXTCONTROL_CHROMIUM", sys.executable)
    assert checks.find_chromium() == sys.executable


def test_tools_come_after_the_host_and_the_checkout_is_not_on_the_path(checks: ModuleType, tools: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", checks.RUN_MODULE, str(tools), "show_path", "argument"]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    argument, *places = answer.stdout.splitlines()
    assert argument == "argument"
    assert places[-1] == str(tools)
    assert str(tmp_path) not in places
    assert "" not in places


def test_no_stage_writes_into_the_checkout(checks: ModuleType, home: Path, tmp_path: Path) -> None:
    environment = checks.build_environment(host.Host(Path(sys.executable), tmp_path, "0"), None)
    caches = [environment[name] for name in ("RUFF_CACHE_DIR", "MYPY_CACHE_DIR")]
    assert all(Path(cache).parent == home for cache in caches)
    assert environment["PYTHONDONTWRITEBYTECODE"] == "1"


def test_the_release_comes_before_the_arguments_of_pytest(checks: ModuleType) -> None:
    assert checks.split_release(["-k", "x", "--release"]) == (None, ["-k", "x", "--release"])
    assert checks.split_release(["--release", "0.33.0", "-q"]) == ("0.33.0", ["-q"])
    assert checks.split_release(["--release=0.33.0", "-q"]) == ("0.33.0", ["-q"])
    for arguments in (["--release"], ["--release="]):
        with pytest.raises(provide.SetupError, match="needs the version of a ComfyUI"):
            checks.split_release(arguments)
