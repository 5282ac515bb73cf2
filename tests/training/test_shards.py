"""Training from encoded shards: exact, in an order of its own, the same for any number of processes and after a resume."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
import torch
from bench_shards import resident_megabytes, write_encoded
from nextcontrol.training.backbone import ALONE, Share
from nextcontrol.training.dataset import ShardSettings
from nextcontrol.training.shard_order import Buffer, ShardOrder
from nextcontrol.training.source import CachedPair, draw_row, held_out_batches
from nextcontrol.training.tar_files import DamagedShardError
from shard_files import CONFIG, OBJECTIVE, encode, raw_samples, same, sharded, source_of, write_raw
from tiny_training import encoded, tiny_run

PAIRS = 23


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder of pairs, the same in tar shards, and both encoded in fp32."""
    folder = tmp_path_factory.mktemp("shards")
    samples = raw_samples(folder / "pairs", PAIRS)
    write_raw(folder / "raw", samples, 6)
    encode(sharded(folder / "pairs"), folder / "pairs_encoded")
    encode(sharded(folder / "raw"), folder / "raw_encoded")
    return folder


def names(batches):
    return [name for batch in batches for name in batch.names]


def test_rows_are_those_of_a_folder_bit_for_bit(work):
    dataset = encoded(work / "pairs")
    items = {item.name: item for item in dataset.items}
    source = source_of(work / "pairs_encoded", config=dataclasses.replace(CONFIG, batch_size=1))
    for step in (0, 7):
        for slot, batch in enumerate(source.batches(step)):
            pair = CachedPair(dataset, items[batch.names[0]])
            assert same([batch], [draw_row(pair, step, slot, CONFIG.seed, OBJECTIVE, dataset.settings.prompt_dropout)])


def test_held_out_pairs_are_the_first_ones_and_are_never_trained_on(work):
    dataset = encoded(work / "pairs")
    source = source_of(work / "pairs_encoded")
    assert same(source.held_out(), held_out_batches(dataset, dataset.items[:3], CONFIG.seed, OBJECTIVE))
    trained = {name for step in range(10) for name in names(source.batches(step))}
    assert trained == {item.name for item in dataset.items[3:]}


def test_an_epoch_sees_every_pair_once_in_an_order_of_its_own(work):
    source = source_of(work / "raw_encoded", config=dataclasses.replace(CONFIG, batch_size=1, accumulation_steps=1))
    seen = [names(source.batches(step))[0] for step in range(40)]
    first, second = seen[:20], seen[20:]
    assert len(set(first)) == len(set(second)) == 20
    assert sorted(first) == sorted(second) != first
    assert first != second
    shards = [[name.split("/")[0] for name in epoch] for epoch in (first, second)]
    # A buffer of 7 mixes neighbours of the stream, and no more: the first seven are of two or three shards.
    assert all(1 < len(set(epoch[:7])) <= 3 for epoch in shards)


def test_shards_of_tar_files_and_of_a_folder_hold_the_same(work):
    ours, theirs = (source_of(work / folder).held_out() for folder in ("pairs_encoded", "raw_encoded"))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.latents, b.latents)
        assert torch.equal(a.hints, b.hints)
        assert torch.equal(a.context, b.context)


@pytest.mark.parametrize("processes", [2, 3])
def test_shares_together_are_the_batches_of_one_process(work, processes):
    whole = source_of(work / "raw_encoded")
    parts = [source_of(work / "raw_encoded") for _ in range(processes)]
    for step in range(5):
        shares = [part.batches(step, Share(rank, processes)) for rank, part in enumerate(parts)]
        assert same(whole.batches(step, ALONE), [batch for share in shares for batch in share])


