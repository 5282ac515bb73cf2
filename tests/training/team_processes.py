"""Runs of several real processes on the CPU, for test_team.py.

    python tests/training/team_processes.py FOLDER ACCELERATE

FOLDER/plan.json lists runs, one after the other; each process leaves FOLDER/<out>/<rank>.json. ACCELERATE is the folder with
that package. The processes are forked, since they all would import the same for seconds.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60.0
"""For one run."""
PATIENCE = 20.0
CONDITIONS = ("canny", "depth", "palette")
# What every process would import for itself; optimizers need the last two.
USED = (
    "nextcontrol.training.method_ctrlora_base", "nextcontrol.training.mixed", "nextcontrol.training.team_accelerate",
    "tiny_training", "torch._dynamo", "torch.distributed.optim",
)  # fmt: skip


def mixed_run(work: Path, pairs: Path, hooks: Any, team: Any, **changes: Any) -> Any:
    """As `tiny_run`, for a base with three conditions."""
    from nextcontrol.training.checkpoint import StateStore
    from nextcontrol.training.config import TrainConfig
    from nextcontrol.training.loop import Run
    from nextcontrol.training.method_ctrlora_base import CtrLoRABaseMethod, start_lora
    from nextcontrol.training.metrics import MetricsFile
    from nextcontrol.training.mixed import MixedSource, config_for
    from nextcontrol.training.source import PairSource
    from nextcontrol.training.trainer import Trainer
    from tiny_training import CONFIG, HEADS, TinyBackbone, encoded, tiny_base

    config, backbone, base = TrainConfig(**{**CONFIG.__dict__, **changes}), TinyBackbone(), tiny_base()
    dataset = encoded(pairs)
    sources = {
        name: PairSource(dataset, dataset.items, config_for(config, name), backbone.objective, name) for name in CONDITIONS
    }
    loras = {name: start_lora(base.config, config.rank, config.seed, name) for name in CONDITIONS}
    trainer = Trainer(CtrLoRABaseMethod(base, loras, HEADS), backbone, config, team)
    store, metrics = StateStore(work / "lora.training", 2), MetricsFile(work / "lora.training" / "metrics.jsonl")
    return Run(trainer, MixedSource(sources, config), [], store, metrics, {}, hooks)


def train(folder: Path, plan: dict[str, Any], rank: int) -> dict[str, Any]:
    """One process's life; what it saw and how it ended."""
    import torch
    from nextcontrol.training.durable import write_tensors
    from nextcontrol.training.loop import Hooks
    from nextcontrol.training.team import Alone, open_team
    from nextcontrol.training.trainable import published
    from tiny_training import tiny_run

    torch.set_num_threads(1)
    work, norms, files = folder / plan["work"], [], []
    result: dict[str, Any] = {"norms": norms, "files": files}
    team = open_team(is_cpu=True, patience=PATIENCE)
    if not isinstance(team, Alone):
        signal.signal(signal.SIGTERM, team.ask_to_stop)

    def on_step(trainer: Any, report: Any) -> None:
        norms.append(report.grad_norm)
        if report.step == plan.get("step") and rank == plan.get("rank"):
            happen(plan["happens"], trainer)

    def on_save(trainer: Any) -> None:
        files.append(trainer.step)
        if plan.get("method") is None:
            write_tensors(work / "lora.safetensors", published(trainer.result()), {})

    changes = plan["changes"] | ({"seed": rank} if plan.get("happens") == "other seed" else {})
    try:
        make = mixed_run if plan.get("method") == "base" else tiny_run
        run = make(work, folder / "pairs", hooks=Hooks(on_step=on_step, on_save=on_save), team=team, **changes)
        result["resumed"] = run.resume()
        run.train()
    except BaseException as error:
        result |= {"error": type(error).__name__, "message": str(error), "agreed": team.has_agreed}
        if not result["message"] and result["error"] != "KeyboardInterrupt":
            raise
    else:
        if not isinstance(team, Alone):
            team.close()
    trainer = run.trainer
    none = [key for key, tensor in trainer.method.parameters().items() if tensor.grad is None]
    kept = sum(t.numel() for s in getattr(trainer.optimizer, "optim", trainer.optimizer).state.values() for t in s.values())
    sums = [float(tensor.detach().double().sum()) for tensor in trainer.result().values()]
    return result | {"losses": trainer.losses, "step": trainer.step, "none": none, "kept": kept, "sums": sums}


def happen(what: str, trainer: Any) -> None:
    """Whatever may end a process."""
    import torch

    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "signal":
        os.kill(os.getpid(), signal.SIGTERM)
    if what == "error":
        raise ValueError("the picture is gone")
    if what == "memory":

        def full(*_: Any) -> Any:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

        trainer.loss = full
    if what == "no number":
        loss = trainer.loss
        trainer.loss = lambda *given: loss(*given) * float("nan")
    if what == "disk":

        def write(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        import nextcontrol.training.checkpoint

        nextcontrol.training.checkpoint.write_sealed = write


def fork(folder: Path, plan: dict[str, Any], rank: int, port: int) -> int:
    """A process; the parent has used no thread of torch, so that it may be copied."""
    child = os.fork()
    if child:
        return child
    if plan["processes"] > 1:
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": plan["processes"], "LOCAL_WORLD_SIZE": plan["processes"]}
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        os.environ.update({name: str(value) for name, value in (numbers | place).items()})
    try:
        result = train(folder, plan, rank)
        (folder / plan["out"]).mkdir(exist_ok=True)
        (folder / plan["out"] / f"{rank}.json").write_text(json.dumps(result))
    except BaseException:  # noqa: BLE001 - the child must not return into the parent's code
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def run_all(folder: Path, plan: dict[str, Any]) -> None:
    """All processes of a run, to their ends."""
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    children = {fork(folder, plan, rank, port): rank for rank in range(plan["processes"])}
    end = time.monotonic() + SECONDS
    while children:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            rank = children.pop(child)
            if status not in {0, signal.SIGKILL}:
                sys.stderr.write(f"{plan['out']}: process {rank} ended with {status}\n")
        elif time.monotonic() > end:
            sys.stderr.write(f"{plan['out']}: processes {sorted(children.values())} hang\n")
            for left in children:
                os.kill(left, signal.SIGKILL)
            end = float("inf")
        else:
            time.sleep(0.005)


def main(arguments: list[str]) -> int:
    """Run the plan."""
    folder = Path(arguments[0])
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "scripts")]
    sys.path.append(arguments[1])
    from host_library import import_pack

    import_pack()
    for module in USED:
        importlib.import_module(module)

    for plan in json.loads((folder / "plan.json").read_text()):
        start = time.monotonic()
        run_all(folder, plan)
        sys.stdout.write(f"{plan['out']} {time.monotonic() - start:.1f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
