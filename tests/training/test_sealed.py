"""A flipped bit is noticed, in every byte of a state and of a cache's file."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from nextcontrol.training.cache import TensorCache, file_digest
from nextcontrol.training.checkpoint import State, StateStore
from nextcontrol.training.durable import CannotWriteError, check_writable, write_tensors
from nextcontrol.training.metrics import MetricsFile
from nextcontrol.training.sealed import DamagedFileError
from safetensors.torch import load_file, save_file

KEY = "ab" * 20


def flips(path: Path, count: int):
    """The file with one bit flipped, in turn at many places."""
    whole, draw = path.read_bytes(), random.Random(0)  # noqa: S311 - places, not secrets
    for place in draw.sample(range(len(whole)), min(count, len(whole))):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        yield place
    path.write_bytes(whole)


def test_no_flipped_bit_of_a_cache_is_read(tmp_path):
    given = {"mean": torch.randn(4, 5, 6), "deviation": torch.ones(2)}
    TensorCache(tmp_path).write(KEY, **given)
    harmless = 0
    for place in flips(tmp_path / "ab" / f"{KEY}.safetensors", 2000):
        cache = TensorCache(tmp_path)
        if cache.has(KEY):  # the name of the checksum itself, or blanks in the header
            harmless += 1
            assert all(torch.equal(tensor, given[name]) for name, tensor in cache.read(KEY).items()), place
        else:
            with pytest.raises(DamagedFileError, match="start the training again"):
                cache.read(KEY)
    assert harmless < 60


def test_a_damaged_checksum_does_not_make_a_file_an_old_one(tmp_path):
    store = StateStore(tmp_path, keep=2)
    for step in (1, 2):
        store.save(State(step, {"x": torch.full((50,), step)}, {}))
    TensorCache(tmp_path).write(KEY, x=torch.ones(3))
    for path in (tmp_path / "ab" / f"{KEY}.safetensors", tmp_path / "state-00000002.state"):
        damaged = path.read_bytes().replace(b"nextcontrol.checksum", b"nextcontrol.bhecksum")
        path.write_bytes(damaged[:-1] + b"\1")
    assert not TensorCache(tmp_path).has(KEY)
    assert store.load().step == 1


def test_no_flipped_bit_of_a_state_is_trained_on(tmp_path, caplog):
    store = StateStore(tmp_path, keep=2)
    states = {step: State(step, {"x": torch.full((50,), step)}, {"config": f"{step}", "identity": {}}) for step in (1, 2)}
    for state in states.values():
        store.save(state)
    for place in flips(tmp_path / "state-00000002.state", 500):
        found = store.load()
        assert torch.equal(found.tensors["x"], states[found.step].tensors["x"]), place
        assert found.about == states[found.step].about, place
    assert "'state-00000002.state' is damaged (its checksum is another): the one before it is looked at" in caplog.text


def test_files_from_before_there_were_checksums_still_open(tmp_path):
    save_file({"x": torch.ones(3)}, tmp_path / "state-00000007.state", {"nextcontrol.state": '{"config": "{}"}'})
    assert StateStore(tmp_path, keep=1).load().step == 7
    (tmp_path / "ab").mkdir()
    save_file({"x": torch.ones(3)}, tmp_path / "ab" / f"{KEY}.safetensors")
    assert TensorCache(tmp_path).has(KEY)
    assert torch.equal(TensorCache(tmp_path).read(KEY)["x"], torch.ones(3))


def test_files_with_checksums_open_in_other_readers(tmp_path):
    TensorCache(tmp_path).write(KEY, x=torch.ones(3))
    assert torch.equal(load_file(tmp_path / "ab" / f"{KEY}.safetensors")["x"], torch.ones(3))


@pytest.mark.parametrize("about", ["[]", "{", "[" * 100_000, "null", '"text"'])
def test_a_state_whose_header_is_wrong_inside_is_passed_over(tmp_path, about):
    store = StateStore(tmp_path, keep=2)
    store.save(State(1, {"x": torch.ones(1)}, {}))
    save_file({"x": torch.zeros(1)}, tmp_path / "state-00000002.state", {"nextcontrol.state": about})
    assert store.load().step == 1


def test_what_is_no_file_is_no_state(tmp_path):
    (tmp_path / "state-00000003.state").mkdir()
    assert StateStore(tmp_path, keep=1).load() is None


def test_a_training_without_one_readable_state_is_not_begun_again(tmp_path):
    (tmp_path / "state-00000003.state").write_bytes(b"torn")
    with pytest.raises(DamagedFileError, match=r"No saved state in '.+' can be read"):
        StateStore(tmp_path, keep=1).load()
    assert (tmp_path / "state-00000003.state").read_bytes() == b"torn"


def test_the_state_just_written_stays_though_a_later_one_lies_there(tmp_path):
    store = StateStore(tmp_path, keep=1)
    for step in (10, 20):
        (tmp_path / f"state-000000{step}.state").write_bytes(b"torn")
    store.save(State(15, {"x": torch.ones(1)}, {}))
    assert [path.name for path in tmp_path.iterdir()] == ["state-00000015.state"]


def test_a_link_in_a_cache_is_neither_read_nor_written(tmp_path):
    cache, elsewhere = TensorCache(tmp_path / "cache"), tmp_path / "elsewhere"
    write_tensors(elsewhere / f"{KEY}.safetensors", {"x": torch.zeros(1)}, {})
    before = file_digest(elsewhere / f"{KEY}.safetensors")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "ab").symlink_to(elsewhere)
    assert not cache.has(KEY)
    with pytest.raises(ValueError, match="nothing is written through links"):
        cache.write(KEY, x=torch.ones(1))
    assert file_digest(elsewhere / f"{KEY}.safetensors") == before


def test_a_place_is_tried_without_a_trace(tmp_path):
    check_writable(tmp_path / "new" / "folder" / "x.safetensors", "x")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "x", Path("/proc/self/x")):
        with pytest.raises(
            CannotWriteError, match=r"'x' cannot be written \(.+\): free some space, or make its folder writable"
        ):
            check_writable(path, "x")


def test_bad_lines_of_the_numbers_are_passed_over(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.append(step=1, loss=1.0)
    bad = [b"\xff\xfe", b"[1]", b"{", b"[" * 100_000, b'{"step": "1"}', b'{"loss": 1}', b"null", b""]
    with metrics.path.open("ab") as stream:
        stream.write(
            b"\n".join([*bad, json.dumps({"step": 2, "name": "a\u2028b"}, ensure_ascii=False).encode(), b'{"step": 3'])
        )
    assert metrics.lines() == [{"step": 1, "loss": 1.0}, {"step": 2, "name": "a\u2028b"}]
    metrics.go_back_to(1)
    assert metrics.lines() == [{"step": 1, "loss": 1.0}]
