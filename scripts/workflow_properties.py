"""Write into the workflows and subgraphs what ComfyUI's page and ComfyUI-Manager read in a node's properties.

    python3 scripts/workflow_properties.py

`cnr_id` and `ver` say which pack a node is from, so that a missing pack is found by name; `models` says where the files that a
loader is set to can be downloaded, so that the page offers those that are missing. Run it after a new version in
pyproject.toml, a new row of models/catalogue.py, or a workflow saved from the page. Standard library only.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hub import read_catalogue

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "CheckpointLoaderSimple": "checkpoints",
    "ImageOnlyCheckpointLoader": "checkpoints",
    "NextControlLoadControlNeXt": "controlnext",
    "NextControlLoadCtrLoRABase": "ctrlora",
    "NextControlLoadCtrLoRA": "ctrlora",
    "ControlNetLoader": "controlnet",
}
"""Where the files that a loader is set to are kept below models/."""
SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pth", ".pt")
"""What the page downloads: src/platform/missingModel of ComfyUI_frontend 1.49 and 1.58. 1.32 takes the first two only, and
names the others with its reason. A .bin file is never offered."""
HUB = "https://huggingface.co"
BASES = {
    # As in ComfyUI's own templates (comfyui_workflow_templates).
    "v1-5-pruned-emaonly-fp16.safetensors": f"{HUB}/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/",
    "sd_xl_base_1.0.safetensors": f"{HUB}/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/",
    "control_v11f1p_sd15_depth_fp16.safetensors": f"{HUB}/comfyanonymous/ControlNet-v1-1_fp16_safetensors/resolve/main/",
    "dreamshaper_8.safetensors": (
        "https://civitai.com/api/download/models/128713?type=Model&format=SafeTensor&size=pruned&fp=fp16"
    ),
    # From the same repository as the depth one.
    "control_v11f1e_sd15_tile_fp16.safetensors": f"{HUB}/comfyanonymous/ControlNet-v1-1_fp16_safetensors/resolve/main/",
    # The licence has to be accepted there first, which newer pages say.
    "svd_xt_1_1.safetensors": f"{HUB}/stabilityai/stable-video-diffusion-img2vid-xt-1-1/resolve/main/",
}
"""Where files come from that are not the pack's own; an address that ends with a slash is followed by the file's name."""
NOTES = frozenset({"MarkdownNote", "Note"})
"""Made by the page, of no pack."""


def versions() -> tuple[str, str]:
    """The pack's version, and the oldest ComfyUI that it runs on; both from pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = [re.search(pattern, text, re.MULTILINE) for pattern in (r'^version = "(.+)"$', r'^requires-comfyui = ">=(.+)"$')]
    pack, comfyui = (match.group(1) for match in found if match)
    return pack, comfyui


def address_of(file: str, folder: str) -> str | None:
    """Where a file can be downloaded.

    Args:
        file: As a loader's widget has it, relative to `folder`.
        folder: Below models/.

    Returns:
        None if it is not published, or in a form that the page does not download.
    """
    if not file.endswith(SUFFIXES):
        return None
    name = file.rpartition("/")[2]
    if name in BASES:
        return BASES[name] + (name if BASES[name].endswith("/") else "")
    for item in read_catalogue():
        for path in item.files:
            # Several releases call their files the same; only their own folder tells which one is meant.
            wanted = f"{item.place}/{path}" if item.place else path.rpartition("/")[2]
            if item.folder == folder and wanted == (file if item.place else name):
                return f"{HUB}/{item.repository}/resolve/main/{quote(path)}"
    return None


def models_of(node: dict[str, Any]) -> list[dict[str, str]]:
    """What the page can offer for the files that a node is set to."""
    folder = FOLDERS.get(node["type"], "")
    values = node.get("widgets_values") or () if folder else ()
    files = dict.fromkeys(value for value in values if isinstance(value, str))
    found = ((file, address_of(file, folder)) for file in files)
    return [{"name": file, "url": address, "directory": folder} for file, address in found if address]


def all_nodes(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    """The nodes of a workflow, those of its subgraphs too."""
    graphs = (workflow, *workflow.get("definitions", {}).get("subgraphs", ()))
    return [node for graph in graphs for node in graph["nodes"]]


def complete(workflow: dict[str, Any]) -> dict[str, Any]:
    """Set the three properties of every node, also of those in subgraphs; nothing else changes.

    Args:
        workflow: In the page's format; changed in place.

    Returns:
        The same workflow.
    """
    pack, comfyui = versions()
    of_no_pack = NOTES | {subgraph["id"] for subgraph in workflow.get("definitions", {}).get("subgraphs", ())}
    for node in all_nodes(workflow):
        if node["type"] in of_no_pack:
            continue
        is_ours = node["type"].startswith("NextControl")
        properties = node["properties"]
        properties |= {"cnr_id": "nextcontrol", "ver": pack} if is_ours else {"cnr_id": "comfy-core", "ver": comfyui}
        properties.pop("models", None)
        if models := models_of(node):
            properties["models"] = models
    return workflow


def files() -> list[Path]:
    """Every file in the page's format."""
    return sorted(path for folder in ("workflows", "subgraphs") for path in (ROOT / folder).glob("*.json"))


def main() -> None:
    """Rewrite the files."""
    for path in files():
        workflow = complete(json.loads(path.read_text(encoding="utf-8")))
        path.write_text(json.dumps(workflow, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