def test_a_process_keeps_the_pairs_of_its_own_rows_alone(work):
    whole, part = source_of(work / "raw_encoded"), source_of(work / "raw_encoded")
    whole.batches(0, ALONE)
    part.batches(0, Share(1, 2))
    kept, own = (source._now[1].keys() for source in (whole, part))
    assert 0 < len(own) < len(kept)
    assert own == {place for place in kept if place % CONFIG.group_size >= CONFIG.group_size // 2}


def test_a_resumed_source_goes_on_as_an_uninterrupted_one_and_skips_shards_unread(work, monkeypatch):
    whole = source_of(work / "raw_encoded", buffer_size=4)
    expected = [whole.batches(step) for step in range(6)]
    opened = []
    resumed = source_of(work / "raw_encoded", buffer_size=4)
    read = type(resumed.shards).read

    def watched(shards, entry):
        # The other source still reads ahead.
        if shards is resumed.shards:
            opened.append(entry.file)
        return read(shards, entry)

    monkeypatch.setattr(type(resumed.shards), "read", watched)
    assert same(resumed.batches(1), expected[1])
    order = source_of(work / "raw_encoded", buffer_size=4).order
    first = order.place(0, order.start_of(order.buffer_at(12)))
    assert opened[0] == f"shard-{first.shard:06d}.tar"
    assert same(resumed.batches(5), expected[5])
    assert same(resumed.batches(0), expected[0])  # backwards as well


def test_a_training_from_shards_stopped_and_resumed_is_the_uninterrupted_one(work, tmp_path):
    def run(name, steps):
        config = {"steps": steps, "save_every": 2, "sensitivity_every": 0, "validation_pairs": 3}
        run = tiny_run(tmp_path / name, work / "pairs", **config)
        run.source = source_of(work / "raw_encoded", config=run.trainer.config)
        run.held_out = run.source.held_out()
        run.resume()
        with torch.inference_mode(mode=False), torch.enable_grad():
            run.train()
        return run.trainer

    with torch.inference_mode(mode=False):
        whole = run("whole", 9)
        run("resumed", 4)
        resumed = run("resumed", 9)
    assert resumed.losses == whole.losses
    assert all(torch.equal(tensor, whole.result()[key]) for key, tensor in resumed.result().items())


def test_pixel_hints_are_those_of_a_folder(work, tmp_path):
    from nextcontrol.training.cache import TensorCache
    from nextcontrol.training.encode import encode_dataset
    from tiny_training import Encoders, dataset_of

    encode(sharded(work / "pairs"), tmp_path / "encoded", hint_form="pixels")
    kept = encode_dataset(dataset_of(work / "pairs"), Encoders(), Encoders(), TensorCache(tmp_path / "c"), 1.0, "pixels")
    theirs = held_out_batches(kept, kept.items[:3], CONFIG.seed, OBJECTIVE)
    assert theirs[0].hints.shape == (len(OBJECTIVE.held_out()), 3, 64, 64)
    assert same(source_of(tmp_path / "encoded").held_out(), theirs)


def test_mirrored_pairs_are_those_of_a_folder(work, tmp_path):
    encode(sharded(work / "pairs", has_flip=True), tmp_path / "encoded")
    dataset = encoded(work / "pairs", has_flip=True)
    items = {item.name: item for item in dataset.items}
    source = source_of(tmp_path / "encoded", has_flip=True, config=dataclasses.replace(CONFIG, batch_size=1))
    rows = list(enumerate(source.batches(0)))
    pairs = [CachedPair(dataset, items[batch.names[0]]) for _, batch in rows]
    expected = [draw_row(pair, 0, slot, CONFIG.seed, OBJECTIVE, 0.3) for pair, (slot, _) in zip(pairs, rows, strict=True)]
    assert same([batch for _, batch in rows], expected)
    plain = source_of(tmp_path / "encoded", config=dataclasses.replace(CONFIG, batch_size=1)).batches(0)
    assert not same(plain, expected)


def test_half_precision_is_near(work, tmp_path):
    encode(sharded(work / "pairs", ShardSettings(pairs_per_shard=5)), tmp_path / "half")
    whole, half = (source_of(folder).held_out() for folder in (work / "pairs_encoded", tmp_path / "half"))
    for a, b in zip(whole, half, strict=True):
        assert torch.allclose(a.latents, b.latents, atol=2e-3)
        assert not torch.equal(a.latents, b.latents)


@pytest.mark.parametrize(
    ("counts", "held_out", "buffer"), [([5, 3, 8, 1], 2, 4), ([1, 1, 9], 3, 100), ([4, 4], 0, 1), ([7], 6, 3)]
)
def test_every_place_comes_once_in_each_epoch(counts, held_out, buffer):
    order = ShardOrder(counts, held_out, buffer, seed=1)
    places = [(shard, index) for shard, count in enumerate(counts) for index in range(count)][held_out:]
    assert order.total == len(places)
    for epoch in (0, 1, 2):
        current, at = Buffer(epoch, 0), {}
        while current.epoch == epoch:
            assert order.buffer_at(order.first_of(current)) == current
            at |= {run: tuple(order.place(epoch, stream)) for stream, run in order.shuffled(current).items()}
            current = order.after(current)
        assert sorted(at) == list(range(epoch * order.total, (epoch + 1) * order.total))
        assert Counter(at.values()) == Counter(places)


def test_the_shards_of_every_epoch_come_in_an_order_of_their_own():
    order = ShardOrder([1] * 12, 0, 4, seed=0)
    first, second = ([order.place(epoch, position).shard for position in range(12)] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(12))
    assert list(range(12)) != first != second
    other = ShardOrder([1] * 12, 0, 4, seed=1)
    assert first != [other.place(0, position).shard for position in range(12)]


def test_a_cut_off_shard_is_named(work, tmp_path):
    folder = copy(work / "raw_encoded", tmp_path)
    shard = folder / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[:5000])
    with pytest.raises(DamagedShardError, match=r"'shard-000001\.tar' is cut off \(5000 of \d+ bytes\).*--precompute again"):
        source_of(folder)


