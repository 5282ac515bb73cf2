"""What a ControlNeXt and a native ControlNet cost, over a bare guided SD1.5 step."""

from __future__ import annotations

from bench_kit import alternate, report
from bench_sd15 import build_controlnet, build_model, give_hint, guided_step


def measure(steps: int) -> None:
    """Steps with a ControlNeXt and with a native ControlNet, over the bare step."""
    import torch
    from nextcontrol.models.controlnext import GENERATIONS, ControlNeXt
    from nextcontrol.nodes.host.attach import attach_controlnext
    from nextcontrol.nodes.host.controlnext_file import ControlNeXtFile

    model, hint = build_model(), torch.rand(1, 512, 512, 3)
    module = ControlNeXt(GENERATIONS[2], device="cpu")
    control = ControlNeXtFile("bench", module.state_dict(), GENERATIONS[2], ("sd15",), None, None)
    seconds = alternate(steps, {
        "bare": guided_step(model.clone()),
        "ControlNeXt": guided_step(attach_controlnext(model, control, hint, 1.0, (0.0, 1.0))),
        "native ControlNet": guided_step(model.clone(), [give_hint(build_controlnet(), hint)]),
    })  # fmt: skip
    for name in ("ControlNeXt", "native ControlNet"):
        report(f"{name} / bare", [a / b for a, b in zip(seconds[name], seconds["bare"], strict=True)])
