"""What CtrLoRA adds to a guided SD1.5 step, over what native ControlNets add to it; and the weights of both."""

from __future__ import annotations

from bench_kit import alternate, noise_levels, report
from bench_sd15 import build_base, build_condition, build_controlnet, build_model, give_hint, guided_step, unique_networks


def measure(steps: int) -> None:
    """What CtrLoRA adds to a step, over what native ControlNets add to it; and the weights of both."""
    import torch
    from nextcontrol.nodes.host.result_cache import ResultCache

    model, hint = build_model(), torch.rand(1, 512, 512, 3)
    base = build_base()
    natives = [build_controlnet() for _ in range(4)]
    ours = [build_condition(base, rank=128) for _ in range(4)]
    weights = [sum(p.nbytes for m in unique_networks(controls) for p in m.model.parameters()) for controls in (ours, natives)]
    print(f"weights of four conditions / of four native ControlNets: {weights[0] / weights[1]:.3f}", flush=True)
    base.cache = ResultCache(4 << 30)
    control = [give_hint(ours[0], hint)]
    first = guided_step(model.clone(), control)
    for sigma in noise_levels(steps):
        first(sigma)
    seconds = alternate(steps, {"bare": guided_step(model.clone()), "ours": guided_step(model.clone(), control)})
    report(
        "second seed with the cache: added / bare", [a / b - 1 for a, b in zip(seconds["ours"], seconds["bare"], strict=True)]
    )
    base.cache = ResultCache(0)
    for title, batch, count in (("1 image, 4 conditions", 1, 4), ("4 images, 1 condition", 4, 1)):
        seconds = alternate(steps, {
            "bare": guided_step(model.clone(), batch=batch),
            "ours": guided_step(model.clone(), [give_hint(control, hint) for control in ours[:count]], batch),
            "native": guided_step(model.clone(), [give_hint(control, hint) for control in natives[:count]], batch),
        })  # fmt: skip
        rounds = list(zip(seconds["ours"], seconds["native"], seconds["bare"], strict=True))
        report(f"{title}: added by CtrLoRA / added by native", [(a - c) / (b - c) for a, b, c in rounds])
        report(f"{title}: CtrLoRA / bare", [a / c for a, _, c in rounds])
