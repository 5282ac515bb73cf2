"""docs/proof.md, from the numbers alone."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from prove_claims import SAME, VERDICTS, Claim, cell, compared, over_the_run, part_kept, steps_to_follow, values_at
from prove_metrics import METRICS, share_of_way
from prove_sample import CFG, SAMPLER
from prove_stages import ADDED, NEW, STAGES
from prove_train import BASE_CONDITIONS, DROPOUT, NEXT_FACTOR, RATES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from prove_world import Extent

NAMES = {
    "ctrlora": "CtrLoRA's LoRA", "finetune": "full finetuning of the base", "controlnet": "ControlNet from scratch",
    "vae": "VAE", "convolutions": "new convolutions", "base": "on the base", "no base": "on the UNet's encoder",
    "cross": "cross normalization", "zero_convolution": "zero convolution",
}  # fmt: skip
Section = tuple[list[str], list[Claim]]
INTRODUCTION = """# Proof

The papers' claims in small, on the demo model. `{command}` trains, measures and writes this page; nothing in it is written by
hand, and the numbers decide which sentence stands here.

* Data: {pairs} emoji pictures with their names to train on, mirrored ones where more are asked for, and {held_out} others that
  no control has seen to measure on. All are turned, made smaller, moved and bent at random. The diffusion model knows all these
  things, in other shapes: a name says what is drawn, and not its outline.
* Trainings: the pack's trainer, {extent.steps} steps of {extent.batch} pairs and {extent.pairs:,} pairs in all unless said
  otherwise, {dropout:.0%} of the captions left out, AdamW at a constant rate: LoRA {rates[ctrlora]:g}, networks trained whole
  {rates[controlnet]:g}, ControlNeXt {rates[controlnext]:g} and {factor:g} times that for its module. {seeds}
* The base has learned {known}. The new condition, {new}, is not among them.
* Pictures: ComfyUI's sampler, {sampler}, {extent.sampling_steps} steps, cfg {cfg:g}, the name as the prompt.
* Edge F1: Canny edges of the result against those of the true picture, one pixel of tolerance; higher is better. Palette and
  grayscale error: mean absolute difference between the result's hint and the true picture's, from 0 to 1; lower is better. The
  hints are the pack's own.
