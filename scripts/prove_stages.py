"""The six proofs: which trainings and measurements each consists of. Every part is kept, so that a killed run goes on."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from demo_train_controls import RANK
from prove_cost import cost
from prove_metrics import measure
from prove_sample import Use, controls, draw, measured, origin
from prove_train import Training, train

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from prove_world import World

Result = dict[str, Any]
NEW = "grayscale"
"""The condition that the base has not seen."""
METHODS = ("ctrlora", "finetune", "controlnet")
"""Ways to learn a new condition."""
ADDED = {"CtrLoRA canny": "CtrLoRA palette", "ControlNeXt canny": "CtrLoRA palette"}
"""Pairs of controls that act together, the first told by canny and the second by palette."""


def run(world: World, stage: str, say: Callable[[str], None]) -> Result:
    """A proof, or what is kept of it, as `prove_report` reads it."""
    say(f"proof: {stage}")
    return world.keeper.keep(f"stage_{stage}", asdict(world.extent), lambda: STAGES[stage](world))


def kept(world: World, stage: str) -> Result | None:
    """A proof that is done already."""
    return world.keeper.peek(f"stage_{stage}", asdict(world.extent))


def _limits(world: World) -> Result:
    """Between what each metric can move: without a control, by seed, and the true pictures behind the autoencoder."""

    def best() -> dict[str, float]:
        import torch

        vae = world.models[2]
        with torch.inference_mode():
            again = vae.decode(vae.encode(world.held_out.pictures)).float().cpu()
        return measure(again, world.hints, world.draw)

    none = [measured(world, [], seed) for seed in range(world.extent.seeds)]
    return {"none": none, "best": world.keeper.keep("best", len(world.held_out.captions), best)}


def fidelity(world: World) -> Result:
    """1: each control at each strength, and whether strength 0 is exactly no control."""
    import torch

    found = controls(world)
    rows = [
        {"control": name, "strength": strength, "values": _by_seed(world, [use._replace(strength=strength)])}
        for name, use in found.items()
        for strength in map(float, world.extent.strengths)
    ]
    none = draw(world, [], 0)
    exact = {name: torch.equal(draw(world, [use._replace(strength=0.0)], 0), none) for name, use in found.items()}
    moved = {name: not torch.equal(draw(world, [use], 0), none) for name, use in found.items()}
    about = {name: origin(world, use) for name, use in found.items()}
    return {"rows": rows, "exact": exact, "moved": moved, "about": about, **_limits(world)}


def _by_seed(world: World, uses: Sequence[Use]) -> list[dict[str, float]]:
    return [measured(world, uses, seed) for seed in range(world.extent.seeds)]


def _curves(world: World, training: Training, is_whole: bool = True) -> list[Any]:
    """For each seed [step, metrics] at each look, or at the last alone."""
    curves = []
    for seed in range(world.extent.seeds):
        looks = train(world, replace(training, seed=seed))
        chosen = looks if is_whole else looks[-1:]
        curves.append([[step, measured(world, [Use(control, training.condition)], seed)] for step, control in chosen])
    return curves


def _new(world: World, method: str = "ctrlora", **changes: Any) -> Training:
    extent = world.extent
    return replace(Training(method, NEW, 0, extent.steps, extent.pairs), **changes)


def new_condition(world: World) -> Result:
    """2: one new condition, learned in three ways from the same pairs."""
    return {"curves": {method: _curves(world, _new(world, method)) for method in METHODS}, **_limits(world)}


def parts(world: World) -> Result:
    """3: each part of CtrLoRA against what it replaces, rank and number of pairs."""
    extent = world.extent
    hint_encoder = {
        "vae": _curves(world, _new(world, "controlnet_vae")),
        "convolutions": _curves(world, _new(world, "controlnet")),
    }
    base = {"base": _curves(world, _new(world)), "no base": _curves(world, _new(world, base="fresh"))}
    ranks = {str(rank): _curves(world, _new(world, rank=rank), rank == RANK) for rank in extent.ranks}
    pairs = {str(count): _curves(world, _new(world, pairs=count), count == extent.pairs) for count in extent.few_pairs}
    return {"hint_encoder": hint_encoder, "base": base, "rank": ranks, "pairs": pairs, **_limits(world)}


def normalization(world: World) -> Result:
    """4: cross normalization against zero convolution."""
    extent = world.extent
    training = Training("controlnext", "canny", 0, extent.steps, extent.pairs)
    ways = ("cross", "zero_convolution")
    return {"curves": {way: _curves(world, replace(training, normalization=way)) for way in ways}, **_limits(world)}


def two(world: World) -> Result:
    """5: two conditions together, and each alone."""
    found = controls(world)
    alone = {name: _by_seed(world, [found[name]]) for name in dict.fromkeys([*ADDED, *ADDED.values()])}
    together = {f"{one} + {other}": _by_seed(world, [found[one], found[other]]) for one, other in ADDED.items()}
    return {"alone": alone, "together": together, **_limits(world)}


STAGES: Mapping[str, Callable[[World], Result]] = {
    "fidelity": fidelity,
    "new_condition": new_condition,
    "parts": parts,
    "normalization": normalization,
    "two": two,
    "cost": cost,
}
