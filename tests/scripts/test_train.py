"""Training from a file: what it may say, and what is said about a wrong one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from nextcontrol.nodes.host.train_script import READERS, read_job, train_from_text
from train import read_config

ROOT = Path(__file__).parents[2]

JOB = {"checkpoint": "sd.safetensors", "base": "base.ckpt", "name": "x", "dataset": {"folder": "pairs", "resolution": 64}}


def test_what_is_left_out_has_its_default():
    job = read_job(json.dumps({**JOB, "training": {"steps": 7}}))
    assert (job["training"].steps, job["training"].rank) == (7, 128)
    assert (job["folder"], job["dataset"].resolution, job["dataset"].prompt_dropout) == ("pairs", 64, 0.3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("{", "cannot be read"),
        ([1], "must be a JSON object"),
        ({"dataset": None}, "must be a JSON object"),
        ({"base": "", "speed": 1}, "'speed' is unknown; 'base' is missing"),
        ({"dataset": {"folder": "x", "size": 1}}, "'size' is no setting of a dataset"),
        ({"training": {"steps": 0, "rank": 0}}, r"steps \(0\) must be 1 or more; rank \(0\)"),
        ({"training": {"step": 1}}, "step is no setting of the training"),
        ({"dataset": {"folder": 7}}, "'folder' must be the name of a folder in quotes"),
        ({"dataset": {"folder": {"a": "b"}}}, "'folder' must be the name of a folder in quotes"),
        ({"training": {"steps": "9"}}, r"steps \('9'\) must be of the type int"),
    ],
)
def test_a_wrong_file_is_one_sentence(change, sentence):
    text = change if isinstance(change, str) else json.dumps(change if isinstance(change, list) else {**JOB, **change})
    with pytest.raises(ValueError, match=sentence):
        read_job(text)


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_configuration_may_be_in_any_unicode_form_that_says_so(codec, tmp_path):
    (tmp_path / "c.json").write_bytes(json.dumps({**JOB, "name": "größe"}, ensure_ascii=False, indent=1).encode(codec))
    assert read_job(read_config(tmp_path / "c.json"))["name"] == "größe"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: path.write_bytes('{"name": "größe"}'.encode("cp1252")), "is not UTF-8 and looks like cp1252"),
        (lambda path: path.write_bytes("{}".encode("utf-16-le") * 9), "looks like UTF-16 without its mark"),
        (lambda path: path.write_bytes(b" " * 1_100_000), "has more than 1048576 bytes"),
        (Path.mkdir, "cannot be read .it is not a regular file"),
        (lambda path: path.symlink_to(path), "cannot be read"),
        (Path.exists, "cannot be read .there is no such file"),
    ],
)
def test_a_file_that_is_no_configuration_is_one_sentence(make, sentence, tmp_path):
    make(tmp_path / "c.json")
    with pytest.raises((ValueError, FileNotFoundError), match=sentence) as error:
        read_config(tmp_path / "c.json")
    assert str(error.value).startswith(f"'{tmp_path / 'c.json'}' ")


def test_a_missing_checkpoint_is_named(base_folder):
    with pytest.raises(FileNotFoundError, match=r"'sd\.safetensors' is not in models/checkpoints"):
        train_from_text(json.dumps(JOB), print)


EXAMPLES = [
    example
    for path in ("README.md", "docs/training.md", "docs/large_datasets.md", "docs/distributed.md")
    if (ROOT / path).is_file()
    for example in re.findall(r"```json\n(\{.*?\})\n```", (ROOT / path).read_text(encoding="utf-8"), re.DOTALL)
    if '"checkpoint"' in example
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_of_the_documentation_can_be_read(example):
    assert read_job(example)["name"]


def test_there_is_an_example_of_every_method():
    assert {read_job(example)["method"] for example in EXAMPLES} == set(READERS)