* **Shown**: better for every seed than the other for any. **Not shown**: the other way round. **Not decided**: the ranges
  overlap, or the means differ by less than {same:.0%}."""
CLOSING = """* FID and LPIPS, the papers' measures, need other networks: quality apart from the hint is not measured.
* Emoji on white say little about photographs, and a model of this size says little about SD1.5: what shows is an example."""


def document(results: Mapping[str, Any], extent: Extent, command: str, about: Mapping[str, int]) -> str:
    """The whole page from the results by stage; `about` has the counts of the data, `pairs` and `held_out`."""
    seeds = "One seed, so there is no spread." if extent.seeds == 1 else f"{extent.seeds} seeds, whose range is in parentheses."
    told = {"extent": extent, "command": command, "rates": RATES, "dropout": DROPOUT, "same": SAME, "seeds": seeds, **about}
    told |= {"factor": NEXT_FACTOR, "known": ", ".join(BASE_CONDITIONS), "new": NEW, "sampler": SAMPLER, "cfg": CFG}
    lines, claims = [INTRODUCTION.format(**told)], []
    for number, (stage, (title, write)) in enumerate(SECTIONS.items(), 1):
        lines += ["", f"## {number}. {title}", ""]
        if stage not in results:
            lines.append(f"Not run yet: `{command} --stages {stage}`.")
            continue
        own, found = write(results[stage], extent)
        lines += [*own, "", *(f"* {claim.text}" for claim in found)]
        claims += found
    unseen = [f"* {VERDICTS[claim.verdict]}: {claim.paper}" for claim in claims if claim.verdict < 1]
    if claims and not unseen:
        unseen = ["* Every claim above shows here."]
    return "\n".join([*lines, "", "## What this small model does not show", "", *unseen, CLOSING]) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    marks = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(row)} |" for row in (head, marks, *rows)]


def _of(values: Sequence[Mapping[str, float]], *conditions: str) -> list[str]:
    return [cell([one[condition] for one in values]) for condition in conditions]


def _numbers(values: Sequence[Mapping[str, float]], condition: str) -> list[float]:
    return [one[condition] for one in values]


def _own(control: str) -> str:
    """The type of hint that a control of the first proof reads."""
    return "palette" if "palette" in control else "canny"


def _fidelity(result: Mapping[str, Any], extent: Extent) -> Section:
    by = {(row["control"], row["strength"]): row["values"] for row in result["rows"]}
    about, none, shown = result["about"], result["none"], ("canny", "palette")
    rows = [["no control", "", *_of(none, *shown)]]
    rows += [[name, f"{own['steps']} steps, {own['origin']}", *_of(by[name, 1], *shown)] for name, own in about.items()]
    rows.append(["true pictures behind the autoencoder", "", *_of([result["best"]], *shown)])
    lines = _table(["at strength 1", "training", *(METRICS[condition].title for condition in shown)], rows)
    cells = [[f"{s:g}", *(_of(by[name, s], _own(name))[0] for name in about)] for s in extent.strengths]
    lines += ["", *_table(["strength", *(f"{name}: {METRICS[_own(name)].title}" for name in about)], cells), ""]
    lines += ["![Fidelity over strength](images/proof_strength.png)", "", _exact_sentence(result), ""]
    lines.append("![Hints, and pictures without and with each control](images/proof_pictures.png)")
    return lines, [_follows(name, by[name, 1], none, result["best"]) for name in about]


def _exact_sentence(result: Mapping[str, Any]) -> str:
    wrong = [name for name, is_exact in result["exact"].items() if not is_exact]
    if wrong:
        return f"Strength 0 is **not** exactly no control for {', '.join(wrong)}."
    idle = [name for name, is_moved in result["moved"].items() if not is_moved]
    end = f" Nor does strength 1 change any for {', '.join(idle)}." if idle else ""
    return f"At strength 0 all pictures are bit for bit those without a control ({', '.join(result['exact'])}).{end}"


def _follows(name: str, values: Any, none: Any, best: Mapping[str, float]) -> Claim:
    condition = _own(name)
    found, without = _numbers(values, condition), _numbers(none, condition)
    part = share_of_way(condition, statistics.mean(found), statistics.mean(without), best[condition])
    claim = compared(f"{name}: pictures follow the hint.", ("with it", "without"), found, without, condition)
    return claim._replace(figures=f"{claim.figures} That is {part:.0%} of the way to the true pictures.")


def _curve_table(curves: Mapping[str, Any], condition: str) -> list[str]:
    steps = [step for step, _ in next(iter(curves.values()))[0]]
    rows = [[str(step), *(cell(values_at(c, place, condition)) for c in curves.values())] for place, step in enumerate(steps)]
    return _table([f"{METRICS[condition].title} after steps", *(NAMES[way] for way in curves)], rows)


def _reached(result: Mapping[str, Any], curves: Mapping[str, Any], condition: str, steps: int) -> str:
    """A sentence on the steps after which each way follows."""
    none, best = _numbers(result["none"], condition), result["best"][condition]
    found = {way: steps_to_follow(own, condition, none, best) for way, own in curves.items()}
    told = [
        f"{NAMES[way]} not within {steps} steps" if step is None else f"{NAMES[way]} after {step}"
        for way, step in found.items()
    ]
    return f"Half of the way from no control to the true pictures: {', '.join(told)}."


def _sooner(paper: str, curves: Mapping[str, Any], one: str, other: str, condition: str) -> Claim:
    """By the mean over the whole run."""
    first, second = (over_the_run(curves[way], condition) for way in (one, other))
    return compared(paper, (NAMES[one], NAMES[other]), first, second, condition, "mean over the run")


def _new_condition(result: Mapping[str, Any], extent: Extent) -> Section:
    curves = result["curves"]
    lora, full, none = (*(values_at(curves[way], -1, NEW) for way in ("ctrlora", "finetune")), _numbers(result["none"], NEW))
    lines = _curve_table(curves, NEW)
    lines += ["", "![Grayscale error over the steps](images/proof_new_condition.png)", ""]
    lines.append(_reached(result, curves, NEW, extent.steps))
    sooner = "A LoRA on the base learns a new condition sooner than a ControlNet from scratch."
    cheap = "The LoRA costs little against full finetuning."
    return lines, [
        _sooner(sooner, curves, "ctrlora", "controlnet", NEW),
        part_kept(cheap, (NAMES["finetune"], full), (NAMES["ctrlora"], lora), none, NEW, "at the end"),
    ]


def _parts(result: Mapping[str, Any], extent: Extent) -> Section:  # noqa: ARG001 - as the other sections
    lines: list[str] = []
    for part in ("hint_encoder", "base"):
        lines += [*_curve_table(result[part], NEW), ""]
    claims = [
        _sooner("A hint from the VAE is followed sooner than one from new convolutions.", result["hint_encoder"],
                "vae", "convolutions", NEW),
        _sooner("A LoRA on a base for several conditions learns sooner than one on the UNet's encoder.", result["base"],
                "base", "no base", NEW),
    ]  # fmt: skip
    for part, paper in (("rank", "A higher rank follows better."), ("pairs", "More pairs follow better.")):
        last = {value: values_at(own, -1, NEW) for value, own in result[part].items()}
        lines += [*_table([part, f"{METRICS[NEW].title} at the end"], [[v, cell(found)] for v, found in last.items()]), ""]
        few, many = min(last, key=int), max(last, key=int)
        claims.append(compared(paper, (f"{part} {many}", f"{part} {few}"), last[many], last[few], NEW))
    return [*lines, "![Hint encoder, base, rank and pairs](images/proof_parts.png)"], claims


def _normalization(result: Mapping[str, Any], extent: Extent) -> Section:
    curves = result["curves"]
    lines = [*_curve_table(curves, "canny"), "", "![Edge F1 over the steps](images/proof_normalization.png)", ""]
    lines.append(_reached(result, curves, "canny", extent.steps))
    paper = "With cross normalization a control converges sooner than with zero convolution."
    return lines, [_sooner(paper, curves, "cross", "zero_convolution", "canny")]


def _two(result: Mapping[str, Any], extent: Extent) -> Section:  # noqa: ARG001
    alone, together, shown = result["alone"], result["together"], ("canny", "palette")
    groups = {"no control": result["none"], **alone, **together}
    lines = _table(["", *(METRICS[condition].title for condition in shown)], [[n, *_of(v, *shown)] for n, v in groups.items()])
    claims = []
    for one, other in ADDED.items():
        both = f"{one} + {other}"
        for name, condition in ((one, "canny"), (other, "palette")):
            single, double, none = (_numbers(v, condition) for v in (alone[name], together[both], result["none"]))
            paper = f"{both}: {condition} is followed as when it is alone."
            claims.append(part_kept(paper, (f"{name} alone", single), ("with the other", double), none, condition))
    return lines, claims


def _cost(result: Mapping[str, Any], extent: Extent) -> Section:
    demo, real, ratios = result["demo"], result["real"], result["ratios"]
    rows = [[name, f"{demo[name]:,}", f"{real[name]:,}", f"{real[name] / real['UNet']:.1%}"] for name in demo]
    lines = _table(["parameters", "demo model", "SD1.5", "of SD1.5's UNet"], rows)
    note = (
        "LoRAs have rank {demo_rank} (demo) and {real_rank} (SD1.5) and bring their zero convolutions and norms; the demo's "
        "ControlNeXt has {width:g} of the published channels."
    )
    middle = {name: sorted(values)[len(values) // 4 : len(values) - len(values) // 4] for name, values in ratios.items()}
    lines += ["", note.format(**result), ""]
    head = ["one picture, guided", f"steps without a control that a step takes, middle half of {extent.rounds} rounds"]
    lines += _table(head, [[name, cell(values)] for name, values in middle.items()])
    saved = 1 - real["CtrLoRA LoRA"] / real["ControlNet"]
    figures = f"At SD1.5's size {real['CtrLoRA LoRA']:,} instead of {real['ControlNet']:,}: {saved:.1%} fewer."
    few = Claim("A new condition trains 90% fewer parameters than a ControlNet.", 1 if saved >= 0.895 else -1, figures)
    pair = ("ControlNeXt canny", "ControlNet canny")
    return lines, [
        few,
        compared("A step with ControlNeXt takes less time than one with ControlNet.", pair, middle[pair[0]], middle[pair[1]]),
    ]


SECTIONS = {
    "fidelity": ("Controls control", _fidelity),
    "new_condition": ("A new condition from few pairs", _new_condition),
    "parts": ("The parts of CtrLoRA", _parts),
    "normalization": ("Cross normalization against zero convolution", _normalization),
    "two": ("Two conditions together", _two),
    "cost": ("Parameters and time", _cost),
}
assert list(SECTIONS) == list(STAGES)
