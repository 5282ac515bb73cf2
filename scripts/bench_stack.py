"""What a control stack adds to a guided SD1.5 step, over what as many native ControlNets in ComfyUI's own chain add."""

from __future__ import annotations

from typing import Any

from bench_kit import alternate, report
from bench_sd15 import (
    RandomLatents,
    build_base,
    build_condition,
    build_controlnet,
    build_model,
    build_module,
    give_hint,
    guided_step,
)

COUNTS = (1, 2, 4)


def measure(steps: int) -> None:
    """Print added cost over added cost, and what the readout costs."""
    import torch

    model, hint = build_model(), torch.rand(1, 512, 512, 3)
    base = build_base()
    natives = [build_controlnet() for _ in range(max(COUNTS))]
    conditions = [build_condition(base, rank=128) for _ in range(max(COUNTS))]
    modules = [build_module(seed) for seed in range(2)]
    kinds = {
        "bare": guided_step(model.clone()),
        "2 ControlNeXts": stacked_step(model, modules, hint),
        "4 CtrLoRAs, readout": stacked_step(model, conditions, hint, has_readout=True),
    }
    for count in COUNTS:
        kinds[f"{count} CtrLoRAs"] = stacked_step(model, conditions[:count], hint)
        kinds[f"{count} native"] = guided_step(model.clone(), [give_hint(control, hint) for control in natives[:count]])
    seconds = alternate(steps, kinds)
    bare = seconds["bare"]
    for ours, native in (*((f"{count} CtrLoRAs", f"{count} native") for count in COUNTS), ("2 ControlNeXts", "2 native")):
        rounds = list(zip(seconds[ours], seconds[native], bare, strict=True))
        report(f"{ours}: added / added by {native}", [(a - c) / (b - c) for a, b, c in rounds])
        report(f"{ours} / bare", [a / c for a, _, c in rounds])
    both = zip(seconds["4 CtrLoRAs, readout"], seconds["4 CtrLoRAs"], bare, strict=True)
    report("readout of 4 CtrLoRAs: added / bare", [(a - b) / c for a, b, c in both])


def stacked_step(model: Any, controls: list[Any], hint: Any, *, has_readout: bool = False) -> Any:
    """A guided step with a stack of these controls on model and prompts."""
    from nextcontrol.nodes.host.stack import apply_stack
    from nextcontrol.nodes.host.stack_entry import Entry, Options

    entries = [Entry(control, hint, 1.0, (0.0, 1.0)) for control in controls]
    prompts: tuple[Any, Any] = ([[None, {}]], [[None, {}]])
    node = "bench" if has_readout else None
    patched, positive, *_ = apply_stack(model, *prompts, entries, Options(), RandomLatents(), node)
    stack = positive[0][1].get("control")
    return guided_step(patched.clone(), [stack] if stack else [])
