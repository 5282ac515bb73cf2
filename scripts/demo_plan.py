"""Which workflows the demo runs with which inputs, from its command line."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from demo_graph import (
    CONTROLS,
    missing,
    on_demo_model,
    real_only,
    use_checkpoint,
    use_files,
    use_image,
    use_prompt,
    use_seed,
    use_thing,
)
from demo_job import read_workflow, set_inputs
from private_host import ROOT
from provide import SetupError

if TYPE_CHECKING:
    import argparse

    from demo_job import Graph

WORKFLOWS = ROOT / "workflows" / "api"
EXAMPLES = {"demo_controlnext": "ControlNeXt", "demo_ctrlora": "CtrLoRA", "demo_two_conditions": "two conditions"}
TRAINING = "demo_train_ctrlora"
SUBJECTS = (("cat face", "pig face"), ("pear", "avocado"), ("tomato", "strawberry"))
"""What the hints are taken from, and what is drawn by them."""
SHOWN = ("Source", "Hint", "Without control", "ControlNeXt", "CtrLoRA", "Hint: colours", "Two conditions")
TRAINED = ("Source", "Hint", "Before training", "After training")
"""Columns, by the titles of the nodes."""


@dataclass(frozen=True)
class Job:
    """A row of the sheet."""

    name: str
    title: str
    graphs: list[Graph]
    """Run one after the other."""
    shown: tuple[str, ...] = ()
    """Titles of the nodes whose pictures are shown, in order; all, if none is named."""

    @property
    def folder(self) -> str:
        """For its pictures."""
        return self.name.replace(" ", "_")


def plan(options: argparse.Namespace) -> tuple[list[Job], list[str]]:
    """The rows, and what is left out.

    Args:
        options: Of the command line.

    Returns:
        The jobs in order, and a phrase for each workflow for which no file is given.

    Raises:
        SetupError: Nothing can be run, or the workflow cannot be read.
    """
    if options.workflow:
        return [_one_workflow(options)], []
    given = {control.option for control in CONTROLS if getattr(options, control.option)}
    graphs, left_out = {}, []
    for name in [*EXAMPLES, *([] if options.no_training else [TRAINING])]:
        graph = read_workflow(WORKFLOWS / f"{name}.json")
        absent = missing(graph, given) if options.checkpoint else []
        if absent:
            wanted = ", ".join(f"--{control.option.replace('_', '-')}" for control in absent)
            left_out.append(f"{EXAMPLES.get(name, 'training')} ({wanted})")
        else:
            graphs[name] = _prepared(graph, options)
    if not graphs:
        message = (
            "--checkpoint needs a control for it, because the demo's own fit the demo model alone: give --controlnext, or "
            "--ctrlora-base and --ctrlora-canny."
        )
        raise SetupError(message)
    training = graphs.pop(TRAINING, None)
    jobs = [_row(thing, prompt, list(graphs.values()), options) for thing, prompt in _subjects(options)] if graphs else []
    if training is not None:
        jobs.append(Job(TRAINING, f"A new condition, trained for {_steps(training)} steps", [training], TRAINED))
    return jobs, left_out


def _prepared(graph: Graph, options: argparse.Namespace) -> Graph:
    """With the user's files, picture and seed."""
    if options.checkpoint:
        use_checkpoint(graph, options.checkpoint.name)
    own = [(control, getattr(options, control.option)) for control in CONTROLS]
    use_files(graph, {control.name: f"{control.option}/{path.name}" for control, path in own if path})
    if options.image:
        use_image(graph, options.image.name)
    if options.seed is not None:
        use_seed(graph, options.seed)
    return graph


def _subjects(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Source and prompt of each row."""
    if options.image:
        return [("", options.prompt or "")]
    return [(thing, prompt if options.prompt is None else options.prompt) for thing, prompt in SUBJECTS]


def _row(thing: str, prompt: str, graphs: list[Graph], options: argparse.Namespace) -> Job:
    own = copy.deepcopy(graphs)
    for graph in own:
        if thing:
            use_thing(graph, thing)
        use_prompt(graph, prompt)
    source = thing or options.image.stem
    return Job(source, f"Hints from '{source}', prompt '{prompt}'", own, SHOWN)


def _steps(graph: Graph) -> int:
    (steps,) = (node["inputs"]["steps"] for node in graph.values() if node["class_type"] == "NextControlTrainCtrLoRA")
    return int(steps)


def _one_workflow(options: argparse.Namespace) -> Job:
    """Any workflow, with what the command line says put into it."""
    graph = read_workflow(options.workflow)
    if options.checkpoint is None:
        if absent := real_only(graph):
            message = (
                f"'{options.workflow.name}' has '{absent}', and nothing of that kind comes with the pack: give --checkpoint."
            )
            raise SetupError(message)
        graph = on_demo_model(graph)
    else:
        set_inputs(graph, "ckpt_name", options.checkpoint.name)
    names = {"controlnext": "control_file", "unet": "unet_file", "ctrlora_base": "base_file", "ctrlora_canny": "lora_file"}
    for option, name in names.items():
        if path := getattr(options, option):
            set_inputs(graph, name, f"{option}/{path.name}")
    if options.controlnext and not options.unet:
        set_inputs(graph, "unet_file", "none")
    if options.seed is not None:
        set_inputs(graph, "seed", options.seed)
        set_inputs(graph, "noise_seed", options.seed)
    if options.prompt is not None:
        texts = {node["inputs"]["positive"][0] for node in graph.values() if "positive" in node["inputs"]}
        for node in texts & graph.keys():
            set_inputs({node: graph[node]}, "text", options.prompt, ("CLIPTextEncode",))
    if options.image:
        set_inputs(graph, "image", options.image.name, ("LoadImage",))
    return Job(options.workflow.stem, f"Running {options.workflow.name}", [graph])
