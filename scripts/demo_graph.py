"""What the demo runs: the demo workflows on a model of the user's own, and workflows for real models on the demo model."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from demo_job import set_inputs, title_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from demo_job import Graph

DEMO_LOADER, CHECKPOINT_LOADER = "NextControlLoadDemoModel", "CheckpointLoaderSimple"
SOURCE = "Source picture"
"""Title of the node that makes the picture from which the hints are taken."""
THING, PROMPT = "Thing to draw", "Prompt"
"""Titles of the two texts."""
DRAWING = "Draw the source"
"""Title of the sampler whose picture the hints are taken from."""
LATENT = "EmptyLatentImage"
REAL = {"resolution": 512, "cell": 64, "cfg": 7.0, "learning_rate": 1e-4}
"""What SD1.5 needs in the place of the demo model's values, beside the size of its latents."""
SMALL = {"resolution": 128, "cell": 16}
"""What the demo model needs in the place of SD1.5's."""
REAL_LOADERS = ("ImageOnlyCheckpointLoader", "CLIPVisionLoader", "UNETLoader", "ControlNetLoader")
"""Classes of nodes for which the demo model has nothing."""
NO_FILE = "none"
DEMO = "demo_"
"""What the names of the pack's files begin with."""


@dataclass(frozen=True)
class ControlFile:
    """A file that comes with the pack, and the option that names another in its place."""

    name: str
    folder: str
    """Kind of model files."""
    option: str


CONTROLS = (
    ControlFile("demo_controlnext_canny.safetensors", "controlnext", "controlnext"),
    ControlFile("demo_controlnext_canny_unet.safetensors", "controlnext", "unet"),
    ControlFile("demo_ctrlora_base.safetensors", "ctrlora", "ctrlora_base"),
    ControlFile("demo_ctrlora_base_canny.safetensors", "ctrlora", "ctrlora_canny"),
    ControlFile("demo_ctrlora_base_palette.safetensors", "ctrlora", "ctrlora_palette"),
)
MODULE, UNET, BASE, CANNY, PALETTE = (control.name for control in CONTROLS)
NATIVE = "demo_controlnet_canny.safetensors"
"""Does not come with the pack; the tests make one."""
FILES = {
    "control_file": MODULE,
    "unet_file": UNET,
    "base_file": BASE,
    "lora_file": CANNY,
    "control_net_name": NATIVE,
}
"""The pack's file for each input of a loader."""


def nodes_of(graph: Graph, kind: str) -> list[dict[str, Any]]:
    """The nodes of a class."""
    return [node for node in graph.values() if node["class_type"] == kind]


def titled(graph: Graph, title: str) -> str:
    """The id of the node with that title, or of the first."""
    return next(name for name in graph if title_of(graph, name) == title)


def needs(graph: Graph) -> list[ControlFile]:
    """The files of the pack that a workflow loads, in the order of `CONTROLS`; UNet weights are no need of their own."""
    values = {str(value) for node in graph.values() for value in node["inputs"].values()}
    return [control for control in CONTROLS if control.name in values and control.name != UNET]


def use_files(graph: Graph, files: Mapping[str, str]) -> None:
    """Load other control files: `files` maps names of the pack's to names as the loaders list them.

    UNet weights belong to their module: another module without them runs alone.
    """
    changed = {UNET: NO_FILE, **files} if MODULE in files else dict(files)
    for node in graph.values():
        node["inputs"] |= {
            name: changed[value] for name, value in node["inputs"].items() if isinstance(value, str) and value in changed
        }


def use_checkpoint(graph: Graph, name: str) -> None:
    """Run a demo workflow on an SD1.5 checkpoint, at its size."""
    for node in nodes_of(graph, DEMO_LOADER):
        node.update(class_type=CHECKPOINT_LOADER, inputs={"ckpt_name": name})
    use_sizes(graph, REAL)


def use_sizes(graph: Graph, values: Mapping[str, float]) -> None:
    """Put sizes and the like into a workflow; latents get the hints' resolution."""
    for name, value in values.items():
        set_inputs(graph, name, value)
    for name in ("width", "height"):
        set_inputs(graph, name, values["resolution"], (LATENT,))


def use_image(graph: Graph, name: str) -> None:
    """Take the hints from an uploaded picture."""
    graph[titled(graph, SOURCE)] = {"class_type": "LoadImage", "inputs": {"image": name}, "_meta": {"title": SOURCE}}


def use_thing(graph: Graph, thing: str) -> None:
    """Take the hints from a drawing of `thing`."""
    graph[titled(graph, THING)]["inputs"]["text"] = thing


def use_prompt(graph: Graph, prompt: str) -> None:
    """Draw `prompt` by the hints."""
    graph[titled(graph, PROMPT)]["inputs"]["text"] = prompt


def use_seed(graph: Graph, seed: int) -> None:
    """Draw the results with another seed; the source stays as it is."""
    drawing = titled(graph, DRAWING)
    set_inputs({name: node for name, node in graph.items() if name != drawing}, "seed", seed, ("KSampler",))


def on_demo_model(graph: Graph) -> Graph:
    """A workflow for an SD1.5 checkpoint, on the demo model: other loaders, the pack's controls, small pictures.

    Args:
        graph: Is not changed. Of its CtrLoRAs the palette stays one, and all others become edges.

    Returns:
        The changed copy.
    """
    changed = copy.deepcopy(graph)
    for node in nodes_of(changed, CHECKPOINT_LOADER):
        node.update(class_type=DEMO_LOADER, inputs={})
    for node in changed.values():
        for name, value in node["inputs"].items():
            if name in FILES and isinstance(value, str) and value != NO_FILE and not value.startswith(DEMO):
                is_palette = name == "lora_file" and "palette" in value
                node["inputs"][name] = PALETTE if is_palette else FILES[name]
    use_sizes(changed, SMALL)
    return changed


def real_only(graph: Graph) -> str:
    """The title of a node that loads what the pack has nothing of; empty if there is none."""
    return next((title_of(graph, name) for name, node in graph.items() if node["class_type"] in REAL_LOADERS), "")


def missing(graph: Graph, given: Iterable[str]) -> list[ControlFile]:
    """The files that a workflow needs and whose options are not among `given`."""
    return [control for control in needs(graph) if control.option not in set(given)]
