"""Encoding into shards: in parts, killed and gone on with, stale or of another encoder, and what is said about bad pairs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from nextcontrol.training.chunks import check_settings, chunks_of
from nextcontrol.training.dataset import DatasetSettings, ShardSettings
from nextcontrol.training.precompute import WHOLE, Part
from nextcontrol.training.shard_index import check_sources, has_index, load_index
from nextcontrol.training.tar_files import DamagedShardError, read_samples
from nextcontrol.training.tar_writer import write_samples
from shard_files import encode, encoder_of, raw_samples, same, sharded, source_of, write_raw
from tiny_training import Encoders, write_pairs

ROOT = Path(__file__).resolve().parents[2]
CHILD = """
import sys, time
sys.path[:0] = [{root!r} + "/tests", {root!r} + "/scripts"]
sys.path += {path!r}
from host_library import import_pack
import_pack()
import torch
torch.set_num_threads(1)
from pathlib import Path
from nextcontrol.training.precompute import WHOLE, Part
from shard_files import encode, sharded
encode(sharded(Path({raw!r})), Path({out!r}), Part({number}, {count}), on_pair=lambda *_: time.sleep({pause}))
"""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return raw_samples(tmp_path_factory.mktemp("pairs"), 17)


@pytest.fixture(scope="module")
def raw(samples, tmp_path_factory):
    """17 pairs in four tar shards."""
    return write_raw(tmp_path_factory.mktemp("raw"), samples, 5)


@pytest.fixture(scope="module")
def whole(raw, tmp_path_factory):
    """What one undisturbed process makes of them."""
    folder = tmp_path_factory.mktemp("whole")
    assert encode(sharded(raw), folder) == (4, 0, 0)
    return files_in(folder)


def files_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def start_child(raw, out, part=WHOLE, pause=0.0):
    text = CHILD.format(root=str(ROOT), path=sys.path, raw=str(raw), out=str(out), number=part[0], count=part[1], pause=pause)
    return subprocess.Popen([sys.executable, "-B", "-c", text])


def test_of_two_parts_side_by_side_one_is_killed_and_gone_on_with_and_all_is_as_of_one_process(raw, whole, tmp_path):
    calm, hit = (start_child(raw, tmp_path, Part(number, 2), pause=0.1 * number) for number in range(2))
    give_up = time.monotonic() + 120
    while (
        not (is_open := (tmp_path / "shard-000001.json").exists() and has_open_shard(tmp_path)) and time.monotonic() < give_up
    ):
        time.sleep(0.01)
    assert is_open
    hit.send_signal(signal.SIGKILL)
    assert (hit.wait(), calm.wait(timeout=120)) == (-signal.SIGKILL, 0)
    left = files_in(tmp_path)  # without the open shard, if the other process began after the kill and cleaned up
    assert {name for name in left if not name.startswith(".")} == {
        f"shard-00000{number}.{suffix}" for number in (0, 1, 2) for suffix in ("tar", "json")
    }
    assert all(left[name] == whole[name] for name in left if not name.startswith("."))
    encoders = Encoders()
    assert encode(sharded(raw), tmp_path, Part(1, 2), encoders) == (1, 1, 0)
    assert len(encoders.pictures) == 2 * 2  # the last shard has two pairs
    assert files_in(tmp_path) == whole


def has_open_shard(folder):
    return any(folder.glob(".shard-000003.tar.*.part"))


def test_the_index_waits_for_the_last_part(raw, whole, tmp_path):
    assert encode(sharded(raw), tmp_path, Part(1, 2)) == (2, 0, 2)
    assert not has_index(tmp_path)
    assert encode(sharded(raw), tmp_path, Part(0, 2)) == (2, 0, 0)
    assert files_in(tmp_path) == whole
    encoders = Encoders()
    assert encode(sharded(raw), tmp_path, encoders=encoders) == (0, 4, 0)
    assert not encoders.pictures


def test_the_index_says_what_is_there(whole, raw):
    index = json.loads(whole["index.json"])
    assert (index["pairs"], index["left_out"], len(index["shards"])) == (17, 0, 4)
    assert [row["count"] for row in index["shards"]] == [5, 5, 5, 2]
    assert index["bytes"] == sum(len(data) for name, data in whole.items() if name.endswith(".tar"))
    assert {"VAE": "tiny", "text encoder": "tiny", "hint form": "latent", "resolution": "64"}.items() <= index[
        "made_from"
    ].items()


def test_another_encoder_or_setting_is_named(raw, tmp_path):
    encode(sharded(raw), tmp_path, Part(0, 4))
    with pytest.raises(ValueError, match="encoded shards of other settings: VAE was tiny and is other; text encoder was"):
        encode(sharded(raw), tmp_path, encoders=Encoders("other"))
    with pytest.raises(ValueError, match=r"the VAE is another.*Encode into another folder \(dataset\.shards\.folder\)"):
        encode(sharded(raw), tmp_path, encoders=Encoders("o" * 40))
    with pytest.raises(ValueError, match="resolution was 64 and is 128; precision was fp32 and is fp16"):
        encode(sharded(raw, ShardSettings(), resolution=128), tmp_path)
    encode(sharded(raw), tmp_path)
    with pytest.raises(ValueError, match="'x' are of other settings: hint form was latent and is pixels"):
        load_index(tmp_path).check_made_from({"hint form": "pixels", "VAE": "tiny"}, "x")


def test_pairs_that_changed_are_named_and_encoded_anew(tmp_path, caplog):
    pairs = write_pairs(tmp_path / "pairs", 8)
    out = tmp_path / "out"
    encode(sharded(pairs), out)
    before = files_in(out)
    (pairs / "target" / "006.txt").write_text("another caption")
    sources = [chunk.source() for chunk in chunks_of(sharded(pairs))]
    with pytest.raises(ValueError, match=r"The pairs of shard-000001\.tar in 'out' have changed since they were encoded"):
        check_sources(load_index(out), sources, "out")
    assert encode(sharded(pairs), out) == (1, 1, 0)
    assert "'shard-000001.tar' is encoded anew" in caplog.text
    changed = {name for name, data in files_in(out).items() if data != before[name]}
    assert changed == {"shard-000001.tar", "shard-000001.json", "index.json"}
    check_sources(load_index(out), sources, "out")
    with pytest.raises(ValueError, match="has 2 encoded shards and the pairs now make 1"):
        check_sources(load_index(out), sources[:1], "out")


def without(sample, *suffixes):
    return {key: value for key, value in sample.items() if key not in suffixes}


BAD = [
    (lambda s: without(s, "hint.png"), r"'0000\.tar/002' has no hint \(it has target\.png, txt\): add '002\.hint\.png'"),
    (lambda s: without(s, "target.png"), r"'0000\.tar/002' has no target"),
    (lambda s: s | {"target.png": s["target.png"][:90]}, r"'0000\.tar/002' is no readable picture"),
    (lambda s: s | {"hint.png": b""}, r"'0000\.tar/002\.hint\.png' is no readable picture"),
    (lambda s: without(s, "txt") | {"json": b"{"}, r"The \.json of '0000\.tar/002' is damaged"),
]


@pytest.mark.parametrize(("spoil", "sentence"), BAD)
def test_a_bad_sample_is_named_and_left_out_only_when_asked(samples, tmp_path, caplog, spoil, sentence):
    bad = [spoil(sample) if sample["__key__"] == "002" else sample for sample in samples[:6]]
    raw = write_raw(tmp_path / "raw", bad, 4)
    with pytest.raises(ValueError, match=sentence):
        encode(sharded(raw), tmp_path / "out")
    assert not (tmp_path / "out" / "shard-000000.tar").exists()
    assert encode(sharded(raw, bad_pairs="skip"), tmp_path / "out") == (2, 0, 0)
    assert "Left out: " in caplog.text
    index = load_index(tmp_path / "out")
    assert [(entry.count, entry.left_out) for entry in index.shards] == [(3, 1), (2, 0)]
    # Whoever refuses bad pairs later does not get shards that someone else let pass.
    with pytest.raises(ValueError, match=sentence):
        encode(sharded(raw), tmp_path / "out")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:3000]), r"The shard '0001\.tar' is cut off, or no tar file: copy"),
        (lambda path: path.write_bytes(first_sample(path)), r"The shard '0001\.tar' is cut off"),
        (lambda path: path.write_bytes(b"x" * 3000), r"The shard '0001\.tar' is cut off, or no tar file"),
        (lambda path: path.write_bytes(path.read_bytes()[:3000] + bytes(1024)), r"The shard '0001\.tar' cannot be read"),
        (lambda path: path.write_bytes(bytes(10240)), r"The shard '0001\.tar' is empty"),
        (lambda path: path.write_bytes(b""), r"The shard '0001\.tar' is cut off"),
    ],
)  # fmt: skip
def test_a_damaged_tar_shard_is_named_and_left_out_whole_only_when_asked(samples, tmp_path, caplog, spoil, sentence):
    raw = write_raw(tmp_path / "raw", samples[:12], 4)
    spoil(raw / "0001.tar")
    with pytest.raises(DamagedShardError, match=sentence):
        encode(sharded(raw), tmp_path / "out")
    assert encode(sharded(raw, bad_pairs="skip"), tmp_path / "out") == (2, 1, 0)
    assert "Left out: The shard '0001.tar'" in caplog.text
    assert [entry.count for entry in load_index(tmp_path / "out").shards] == [4, 0, 4]
    source, again = (source_of(tmp_path / "out", buffer_size=3) for _ in range(2))
    assert source.order.total == 8 - 3
    assert same(source.batches(3), again.batches(3))


def first_sample(path):
    """A tar file cut off between two of its files, which no tar reader sees."""
    data = path.read_bytes()
    end = next(start for start in range(512, len(data), 512) if data[start : start + 3] == b"005")
    return data[:end]


def test_a_file_twice_in_a_sample_is_refused(samples, tmp_path):
    twice = [samples[0], samples[0]]
    write_samples(tmp_path / "raw" / "0000.tar", twice)
    with pytest.raises(DamagedShardError, match="duplicate file name"):
        encode(sharded(tmp_path / "raw"), tmp_path / "out")


@pytest.mark.parametrize(
    ("names", "caption"),
    [
        (("jpg", "hint.png", "json"), b'{"caption": "number  0"}'),
        (("image.png", "source.png", "caption.txt"), b"number 0"),
        (("png", "conditioning.png", "prompt.txt"), b" number 0\n"),
        (("TARGET.PNG", "CONTROL.PNG", "TXT"), b"number 0"),
    ],
)
def test_common_names_of_files_in_a_sample_are_known(samples, tmp_path, names, caption):
    target, hint, text = names
    other = [{"__key__": f"a/{s['__key__']}", target: s["target.png"], hint: s["hint.png"], text: caption} for s in samples[:2]]
    plain = [s | {"__key__": f"a/{s['__key__']}", "txt": b"number 0"} for s in samples[:2]]
    for name, given in (("other", other), ("plain", plain)):
        encode(sharded(write_raw(tmp_path / name, given, 9)), tmp_path / f"{name}_out")
    ours, theirs = ([*read_samples(tmp_path / f"{name}_out" / "shard-000000.tar")] for name in ("other", "plain"))
    assert [sample["safetensors"] for sample in ours] == [sample["safetensors"] for sample in theirs]
    assert json.loads(ours[1]["json"])["name"] == "0000.tar/a/001"


def test_settings_that_shards_cannot_follow_are_refused():
    settings = DatasetSettings(has_buckets=True, subset=4, repeats=2)
    with pytest.raises(
        ValueError, match=r"With shards has_buckets must be false.*; subset \(4\) must be 0; repeats \(2\) must be 1"
    ):
        check_settings(settings)
    with pytest.raises(ValueError, match=r"precision \('fp8'\) must be fp16 or fp32; shuffle_buffer \(0\) must be 1 or more"):
        ShardSettings(precision="fp8", shuffle_buffer=0)


def test_numbers_beyond_half_precision_are_refused(raw, tmp_path):
    class Large(Encoders):
        def encode(self, given, is_hint=None):
            return {"context": torch.full((8, 16), 1e5)} if isinstance(given, str) else super().encode(given, is_hint)

    with pytest.raises(
        ValueError, match=r"'0000\.tar/000' has numbers that fp16 cannot hold: set dataset\.shards\.precision to fp32"
    ):
        encode(sharded(raw, ShardSettings()), tmp_path, encoders=Large())


def test_without_webdataset_the_install_command_is_given(raw, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    monkeypatch.setitem(sys.modules, "webdataset.tariterators", None)
    with pytest.raises(
        ValueError, match=r"need the package webdataset .*: run 'python -m pip install webdataset' in ComfyUI's"
    ):
        encode(sharded(raw), tmp_path)


def test_a_damaged_index_is_named(raw, tmp_path):
    encode(sharded(raw), tmp_path)
    for text in ("{", "{}", '{"kind": "x"}', "[]"):
        (tmp_path / "index.json").write_text(text)
        with pytest.raises(ValueError, match=r"'index\.json' in '.*' cannot be used \(.*\): delete it and run"):
            load_index(tmp_path)


def test_encoding_reads_each_picture_once(raw, tmp_path):
    encoders = Encoders()
    encode(sharded(raw), tmp_path, encoders=encoders)
    assert (encoders.pictures.count(False), encoders.pictures.count(True)) == (17, 17)
    assert encoder_of(sharded(raw)).precision == "fp32"