def test_missing_shards_are_left_out_only_when_asked_and_the_rest_keeps_an_order(work, tmp_path, caplog):
    folder = copy(work / "raw_encoded", tmp_path)
    (folder / "shard-000002.tar").unlink()
    with pytest.raises(DamagedShardError, match=r"'shard-000002\.tar' is missing: run .* or set bad_pairs to skip"):
        source_of(folder)
    source = source_of(folder, is_skipping=True)
    assert "Left out with 6 of 23 pairs" in caplog.text
    assert source.order.total == PAIRS - 6 - 3
    seen = Counter(name for step in range(7) for name in names(source.batches(step)))
    assert len(seen) == source.order.total
    assert same(source_of(folder, is_skipping=True).batches(4), source.batches(4))


def test_a_shard_that_is_damaged_inside_is_named_when_it_is_read(work, tmp_path):
    folder = copy(work / "raw_encoded", tmp_path)
    shard = folder / "shard-000001.tar"
    data = bytearray(shard.read_bytes())
    data[512 * 8 : 512 * 40] = bytes(512 * 32)  # zeros end a tar file
    shard.write_bytes(data)
    source = source_of(folder)
    with pytest.raises(DamagedShardError, match=r"'shard-000001\.tar' (has|cannot be read).*delete it and run"):
        [source.batches(step) for step in range(3)]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory in use is read from /proc")
def test_memory_does_not_grow_with_the_number_of_pairs(tmp_path):
    size = write_encoded(tmp_path, 4000, 500, context=(32, 128))
    config = dataclasses.replace(CONFIG, steps=10**6, batch_size=50, accumulation_steps=1)
    source = source_of(tmp_path, 200, config, empty={"context": torch.zeros(32, 128)})
    held = []
    for step in range(source.order.total // 50):
        source.batches(step)
        held.append(resident_megabytes())
    assert size > 40e6
    # Four buffers into the pass everything is in use that is ever used.
    assert max(held) - held[16] < 8


def test_too_many_held_out_pairs_are_refused(work):
    with pytest.raises(ValueError, match="has 23 pairs and validation_pairs is 23: hold out fewer"):
        source_of(work / "raw_encoded", config=dataclasses.replace(CONFIG, validation_pairs=23))


def copy(folder: Path, target: Path) -> Path:
    import shutil

    return shutil.copytree(folder, target / folder.name)
