"""Nothing is lost: states, resume, cancel, kill, full disks, and what a run that breaks off leaves behind."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nextcontrol.training import durable
from nextcontrol.training.checkpoint import State, StateStore
from nextcontrol.training.durable import write_tensors
from nextcontrol.training.loop import Hooks, OutOfMemoryError
from nextcontrol.training.sealed import write_sealed
from nextcontrol.training.trainer import DivergedError
from safetensors.torch import load_file
from tiny_training import tiny_run, write_pairs

pytestmark = pytest.mark.usefixtures("one_thread", "gradients")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data") / "pairs")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, pairs):
    """A run that nothing happened to."""
    work = tmp_path_factory.mktemp("whole")
    with torch.inference_mode(mode=False), torch.enable_grad():
        run = tiny_run(work, pairs)
        run.train()
    return run


class InterruptError(Exception):
    """As the host's: an ordinary exception."""


def stop_at_once(_step, _share):
    raise InterruptError


def stop_at(step):
    def on_step(trainer, report):
        if report.step == step:
            raise InterruptError

    return Hooks(on_step=on_step)


def assert_same(run, other):
    for key, tensor in run.trainer.method.condition.tensors().items():
        assert torch.equal(tensor, other.trainer.method.condition.tensor(key)), key
    assert run.trainer.losses == other.trainer.losses
    keys = ("step", "loss", "learning_rate", "grad_norm", "sensitivity_shuffled")
    ours, theirs = ([[line.get(key) for key in keys] for line in r.metrics.lines()] for r in (run, other))
    assert ours == theirs


def test_a_run_learns_to_listen(whole):
    looks = {line["step"]: line["sensitivity_shuffled"] for line in whole.metrics.lines() if "sensitivity_shuffled" in line}
    assert list(looks) == [0, 6, 12]
    assert looks[12] != looks[0]
    assert len(whole.trainer.losses) == 12
    assert len({line["loss"] for line in whole.metrics.lines() if "loss" in line}) == 12


def test_a_run_that_breaks_off_before_its_first_update_starts_again(tmp_path, pairs, whole):
    run = tiny_run(tmp_path, pairs)
    run.source.batches = stop_at_once
    with pytest.raises(InterruptError):
        run.train()
    again = tiny_run(tmp_path, pairs)
    assert again.resume()
    again.train()
    assert_same(again, whole)


@pytest.mark.parametrize("step", [1, 3, 7])
def test_a_cancelled_run_goes_on_as_if_nothing_had_been(tmp_path, pairs, whole, step):
    with pytest.raises(InterruptError):
        tiny_run(tmp_path, pairs, stop_at(step)).train()
    run = tiny_run(tmp_path, pairs)
    assert run.resume()
    assert run.trainer.step == step
    run.train()
    assert_same(run, whole)


def test_the_average_is_resumed_too(tmp_path, pairs):
    changes = {"ema_decay": 0.5, "schedule": "cosine", "warmup_steps": 2, "max_grad_norm": 0.5, "min_snr_gamma": 5.0}
    undisturbed = tiny_run(tmp_path / "a", pairs, **changes)
    undisturbed.train()
    with pytest.raises(InterruptError):
        tiny_run(tmp_path / "b", pairs, stop_at(5), **changes).train()
    run = tiny_run(tmp_path / "b", pairs, **changes)
    run.resume()
    run.train()
    assert_same(run, undisturbed)
    average, weights = undisturbed.trainer.result(), undisturbed.trainer.method.condition.tensors()
    assert any(not torch.equal(average[key], weights[key]) for key in weights)
    assert all(torch.equal(average[key], tensor) for key, tensor in run.trainer.result().items())


def test_an_interrupted_run_saves_before_it_raises(tmp_path, pairs):
    order = []
    hooks = stop_at(2)
    hooks.on_save = lambda trainer: order.append(trainer.step)
    with pytest.raises(InterruptError):
        tiny_run(tmp_path, pairs, hooks).train()
    assert order == [2]
    assert [path.name for path in (tmp_path / "lora.training").glob("*.state")] == ["state-00000002.state"]


