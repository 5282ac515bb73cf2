"""The real host in two processes of Accelerate's launcher, as a user starts them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from demo_checkpoint import CHECKPOINT, CTRLORA_BASE, demo_models
from host import find_host
from host_server import link_file
from nextcontrol.nodes.host.train_script import train_from_text
from safetensors.torch import load_file
from tiny_training import write_pairs

ROOT = Path(__file__).resolve().parents[2]
TRAINING = {
    "steps": 2, "rank": 4, "accumulation_steps": 2, "learning_rate": 1e-3, "preview_every": 0, "sensitivity_every": 0,
    "validation_pairs": 0, "shard_optimizer": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def job(base_folder):
    """A configuration file's content, with its small checkpoint, base and pairs in the host's folders."""
    models = demo_models(find_host(Path(os.environ["NEXTCONTROL_COMFYUI"]), Path(sys.executable)))
    for name in (CHECKPOINT, CTRLORA_BASE):
        if not (base_folder / "models" / name).exists():
            link_file(models / name, base_folder / "models" / name)
    write_pairs(base_folder / "input" / "launched", count=3)
    names = {"checkpoint": Path(CHECKPOINT).name, "base": Path(CTRLORA_BASE).name, "name": "launched"}
    return {**names, "dataset": {"folder": "launched", "resolution": 64}, "training": TRAINING}


def losses(base_folder, name):
    lines = (base_folder / "models" / "ctrlora" / f"{name}.training" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
def test_two_launched_processes_train_what_one_trains(base_folder, job, tmp_path):
    found = importlib.util.find_spec("accelerate")
    assert found is not None, "scripts/test.py installs it"
    # That package alone: the tools' others must not come before the host's.
    for part in Path(str(found.origin)).parents[1].glob("accelerate*"):
        (tmp_path / part.name).symlink_to(part)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(job))
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    script = [str(ROOT / "scripts" / "train.py"), str(config), "--base-directory", str(base_folder), "--patience", "2"]
    host = {"NEXTCONTROL_COMFYUI": os.environ["NEXTCONTROL_COMFYUI"], "NEXTCONTROL_PYTHON": sys.executable}
    chosen = {"PYTHONPATH": str(tmp_path), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **host, **chosen}
    environment.pop("PYTHONSAFEPATH", None)  # a script imports its siblings
    answer = subprocess.run(
        [*launcher, *script], capture_output=True, text=True, check=False, timeout=600, env=environment, cwd=tmp_path
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr.count("Trained: models/ctrlora/launched.safetensors") == 1
    assert answer.stderr.count("encoding pair 3 of 3") == 1

    with torch.inference_mode(mode=False), torch.enable_grad():
        train_from_text(json.dumps(job | {"name": "alone"}), lambda _text: None)
    assert losses(base_folder, "launched") == pytest.approx(losses(base_folder, "alone"), rel=1e-5)
    assert len(losses(base_folder, "alone")) == 2
    ours, theirs = (load_file(base_folder / "models" / "ctrlora" / f"{name}.safetensors") for name in ("launched", "alone"))
    assert set(ours) == set(theirs)
    # AdamW's first steps divide a gradient by its own size: where it is rounding alone, a weight may go either way.
    assert all(torch.allclose(ours[key], theirs[key], rtol=1e-4, atol=2.1 * 2 * 1e-3) for key in ours)

    config.write_text(json.dumps(job | {"training": TRAINING | {"steps": 3}}))
    with torch.inference_mode(mode=False), torch.enable_grad():
        train_from_text(config.read_text(), lambda _text: None)
        train_from_text(json.dumps(job | {"name": "alone", "training": TRAINING | {"steps": 3}}), lambda _text: None)
    assert losses(base_folder, "launched") == pytest.approx(losses(base_folder, "alone"), rel=1e-5)
    assert len(losses(base_folder, "launched")) == 3
