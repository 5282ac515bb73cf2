"""The files of a training: what cannot be written is said before anything is encoded, and what is torn is passed over."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from nextcontrol.nodes.host import train_files, train_preview
from nextcontrol.nodes.host.train_files import files_for
from nextcontrol.nodes.host.train_job import train as run_job
from nextcontrol.training import durable
from nextcontrol.training.checkpoint import StateStore
from nextcontrol.training.durable import CannotWriteError
from nextcontrol.training.lock import TakenError
from nextcontrol.training.sealed import DamagedFileError, read_sealed, write_sealed
from train_stand_ins import small_job, train, write_dataset

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pairs(base_folder):
    return write_dataset(base_folder, "file_pairs")


@pytest.fixture
def models(base_folder):
    return files_for("x").main.parent


def check_refused(base_folder, pairs, name, match, error=(ValueError, CannotWriteError)):
    """Refused with a sentence, before anything is encoded."""
    job = small_job(base_folder, pairs, name)
    with pytest.raises(error, match=match) as caught:
        run_job(job)
    assert str(caught.value).isprintable()
    assert not job.vae.seen
    assert not job.clip.seen


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("n" * 250, "too long for a file's name"),
        ("ü" * 125, "too long for a file's name"),
        ("a/" * 3000 + "b", "too long for a file's name"),
        ("CON", "names of devices"),
        ("sub/nul.x", "names of devices"),
        ("com1", "names of devices"),
        ("half \ud800", "must be a file name"),
    ],
)
def test_a_name_that_no_system_takes_is_refused_first(base_folder, pairs, name, reason):
    check_refused(base_folder, pairs, name, reason, ValueError)


def test_what_stands_in_the_way_is_said_first(base_folder, pairs, models):
    (models / "plain_file").write_text("kept", encoding="utf-8")
    check_refused(
        base_folder, pairs, "plain_file/new", "'plain_file/new.safetensors' cannot be written .+: free some space, or make"
    )
    (models / "held.training").write_text("kept", encoding="utf-8")
    check_refused(base_folder, pairs, "held", "'held.safetensors' cannot be written")
    (models / "folder.safetensors").mkdir()
    check_refused(base_folder, pairs, "folder", "'folder.safetensors' is there already")
    assert not (models / "folder.training").exists()


def test_a_read_only_folder_is_said_first(base_folder, pairs, models, monkeypatch):
    """The tests may run as a user who may write everywhere; /proc takes files from nobody."""
    if not Path("/proc/self").is_dir():
        pytest.skip("no folder that is read-only for everybody")
    monkeypatch.setattr(train_files, "first_place", lambda _kind: Path("/proc/self"))
    check_refused(base_folder, pairs, "x", "'x.safetensors' cannot be written", CannotWriteError)


def test_a_refused_training_leaves_no_folder(base_folder, pairs, models):
    check_refused(base_folder, "file_pairs", "new/folder/CON", "names of devices")
    with pytest.raises(ValueError, match="2 or more"):
        train(base_folder, pairs, "new/folder/x", dataset_settings={"subset": 1})
    assert not (models / "new" / "folder" / "x.training").exists()


def test_too_little_space_for_a_state_is_said_before_the_first_step(base_folder, pairs, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(train_files.shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    with pytest.raises(CannotWriteError, match=r"'full.safetensors' needs about \d+ MB .+ and 0 MB are free"):
        train(base_folder, pairs, "full")
    assert not files_for("full").metrics.exists()


def test_a_second_training_of_a_name_is_refused_and_the_first_goes_on(base_folder, pairs):
    files = files_for("twice")
    with files.lock:
        check_refused(base_folder, pairs, "twice", "'twice.safetensors' is being trained by process", TakenError)
    assert train(base_folder, pairs, "twice").files == ("twice.safetensors",)
    assert not list(files.folder.glob("*.lock"))


def test_unfinished_files_of_dead_runs_are_cleaned_and_those_of_others_stay(base_folder, pairs, models):
    files, other = files_for("clean"), files_for("clean_other")
    dead = [durable.new_name(files.main), durable.new_name(files.folder / "state-00000001.state")]
    alive = durable.new_name(other.main)
    for path in (*dead, alive):
        path.parent.mkdir(exist_ok=True)
        path.write_text("unfinished", encoding="utf-8")
    train(base_folder, pairs, "clean", steps=1)
    assert [path.exists() for path in (*dead, alive)] == [False, False, True]
    alive.unlink()


def test_a_preview_that_cannot_be_written_ends_nothing(base_folder, pairs, caplog, monkeypatch):
    files = files_for("no_previews")
    files.folder.mkdir()
    (files.folder / "previews").write_text("in the way", encoding="utf-8")
    drawn = {"preview_every": 2, "preview_steps": 1, "validation_pairs": 2}
    result = train(base_folder, pairs, "no_previews", **drawn)
    assert len(result.losses) == 4
    assert result.previews.shape == (1, 64, 64, 3)
    assert "The preview of step 2 is not kept: 'step-00000002.jpg' cannot be written" in caplog.text

    def short(*_):
        raise train_preview.comfy.model_management.OOM_EXCEPTION

    monkeypatch.setattr(train_preview, "sample", short)
    assert train(base_folder, pairs, "short", **drawn).losses == result.losses
    assert caplog.text.count("no memory for previews") == 1


def test_a_torn_preview_is_left_out(base_folder, caplog):
    files = files_for("torn")
    for step in (1, 2):
        files.write_preview(torch.full((3, 64, 64), step / 2), step)
    (files.previews_folder / "step-00000003.jpg").write_bytes((files.previews_folder / "step-00000001.jpg").read_bytes()[:200])
    (files.previews_folder / "step-00000004.jpg").mkdir()
    circle = files.previews_folder / "step-00000005.jpg"
    circle.symlink_to(circle)
    assert files.previews().shape == (2, 64, 64, 3)
    assert caplog.text.count("A preview is left out") == 3


def rewritten(path, change):
    """The state with something else inside, and a right checksum."""
    tensors, metadata = read_sealed(path, ["nextcontrol.state"])
    change(tensors, metadata)
    write_sealed(path, tensors, metadata)


def drop(part):
    return lambda tensors, _metadata: [tensors.pop(key) for key in list(tensors) if key.startswith(part)]


def about(**changes):
    def change(_tensors, metadata):
        metadata["nextcontrol.state"] = json.dumps({**json.loads(metadata["nextcontrol.state"]), **changes})

    return change


def shape(part):
    def change(tensors, _metadata):
        key = next(key for key in tensors if key.startswith(part))
        tensors[key] = torch.zeros(3, 3, 3)

    return change


CHANGES = {
    "no weights": drop("weights|"),
    "no losses": drop("history|"),
    "no moments": drop("optimizer|"),
    "another shape": shape("weights|"),
    "another moment": shape("optimizer|"),
    "other losses": shape("history|"),
    "config": about(config=[1]),
    "no config": about(config="{"),
    "identity": about(identity="text"),
    "unknown moment": lambda tensors, _metadata: tensors.update({"optimizer|unknown/exp_avg": torch.zeros(1)}),
}


@pytest.fixture(scope="module")
def begun(base_folder, pairs):
    """A training of four steps with the states of two of them, and its file."""
    train(base_folder, pairs, "begun")
    return files_for("begun").folder


@pytest.mark.parametrize("case", CHANGES)
def test_a_state_that_is_wrong_inside_gives_way_to_the_one_before(base_folder, pairs, begun, case, caplog):
    work = begun.with_name(f"wrong_{list(CHANGES).index(case)}.training")
    shutil.copytree(begun, work)
    rewritten(work / "state-00000004.state", CHANGES[case])
    result = train(base_folder, pairs, work.stem)
    assert "'state-00000004.state' is damaged" in caplog.text
    ours, expected = (read_sealed(folder / "state-00000004.state", ["nextcontrol.state"])[0] for folder in (work, begun))
    assert all(torch.equal(ours[key], expected[key]) for key in expected)
    assert len(result.losses) == 4


def test_a_training_whose_states_are_all_wrong_is_not_begun_again(base_folder, pairs, begun):
    work = begun.with_name("all_wrong.training")
    shutil.copytree(begun, work)
    for path in work.glob("*.state"):
        rewritten(path, CHANGES["no weights"])
    with pytest.raises(DamagedFileError, match="train under another name"):
        train(base_folder, pairs, "all_wrong")
    assert len(list(work.glob("*.state"))) == 2
    assert StateStore(work, 2).load().step == 4
