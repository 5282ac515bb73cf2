"""The pack's table of contents."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .apply import ApplyControlNeXt
from .ctrlora import LoadCtrLoRA, LoadCtrLoRABase
from .hint_lines import Canny
from .host.folders import register_folders
from .loaders import LoadControlNeXt
from .tools import ConvertFile, InspectFile

NODES: tuple[type[io.ComfyNode], ...] = (
    LoadControlNeXt,
    ApplyControlNeXt,
    LoadCtrLoRABase,
    LoadCtrLoRA,
    Canny,
    InspectFile,
    ConvertFile,
)


class NextControlExtension(ComfyExtension):
    """What the host asks for at its start."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Register the model folders and return the nodes. The host never calls `on_load`, so it is done here."""
        register_folders()
        return list(NODES)
