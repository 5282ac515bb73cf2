"""One training of a name at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from nextcontrol.training import lock
from nextcontrol.training.lock import DEAD_SECONDS, LockLostError, RunLock, TakenError

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
sys.path.insert(0, sys.argv[1] + "/scripts")
from host_library import import_pack
import_pack()
from nextcontrol.training.lock import RunLock
from pathlib import Path
with RunLock(Path(sys.argv[2]), "x"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.training" / "training.lock"


@pytest.fixture
def holder(path):
    """Another process that has the lock."""
    command = [sys.executable, "-c", HOLD, str(ROOT), str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def take(path):
    with RunLock(path, "x"):
        pass


def sign(path, **changes):
    """What another owner has left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = {"run": "t", "machine": "another", "host": "far", "process": 7, "since": "2026-12-01 10:00"}
    path.write_text(json.dumps(own | changes), encoding="utf-8")


def test_a_second_process_is_told_who_has_it(path, holder):
    with pytest.raises(
        TakenError, match=rf"'x' is being trained by process {holder.pid} on '.+' since .+: wait for its end, stop"
    ):
        take(path)


@pytest.mark.parametrize("how", [signal.SIGKILL, None])
def test_what_has_ended_holds_nothing(path, holder, how):
    if how is None:
        holder.communicate("")
        assert not path.parent.exists()
    else:
        holder.send_signal(how)
        holder.wait()
        assert path.exists()
    take(path)
    assert not path.exists()


def test_a_training_on_another_machine_holds_it_while_it_gives_signs_of_life(path):
    sign(path)
    with pytest.raises(TakenError, match=r"process 7 on 'far' since .+ \(if that one is gone, 1[78]\d seconds more\)"):
        take(path)
    assert json.loads(path.read_text(encoding="utf-8"))["run"] == "t"
    assert list(path.parent.iterdir()) == [path]
    for since in (-1, 1):
        sign(path)
        silent = time.time() + since * (DEAD_SECONDS + 10)
        os.utime(path, (silent, silent))
        take(path)


def test_signs_of_life_are_given(path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
    with RunLock(path, "x"):
        os.utime(path, (1, 1))
        end = time.monotonic() + 10
        while path.stat().st_mtime == 1 and time.monotonic() < end:
            time.sleep(0.01)
        assert path.stat().st_mtime > 1


def test_without_locks_of_the_system_the_content_decides(path, monkeypatch):
    monkeypatch.setattr(lock, "lock_file", lambda _number: False)
    sign(path, machine=lock.machine_id())
    with pytest.raises(TakenError, match="process 7"):
        take(path)


def test_who_was_taken_over_notices_and_takes_nothing_away(path):
    with RunLock(path, "x") as own:
        own.check()
        sign(path)
        with pytest.raises(LockLostError, match="has been taken over by process 7 on 'far'"):
            own.check()
    assert json.loads(path.read_text(encoding="utf-8"))["run"] == "t"


@pytest.mark.parametrize("content", ["", "[" * 100_000, "[1]", '{"machine": 1}', "\0" * 100])
def test_a_broken_lock_file_of_a_dead_process_locks_nobody_out(path, content):
    path.parent.mkdir()
    path.write_text(content, encoding="utf-8")
    silent = time.time() - DEAD_SECONDS - 1
    os.utime(path, (silent, silent))
    take(path)


def test_a_file_system_that_numbers_files_anew_makes_nobody_wait(path, monkeypatch):
    monkeypatch.setattr(os.path, "samestat", lambda _one, _other: False)
    take(path)


def test_a_folder_that_its_owner_deletes_in_this_moment_is_made_again(path, monkeypatch):
    opened, real = [], os.open

    def late(place, *more):
        if Path(place) == path and not opened:
            opened.append(path.parent.rmdir())
        return real(place, *more)

    monkeypatch.setattr(os, "open", late)
    take(path)


def test_a_lock_that_is_a_link_is_not_followed(path, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("kept", encoding="utf-8")
    path.parent.mkdir()
    path.symlink_to(victim)
    with pytest.raises(OSError, match="'x' cannot be written"):
        take(path)
    assert victim.read_text(encoding="utf-8") == "kept"
