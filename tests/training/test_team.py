"""Several processes train what one trains: the same losses, one set of files, an orderly end whatever happens to one."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nextcontrol.training.backbone import Share
from nextcontrol.training.cache import TensorCache
from nextcontrol.training.config import TrainConfig
from nextcontrol.training.encode import encode_dataset
from nextcontrol.training.team import Alone, check_share, open_team
from tiny_training import Encoders, dataset_of, encoded, write_pairs

SCRIPT = Path(__file__).parent / "team_processes.py"
SIX = {"accumulation_steps": 6, "steps": 6, "save_every": 2, "sensitivity_every": 0}
FULL = SIX | {
    "ema_decay": 0.5, "max_grad_norm": 0.5, "schedule": "cosine", "warmup_steps": 2, "min_snr_gamma": 5.0,
    "sensitivity_every": 3,
}  # fmt: skip
RARE = SIX | {"save_every": 100}
SHARDED = {"shard_optimizer": True}


def plan(out, processes, changes, work=None, **more):
    return {"out": out, "processes": processes, "changes": changes, "work": work or f"{out}.work", **more}


def event(what, rank, step):
    return {"happens": what, "rank": rank, "step": step}


PLANS = [
    plan("one", 1, FULL),
    plan("two", 2, FULL),
    plan("three", 3, FULL),
    plan("sharded", 3, FULL | SHARDED),
    plan("base one", 1, SIX, method="base"),
    plan("base three", 3, SIX, method="base"),
    plan("absent one", 1, SIX | {"accumulation_steps": 2}, method="base"),
    plan("absent two", 2, SIX | {"accumulation_steps": 2}, method="base"),
    plan("absent sharded", 2, SIX | {"accumulation_steps": 2} | SHARDED, method="base"),
    plan("plain", 1, SIX),
    plan("cut by an error", 2, RARE, "cut", **event("error", 1, 2)),
    plan("cut by a signal", 3, RARE | SHARDED, "cut", **event("signal", 2, 4)),
    plan("cut and resumed", 1, SIX, "cut"),
    plan("main killed", 3, RARE, "main", **event("kill", 0, 3)),
    plan("main resumed", 1, SIX, "main"),
    plan("other killed", 2, SIX | SHARDED, "other", **event("kill", 1, 3)),
    plan("other resumed", 3, SIX | SHARDED, "other"),
    plan("memory", 2, RARE, **event("memory", 1, 2)),
    plan("no number", 2, RARE, **event("no number", 1, 2)),
    plan("disk", 2, SIX | SHARDED, **event("disk", 0, 3)),
    plan("seeds", 2, SIX, happens="other seed"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What the processes of each run saw, by its name."""
    if not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    folder = tmp_path_factory.mktemp("team")
    with torch.inference_mode(mode=False):
        encoded(write_pairs(folder / "pairs"))
    (folder / "plan.json").write_text(json.dumps(PLANS))
    found = importlib.util.find_spec("accelerate")
    assert found is not None, "scripts/test.py installs it"
    command = [sys.executable, "-B", str(SCRIPT), str(folder), str(Path(str(found.origin)).parents[1])]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert answer.returncode == 0, answer.stderr
    assert "hang" not in answer.stderr, answer.stderr
    return Results(folder)


class Results:
    """Read when asked for."""

    def __init__(self, folder):
        self.folder = folder

    def __getitem__(self, out):
        """The processes of a run that were not killed, by rank."""
        return {int(path.stem): json.loads(path.read_text()) for path in sorted((self.folder / out).glob("*.json"))}

    def states(self, work):
        """Names of the saved states."""
        return sorted(path.name for path in (self.folder / work / "lora.training").glob("*.state"))


def same(numbers, others):
    assert len(numbers) == len(others)
    assert numbers == pytest.approx(others, rel=1e-5)