def test_the_last_states_are_kept(whole):
    assert sorted(path.name for path in whole.store.folder.glob("*.state")) == ["state-00000009.state", "state-00000012.state"]
    assert not list(whole.store.folder.glob(".*"))


def test_a_state_that_cannot_be_deleted_ends_no_run(tmp_path, monkeypatch, caplog):
    store = StateStore(tmp_path, keep=1)

    def refuse(path, missing_ok=False):
        raise PermissionError(13, "Permission denied")

    for step in (1, 2):
        with monkeypatch.context() as patch:
            if step == 2:
                patch.setattr(Path, "unlink", refuse)
            store.save(State(step, {"x": torch.zeros(1)}, {}))
    assert "'state-00000001.state' cannot be deleted" in caplog.text
    assert store.load().step == 2


def test_a_finished_run_has_nothing_left_to_do_and_more_steps_go_on(tmp_path, pairs, whole):
    tiny_run(tmp_path, pairs, steps=6).train()
    again = tiny_run(tmp_path, pairs, steps=6)
    assert again.resume()
    again.train()
    assert again.trainer.step == 6
    longer = tiny_run(tmp_path, pairs, steps=12)
    longer.resume()
    longer.train()
    for key, tensor in whole.trainer.method.condition.tensors().items():
        assert torch.equal(tensor, longer.trainer.method.condition.tensor(key))


def test_another_run_is_refused_with_every_reason(tmp_path, pairs):
    tiny_run(tmp_path, pairs, steps=3).train()
    other = tiny_run(tmp_path, pairs, steps=3, learning_rate=2e-2, batch_size=2)
    other.identity["base"] = "another"
    with pytest.raises(ValueError, match=r"lora\.training") as caught:
        other.resume()
    for reason in ("learning_rate was 0.01 and is 0.02", "batch_size was 1 and is 2", "the base changed"):
        assert reason in str(caught.value)
    shorter = tiny_run(tmp_path, pairs, steps=2)
    with pytest.raises(ValueError, match="3 steps are done and steps is 2"):
        shorter.resume()


def test_a_state_from_before_there_was_a_choice_of_methods_goes_on(tmp_path, pairs):
    run = tiny_run(tmp_path, pairs, steps=2)
    run.train()
    again = tiny_run(tmp_path, pairs, steps=3)
    again.identity["method"] = "ctrlora"
    assert again.resume()
    other = tiny_run(tmp_path, pairs, steps=3)
    other.identity["method"] = "controlnext"
    with pytest.raises(ValueError, match="the method changed"):
        other.resume()


def test_a_damaged_state_gives_way_to_the_one_before(tmp_path, pairs, whole):
    tiny_run(tmp_path, pairs, steps=9).train()
    last = tmp_path / "lora.training" / "state-00000009.state"
    last.write_bytes(last.read_bytes()[:1000])
    run = tiny_run(tmp_path, pairs)
    assert run.resume()
    assert run.trainer.step == 6
    run.train()
    assert_same(run, whole)


def test_no_number_stops_the_run_and_names_step_and_pair(tmp_path, pairs):
    run = tiny_run(tmp_path, pairs)
    original = run.source.batches

    def poisoned(step, share):
        batches = original(step, share)
        return [batch._replace(latents=batch.latents * float("nan")) for batch in batches] if step == 4 else batches

    run.source.batches = poisoned
    name = original(4)[0].names[0]
    with pytest.raises(DivergedError, match=f"step 5 with {name}"):
        run.train()
    again = tiny_run(tmp_path, pairs)
    again.resume()
    assert again.trainer.step == 4
    assert all(torch.isfinite(tensor).all() for tensor in again.trainer.method.condition.tensors().values())


