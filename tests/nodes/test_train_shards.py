"""Tar shards on the host: encoded by `--precompute` or before the training, trained from, told apart, refused."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from demo_checkpoint import CHECKPOINT, CTRLORA_BASE, demo_models
from host import find_host
from host_server import link_file
from nextcontrol.nodes.host import train_job
from nextcontrol.nodes.host.dataset_folders import open_dataset, open_datasets
from nextcontrol.nodes.host.precompute import precompute_from_text, read_part
from nextcontrol.nodes.host.train_files import files_for
from nextcontrol.nodes.host.train_script import read_job, train_from_text
from nextcontrol.training.check import check_pairs
from nextcontrol.training.dataset import DatasetSettings, ShardSettings
from nextcontrol.training.precompute import Part
from nextcontrol.training.shard_index import load_index
from safetensors.torch import load_file
from shard_files import raw_samples, write_raw
from tiny_training import write_pairs
from train_stand_ins import SmallVAE, small_job, write_dataset

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = DatasetSettings(resolution=64)
FP32 = ShardSettings(precision="fp32", shuffle_buffer=3)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def raw(base_folder, tmp_path_factory):
    """Seven pairs in two tar shards below input/."""
    samples = raw_samples(tmp_path_factory.mktemp("pictures"), 7)
    write_raw(base_folder / "input" / "raw_shards", samples, 4)
    return "raw_shards"


@pytest.fixture(scope="module")
def plain(base_folder):
    """A dataset that `small_job` opens, in whose place another is put."""
    return write_dataset(base_folder, "beside_shards")


def job_of(base_folder, plain, folder, name, shards=FP32, settings=SETTINGS, **changes):
    job = small_job(base_folder, plain, name, **changes)
    return replace(job, dataset=open_dataset(folder, settings, shards))


def trained(base_folder, *arguments, **changes):
    with torch.inference_mode():
        return train_job.train(job_of(base_folder, *arguments, **changes))


def weights(result):
    return load_file(files_for(result.files[0]).main)


def test_a_folder_of_tar_shards_is_encoded_once_and_trained_from(base_folder, plain, raw):
    vae = SmallVAE()
    first = trained(base_folder, plain, raw, "shards/first", vae=vae, validation_pairs=2, preview_every=0)
    assert len(vae.seen) == 2 * 7
    index = load_index(base_folder / "input" / "raw_shards_encoded")
    assert [entry.count for entry in index.shards] == [4, 3]
    assert len(first.losses) == 4
    again = SmallVAE()
    second = trained(base_folder, plain, raw, "shards/second", vae=again, validation_pairs=2, preview_every=0)
    assert not again.seen
    assert second.losses == first.losses


def test_stopped_and_resumed_it_is_the_uninterrupted_training(base_folder, plain, raw):
    whole = trained(base_folder, plain, raw, "shards/whole", steps=6)
    trained(base_folder, plain, raw, "shards/part", steps=3)
    resumed = trained(base_folder, plain, raw, "shards/part", steps=6)
    assert resumed.losses == whole.losses
    assert all(torch.equal(tensor, weights(whole)[key]) for key, tensor in weights(resumed).items())


def test_encoded_shards_train_without_the_pictures_they_were_made_from(base_folder, plain, raw):
    of_raw = trained(base_folder, plain, raw, "shards/of_raw")
    moved = base_folder / "input" / "moved_encoded"
    shutil.copytree(base_folder / "input" / "raw_shards_encoded", moved)
    of_encoded = trained(base_folder, plain, "moved_encoded", "shards/of_encoded")
    assert of_encoded.losses == of_raw.losses


def test_another_order_is_another_run(base_folder, plain, raw):
    trained(base_folder, plain, raw, "shards/order", steps=2)
    other = replace(FP32, shuffle_buffer=2)
    with pytest.raises(ValueError, match="is another one: the dataset changed"):
        trained(base_folder, plain, raw, "shards/order", other)


def test_encoded_shards_of_another_vae_or_resolution_are_refused(base_folder, plain, raw):
    trained(base_folder, plain, raw, "shards/right")
    other = SmallVAE()
    with torch.no_grad():
        other.first_stage_model.encoder.weight.mul_(2)
    with pytest.raises(
        ValueError, match=r"'raw_shards_encoded' are of other settings: the VAE is another\. Encode into another"
    ):
        trained(base_folder, plain, raw, "shards/wrong", vae=other)
    with pytest.raises(ValueError, match="resolution was 64 and is 128"):
        trained(base_folder, plain, raw, "shards/wrong", settings=replace(SETTINGS, resolution=128))
    with pytest.raises(ValueError, match="mirrored was no and is yes"):
        trained(base_folder, plain, raw, "shards/wrong", settings=replace(SETTINGS, has_flip=True))
    with pytest.raises(ValueError, match="precision was fp32 and is fp16"):
        trained(base_folder, plain, raw, "shards/wrong", ShardSettings())


def test_tar_shards_that_changed_since_are_refused(base_folder, plain, tmp_path):
    samples = raw_samples(tmp_path / "pictures", 5)
    folder = write_raw(base_folder / "input" / "raw_changed", samples, 3)
    trained(base_folder, plain, "raw_changed", "shards/before")
    (folder / "0001.tar").write_bytes((folder / "0000.tar").read_bytes())
    with pytest.raises(ValueError, match=r"The pairs of shard-000001\.tar in 'raw_changed_encoded' have changed since"):
        trained(base_folder, plain, "raw_changed", "shards/after")
    (folder / "0001.tar").unlink()
    with pytest.raises(ValueError, match="has 2 encoded shards and the pairs now make 1"):
        trained(base_folder, plain, "raw_changed", "shards/after")


def test_an_unfinished_folder_is_no_folder_of_pictures(base_folder, raw, plain):
    trained(base_folder, plain, raw, "shards/finished")
    left = base_folder / "input" / "unfinished_encoded"
    shutil.copytree(base_folder / "input" / "raw_shards_encoded", left)
    (left / "index.json").unlink()
    with pytest.raises(
        ValueError, match=r"'unfinished_encoded' holds encoded shards that are not finished: run .*--precompute"
    ):
        open_dataset("unfinished_encoded", SETTINGS)


def test_buckets_are_refused_and_checking_pairs_needs_a_folder(base_folder, plain, raw):
    with pytest.raises(ValueError, match="has_buckets must be false, since all pictures in shards are of one square size"):
        trained(base_folder, plain, raw, "shards/buckets", settings=replace(SETTINGS, has_buckets=True))
    with pytest.raises(ValueError, match="'raw_shards' lies in shards, and this needs a folder"):
        check_pairs(open_dataset(raw, SETTINGS), "")


def test_tar_files_beside_a_folder_of_pairs_are_no_shards(base_folder, plain):
    folder = base_folder / "input" / "with_archive"
    write_pairs(folder, 3)
    (folder / "backup.tar").write_bytes(b"anything")
    assert len(open_dataset("with_archive", SETTINGS).pairs) == 3
    assert open_dataset("with_archive", SETTINGS).shards is None


@pytest.mark.parametrize(
    ("given", "environment", "part"),
    [
        ("", {}, Part(0, 1)),
        ("3/4", {}, Part(2, 4)),
        ("", {"RANK": "1", "WORLD_SIZE": "3"}, Part(1, 3)),
        ("1/2", {"RANK": "1", "WORLD_SIZE": "3"}, Part(0, 2)),
    ],
)
def test_a_part_is_given_or_the_launchers(given, environment, part):
    assert read_part(given, environment) == part


@pytest.mark.parametrize("given", ["0/4", "5/4", "1", "a/b", "1/0", "-1/2", "1/2/3", "1/\u0664", f"1/{'9' * 5000}"])
def test_a_part_that_is_none_is_refused(given):
    with pytest.raises(ValueError, match=f"--part is '{given[:9]}.* and must be I/N with I from 1 to N") as caught:
        read_part(given, {})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(("rank", "processes"), [("x", "2"), ("2", "2"), ("-1", "2"), ("0", "0"), ("0", "9" * 5000), ("", "1")])
def test_a_launchers_part_that_is_none_is_refused(rank, processes):
    with pytest.raises(ValueError, match="a process needs a RANK from 0 below WORLD_SIZE") as caught:
        read_part("", {"RANK": rank, "WORLD_SIZE": processes})
    assert len(str(caught.value)) < 400


@pytest.fixture(scope="module")
def config(base_folder):
    """A configuration file's content, with its small checkpoint and base in the host's folders."""
    models = demo_models(find_host(Path(os.environ["NEXTCONTROL_COMFYUI"]), Path(sys.executable)))
    for name in (CHECKPOINT, CTRLORA_BASE):
        if not (base_folder / "models" / name).exists():
            link_file(models / name, base_folder / "models" / name)
    write_pairs(base_folder / "input" / "to_encode", count=5)
    training = {"steps": 2, "rank": 4, "preview_every": 0, "sensitivity_every": 0, "validation_pairs": 1}
    names = {"checkpoint": Path(CHECKPOINT).name, "base": Path(CTRLORA_BASE).name, "name": "from_shards"}
    dataset = {"folder": "to_encode", "resolution": 64, "shards": {"pairs_per_shard": 2, "folder": "encoded/here"}}
    return {**names, "dataset": dataset, "training": training}


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
def test_a_configuration_is_encoded_by_the_script_and_trained_from(base_folder, config, tmp_path):
    text = json.dumps(config)
    assert precompute_from_text(text, Part(1, 2)) == (
        "'here': 1 shards encoded, 0 were finished before; 2 are left to other parts."
    )
    found = importlib.util.find_spec("webdataset")
    assert found is not None, "scripts/test.py installs it"
    # Those packages alone: the tools' others must not come before the host's.
    for name in ("webdataset", "braceexpand"):
        (tmp_path / name).symlink_to(Path(str(found.origin)).parents[1] / name)
    path = tmp_path / "config.json"
    path.write_text(text)
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), str(path), "--base-directory", str(base_folder)]
    host = {"NEXTCONTROL_COMFYUI": os.environ["NEXTCONTROL_COMFYUI"], "NEXTCONTROL_PYTHON": sys.executable}
    environment = {
        **os.environ,
        **host,
        "PYTHONSAFEPATH": "",
        "PYTHONPATH": str(tmp_path),
        "RANK": "0",
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    answer = subprocess.run(
        [*command, "--precompute"], capture_output=True, text=True, check=False, timeout=600, env=environment, cwd=tmp_path
    )
    assert answer.returncode == 0, answer.stderr
    assert "'here': 2 shards encoded, 0 were finished before; all are there." in answer.stderr
    assert load_index(base_folder / "input" / "encoded" / "here").count == 5
    assert train_from_text(text, lambda _text: None) == ("ctrlora/from_shards.safetensors",)


def test_precomputing_a_folder_that_is_trained_as_it_is_says_what_to_write(config):
    dataset = {"folder": "to_encode", "resolution": 64}
    with pytest.raises(ValueError, match=r"'to_encode' is a folder of pictures, .* write \"shards\": \{\} into the dataset"):
        precompute_from_text(json.dumps({**config, "dataset": dataset}))


def test_precomputing_encoded_shards_is_refused(base_folder, config, raw, plain):
    trained(base_folder, plain, raw, "shards/encoded_twice")
    with pytest.raises(ValueError, match="'raw_shards_encoded' holds encoded shards already"):
        precompute_from_text(json.dumps({**config, "dataset": {"folder": "raw_shards_encoded", "resolution": 64}}))


def test_unknown_settings_of_shards_are_named(config):
    dataset = config["dataset"] | {"shards": {"pairs": 3}}
    with pytest.raises(ValueError, match="'pairs' is no setting of shards"):
        read_job(json.dumps({**config, "dataset": dataset}))
    with pytest.raises(ValueError, match="shards must be an object"):
        read_job(json.dumps({**config, "dataset": dataset | {"shards": 3}}))


def test_shards_outside_the_allowed_folders_are_refused(base_folder, raw):
    dataset = open_dataset(raw, SETTINGS, replace(FP32, folder="../elsewhere"))
    from nextcontrol.nodes.host.dataset_folders import encoded_folder

    with pytest.raises(ValueError, match=r"dataset\.shards\.folder is '\.\./elsewhere' and must be a folder below"):
        encoded_folder(dataset)


def test_conditions_have_encoded_folders_of_their_own(base_folder, raw, plain):
    mixed = open_datasets({"a": raw, "b": plain}, SETTINGS, FP32)
    from nextcontrol.nodes.host.dataset_folders import encoded_folder

    assert [encoded_folder(part).name for part in mixed.parts.values()] == ["raw_shards_encoded", "beside_shards_encoded"]