@pytest.mark.parametrize("out", ["two", "three", "sharded"])
def test_several_processes_have_the_losses_of_one(results, out):
    one = results["one"][0]
    assert len(one["losses"]) == 6
    assert len(results[out]) == (2 if out == "two" else 3)
    for own in results[out].values():
        same(own["losses"], one["losses"])
        same(own["norms"], one["norms"])
        assert own["sums"] == results[out][0]["sums"], "the averaged weights are the same bit for bit in all processes"


def test_clipping_and_average_took_part(results):
    one = results["one"][0]
    assert max(one["norms"]) > 0.5
    assert one["losses"] != results["plain"][0]["losses"]


def test_a_sharded_state_takes_a_part_of_the_memory_in_each_process(results):
    whole = results["three"][0]["kept"]
    parts = [own["kept"] for own in results["sharded"].values()]
    assert sum(parts) == whole
    assert max(parts) < 0.4 * whole
    assert results["sharded"][1]["losses"] == results["three"][1]["losses"]


@pytest.mark.parametrize("out", ["two", "three", "sharded"])
def test_the_main_process_alone_writes(results, out):
    assert results[out][0]["files"] == results["one"][0]["files"] == [2, 4, 6]
    assert all(own["files"] == [] for rank, own in results[out].items() if rank)
    folder = results.folder / f"{out}.work" / "lora.training"
    lines, ones = (
        [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
        for place in (folder, results.folder / "one.work" / "lora.training")
    )
    assert [line["step"] for line in lines] == [line["step"] for line in ones]
    same([line["loss"] for line in lines if "loss" in line], [line["loss"] for line in ones if "loss" in line])
    assert len([line for line in lines if "sensitivity_none" in line]) == 3
    assert results.states(f"{out}.work") == ["state-00000004.state", "state-00000006.state"]
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize(
    ("out", "one"), [("base three", "base one"), ("absent two", "absent one"), ("absent sharded", "absent one")]
)
def test_conditions_that_only_some_processes_see_train_as_in_one(results, out, one):
    for own in results[out].values():
        same(own["losses"], results[one][0]["losses"])
        assert own["none"] == results[one][0]["none"]


def test_what_no_process_saw_has_no_gradient(results):
    assert results["base one"][0]["none"] == []
    none = results["absent two"][0]["none"]
    assert none
    assert len({name.split("/")[0] for name in none}) == 1, "of one condition"


def test_a_run_goes_on_with_more_processes_and_with_one(results):
    """2 -> 3 with a sharded state -> 1, ended by an error and by a signal in one of the processes."""
    assert [own["step"] for own in results["cut by an error"].values()] == [2, 2]
    assert [own["step"] for own in results["cut by a signal"].values()] == [4, 4, 4]
    assert all(own["resumed"] for own in results["cut by a signal"].values())
    assert results["cut and resumed"][0]["resumed"]
    same(results["cut and resumed"][0]["losses"], results["plain"][0]["losses"])
    assert results["cut and resumed"][0]["step"] == 6


def test_an_error_in_one_process_ends_all_and_the_main_one_says_it(results):
    main, other = results["cut by an error"].values()
    assert (other["error"], other["message"]) == ("ValueError", "the picture is gone")
    assert (main["error"], main["message"]) == ("StoppedElsewhereError", "Process 1 stopped: the picture is gone")
    assert main["agreed"]
    assert other["agreed"]


def test_a_signal_to_one_process_ends_all(results):
    assert {own["error"] for own in results["cut by a signal"].values()} == {"KeyboardInterrupt"}


def test_a_killed_main_process_leaves_a_state_that_another_saves(results):
    survivors = results["main killed"]
    assert list(survivors) == [1, 2]
    for own in survivors.values():
        assert own["error"] == "PeerLostError"
        # Gloo says it in the words of where it noticed.
        gone = r"Another process of the run is gone \((Connection|Read|[Ww]rite)\w* [^\n]+\)"
        assert re.fullmatch(rf"{gone}: the state of step 3 is saved, start the same again to go on\.", own["message"])
    assert results["main resumed"][0]["resumed"]
    same(results["main resumed"][0]["losses"], results["plain"][0]["losses"])


def test_a_killed_process_with_a_part_of_the_state_leaves_the_last_saved_one(results):
    (own,) = results["other killed"].values()
    assert own["error"] == "PeerLostError"
    assert "only a part of the optimizer's state; start the same again to go on from step 2" in own["message"]
    assert results["other resumed"][0]["resumed"]
    for one in results["other resumed"].values():
        same(one["losses"], results["plain"][0]["losses"])


def test_a_process_without_memory_ends_all_with_a_saved_state(results):
    main, other = results["memory"].values()
    assert main["message"].startswith("Process 1 stopped: Out of memory at step 3, the state is saved: ")
    assert "switch shard_optimizer on" in other["message"]
    assert results.states("memory.work") == ["state-00000002.state"]


def test_no_number_in_one_process_is_seen_by_all_and_all_pairs_are_named(results):
    main, other = results["no number"].values()
    assert main["error"] == other["error"] == "DivergedError"
    assert main["message"] == other["message"]
    names = main["message"].partition("at step 3 with ")[2].partition(": ")[0]
    assert len(names.split(", ")) == 6
    assert results.states("no number.work") == ["state-00000002.state"]


def test_a_full_disk_in_the_main_process_ends_all(results):
    main, other = results["disk"].values()
    assert "No space left" in main["message"]
    assert other["message"] == f"Process 0 stopped: {main['message']}"
    assert results.states("disk.work") == ["state-00000002.state"]


def test_processes_that_would_train_different_things_are_refused(results):
    for own in results["seeds"].values():
        assert own["error"] == "ValueError"
        assert (
            "The processes do not have the same settings, first weights: give all of them one configuration" in own["message"]
        )
    assert results.states("seeds.work") == []


@pytest.mark.parametrize(
    ("steps", "processes", "sentence"),
    [
        (6, 4, "There are 4 processes and accumulation_steps is 6, .* start 1, 2, 3 or 6 processes, or .* multiple of 4"),
        (1, 2, "start 1 process, or set accumulation_steps to a multiple of 2"),
    ],
)
def test_a_number_of_processes_that_does_not_divide_is_refused(steps, processes, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_share(steps, processes)


def test_each_process_encodes_from_a_place_of_its_own_and_all_find_the_same(tmp_path):
    pairs = write_pairs(tmp_path / "pairs")
    whole = dataset_of(pairs)
    seen = {}
    for rank in range(3):
        encoders, cache = Encoders(), TensorCache(tmp_path / str(rank))
        found = encode_dataset(whole, encoders, encoders, cache, 1.0, share=Share(rank, 3))
        seen[rank] = found.items, found.digest, encoders.texts[:6]
    assert seen[0][:2] == seen[1][:2] == seen[2][:2]
    assert [seen[rank][2][0] for rank in range(3)] == ["number 0", "number 2", "number 4"]
    assert sorted(seen[2][2]) == sorted(seen[0][2]) == [f"number {n}" for n in range(6)]


def test_without_a_launcher_a_run_is_alone(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert isinstance(open_team(is_cpu=True), Alone)
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert isinstance(open_team(is_cpu=True), Alone)


def test_an_engine_that_wraps_models_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=r"ask for FSDP, .* choose multi-GPU .* shard_optimizer"):
        open_team(is_cpu=True)


def test_a_missing_accelerate_is_named_with_the_command(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "nextcontrol.training.team_accelerate", None)
    with pytest.raises(ValueError, match=r"2 processes were started .* 'python -m pip install accelerate'"):
        open_team(is_cpu=True)


def test_sharding_needs_an_optimizer_that_can_be_taken_apart():
    with pytest.raises(ValueError, match="shard_optimizer needs the optimizer adamw, and optimizer is 'adamw8bit'"):
        TrainConfig(shard_optimizer=True, optimizer="adamw8bit")
    assert TrainConfig(shard_optimizer=True).differences(TrainConfig()) == []
