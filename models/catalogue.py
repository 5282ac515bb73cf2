"""What can be downloaded for the pack, from where, and into which folder. Data only: nothing here touches the network."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Download:
    """A model that a node can use."""

    name: str
    """As the user writes it: the folder or file below `models/<folder>`."""
    repository: str
    """On the Hugging Face hub."""
    folder: str
    """Below ComfyUI's models/."""
    task: str
    """What needs it: a key of `preprocessors.annotator.TASKS`, or the capability's name."""
    licence: str
    megabytes: int
    """Rounded size of what is fetched."""
    files: tuple[str, ...] = ()
    """Paths inside the repository; empty for all of it."""


CATALOGUE: tuple[Download, ...] = (
    Download(
        "Depth-Anything-V2-Small-hf", "depth-anything/Depth-Anything-V2-Small-hf", "annotators", "depth", "Apache-2.0", 99
    ),
)


def command_for(name: str, folder: str, task: str) -> str:
    """The sentence that tells how to get a model that is not there.

    Args:
        name: Of the model, known here or not.
        folder: Below ComfyUI's models/.
        task: As in `Download.task`, to name an alternative when `name` is unknown.

    Returns:
        "fetch it with 'hf download ...'."; for an unknown name, the command for a known model of the same task.
    """
    known = next((item for item in CATALOGUE if item.name == name and item.folder == folder), None)
    other = next((item for item in CATALOGUE if item.task == task), None)
    item = known or other
    if item is None:
        return f"put it into models/{folder}."
    files = "".join(f" {file}" for file in item.files)
    place = f"models/{item.folder}" if item.files else f"models/{item.folder}/{item.name}"
    command = f"hf download {item.repository}{files} --local-dir {place}"
    if known:
        return f"fetch it with '{command}' in ComfyUI's folder."
    return f"put it there, or choose '{item.name}' and fetch it with '{command}' in ComfyUI's folder."
