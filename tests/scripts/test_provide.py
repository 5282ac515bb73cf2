"""A folder in the cache is made once, by one process, and is whole."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import provide
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

SCRIPTS = Path(provide.__file__).parent
RECIPE: dict[str, object] = {"packages": ["torch==0"], "python": ["cpython", 3, 10]}
# Builds "thing" once `go` exists, and writes a line for every start and end.
BUILDER = """
import sys, time
from pathlib import Path
sys.path.append(sys.argv[1])
import provide

room = Path(sys.argv[2])

def build(folder):
    with (room / "events").open("a") as events:
        events.write("start\\n")
    (folder / "half").write_text("half")
    end = time.monotonic() + 30
    while not (room / "go").exists() and time.monotonic() < end:
        time.sleep(0.02)
    (folder / "content").write_text("whole")

print(provide.provide("thing", {"a": 1}, build, ["content"]))
"""


def start_builder(room: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILDER, str(SCRIPTS), str(room)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "waited 20 s"
        time.sleep(0.02)


def write_content(folder: Path) -> None:
    (folder / "content").write_text("whole")


def must_not_build(folder: Path) -> None:
    pytest.fail(f"'{folder}' is built again")


def test_a_whole_folder_is_not_made_again() -> None:
    first = provide.provide("thing", RECIPE, write_content, ["content"])
    assert provide.provide("thing", RECIPE, must_not_build, ["content"]) == first
    assert (first / "content").read_text() == "whole"


def test_a_whole_folder_needs_no_lock_and_so_no_right_to_write() -> None:
    folder = provide.provide("thing", RECIPE, write_content)
    lock = folder.with_name(f"{folder.name}.lock")
    lock.unlink()
    provide.provide("thing", RECIPE, must_not_build)
    assert not lock.exists()


@pytest.mark.parametrize("marker", ["", "{}"])
def test_a_damaged_marker_counts_as_none(marker: str) -> None:
    folder = provide.provide("thing", RECIPE, lambda _: None)
    (folder / provide.MARKER).write_text(marker)
    assert (provide.provide("thing", RECIPE, write_content) / "content").exists()


def test_another_recipe_is_another_folder() -> None:
    first = provide.provide("thing", RECIPE, write_content)
    second = provide.provide("thing", {**RECIPE, "python": ["cpython", 3, 11]}, write_content)
    assert first != second
    assert (first / "content").exists()


def test_a_folder_that_lost_a_required_file_is_made_again() -> None:
    folder = provide.provide("thing", RECIPE, write_content, ["content"])
    (folder / "content").unlink()
    provide.provide("thing", RECIPE, write_content, ["content"])
    assert (folder / "content").exists()


def test_a_failed_set_up_leaves_nothing_behind() -> None:
    def fail(folder: Path) -> None:
        write_content(folder)
        message = "no network"
        raise provide.SetupError(message)

    with pytest.raises(provide.SetupError, match="no network"):
        provide.provide("thing", RECIPE, fail)
    assert not provide.keyed_folder("thing", RECIPE).exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_killed_set_up_is_made_anew(tmp_path: Path, home: Path) -> None:
    killed = start_builder(tmp_path)
    wait_for(lambda: any(home.glob("thing-*/half")))
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    left = next(home.glob("thing-*/half"))
    left.with_name("junk").write_text("left by the killed run")
    (tmp_path / "go").touch()

    again = start_builder(tmp_path)
    output, errors = again.communicate(timeout=20)
    assert output.strip() == str(left.parent)
    assert "making it anew" in errors
    assert sorted(path.name for path in left.parent.iterdir()) == [provide.MARKER, "content", "half"]


def test_a_second_process_waits_and_does_not_build(tmp_path: Path, home: Path) -> None:
    first = start_builder(tmp_path)
    wait_for(lambda: any(home.glob("thing-*/half")))
    second = start_builder(tmp_path)
    assert second.stderr is not None
    assert second.stderr.readline().startswith("Waiting for another process that is setting up '")
    assert second.poll() is None
    (tmp_path / "go").touch()

    first_output, _ = first.communicate(timeout=20)
    second_output, _ = second.communicate(timeout=20)
    assert (first.returncode, second.returncode) == (0, 0)
    assert first_output == second_output
    assert (tmp_path / "events").read_text() == "start\n"


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NEXTCONTROL_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(provide.SetupError, match=r"cannot be made .* set NEXTCONTROL_HOME"):
        provide.provide("thing", RECIPE, write_content)