def test_out_of_memory_saves_and_says_what_to_change(tmp_path, pairs):
    run = tiny_run(tmp_path, pairs, batch_size=2)
    update = run.trainer.update

    def full(batches):
        if run.trainer.step == 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return update(batches)

    run.trainer.update = full
    with pytest.raises(OutOfMemoryError, match="step 3, the state is saved: halve batch_size and double") as caught:
        run.train()
    assert "gradient_checkpointing" in str(caught.value)
    assert run.saved_step == 2


def test_a_break_within_an_update_leaves_the_state_before(tmp_path, pairs, whole):
    run = tiny_run(tmp_path, pairs)
    step = run.trainer.optimizer.step

    def broken(*arguments):
        if run.trainer.step == 7:
            next(iter(run.trainer.method.condition.parameters())).data.fill_(99)
            raise KeyboardInterrupt
        return step(*arguments)

    run.trainer.optimizer.step = broken
    with pytest.raises(KeyboardInterrupt):
        run.train()
    again = tiny_run(tmp_path, pairs)
    again.resume()
    assert again.trainer.step == 6
    again.train()
    assert_same(again, whole)


def test_two_writers_of_one_file_do_not_meet(tmp_path, monkeypatch):
    path, save = tmp_path / "a.safetensors", durable.save_file

    def save_while_another_does(tensors, temporary, metadata):
        save(tensors, temporary, metadata)
        if tensors["x"].any():
            write_tensors(path, {"x": torch.zeros(10)}, {})

    monkeypatch.setattr(durable, "save_file", save_while_another_does)
    write_tensors(path, {"x": torch.ones(10)}, {})
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert load_file(path)["x"].sum() == 10


def test_a_file_is_replaced_and_never_written_into(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"x": torch.zeros(1000)}, {})
    before = path.read_bytes()
    with path.open("rb") as reader:
        write_tensors(path, {"x": torch.ones(1000)}, {})
        assert reader.read() == before
    assert torch.equal(load_file(path)["x"], torch.ones(1000))
    assert [found.name for found in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_full_disk_leaves_the_state_before(tmp_path):
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    store = StateStore(tmp_path, keep=1)
    store.save(State(1, {"x": torch.ones(100)}, {"config": "a"}))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.raises(OSError, match=r"."):
            store.save(State(2, {"x": torch.ones(1_000_000)}, {"config": "a"}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["state-00000001.state"]
    state = store.load()
    assert state is not None
    assert torch.equal(state.tensors["x"], torch.ones(100))


def test_a_run_survives_a_disk_that_is_full_when_it_is_cancelled(tmp_path, pairs, monkeypatch, caplog):
    run = tiny_run(tmp_path, pairs, stop_at(4))

    def write(path, tensors, metadata):
        if run.trainer.step > 3:
            raise OSError(28, "No space left on device")
        write_sealed(path, tensors, metadata)

    monkeypatch.setattr("nextcontrol.training.checkpoint.write_sealed", write)
    with pytest.raises(InterruptError):
        run.train()
    assert "No space left" in caplog.text
    assert [path.name for path in run.store.folder.glob("*.state")] == ["state-00000003.state"]


def test_kills_change_nothing():
    script = Path(__file__).parent / "kill_stress.py"
    if not hasattr(__import__("os"), "fork"):
        pytest.skip("no fork on this system")
    answer = subprocess.run([sys.executable, str(script), "--kills", "3"], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert re.fullmatch(r"3 kills in \d runs?: the same weights and losses\n", answer.stdout)


def test_saved_files_hold_exactly_the_published_keys(whole):
    saved = load_file(whole.store.folder.parent / "lora.safetensors")
    assert set(saved) == {f"control_model.{key}" for key in whole.trainer.method.condition.tensors()}
    usual = whole.store.folder / "usual"
    usual.touch()
    modes = {path.stat().st_mode for path in (usual, whole.store.folder.parent / "lora.safetensors")}
    usual.unlink()
    assert len(modes) == 1
