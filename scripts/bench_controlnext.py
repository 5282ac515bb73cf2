"""What a ControlNeXt and a native ControlNet cost, over a bare guided SD1.5 step."""

from __future__ import annotations

from bench_kit import alternate, report
from bench_sd15 import build_controlnet, build_model, build_module, give_hint, guided_step


def measure(steps: int) -> None:
    """Steps with a ControlNeXt and with a native ControlNet, over the bare step."""
    import torch
    from nextcontrol.nodes.host.attach import attach_controlnext

    model, hint = build_model(), torch.rand(1, 512, 512, 3)
    control = build_module()
    seconds = alternate(steps, {
        "bare": guided_step(model.clone()),
        "ControlNeXt": guided_step(attach_controlnext(model, control, hint, 1.0, (0.0, 1.0))),
        "native ControlNet": guided_step(model.clone(), [give_hint(build_controlnet(), hint)]),
    })  # fmt: skip
    for name in ("ControlNeXt", "native ControlNet"):
        report(f"{name} / bare", [a / b for a, b in zip(seconds[name], seconds["bare"], strict=True)])
