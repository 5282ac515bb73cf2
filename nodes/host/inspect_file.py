"""A weight file as text, and text on a node."""

from __future__ import annotations

from dataclasses import replace
from html import escape

from server import PromptServer

from ...models.ctrlora_file import control_tensors
from ...models.describe import CONTROLNEXT_KINDS, CTRLORA_KINDS, describe_file, to_lines
from ...models.detect import UnsupportedCheckpointError
from .files import check_finite, read_file
from .folders import CONTROL_FOLDERS, find_file


def inspect_file(file: str) -> str:
    """Say what a weight file is.

    Args:
        file: As chosen in the combo.

    Returns:
        Several lines. Where our loaders refuse the file, one of them is their sentence.

    Raises:
        FileNotFoundError: The file is not there.
        UnsupportedCheckpointError: It cannot be read.
    """
    path = find_file(file, CONTROL_FOLDERS)
    tensors, metadata = read_file(path, file)
    about = describe_file(tensors, file, metadata, path.stat().st_size)
    if about.kind and not about.problem and about.kind.id in (*CONTROLNEXT_KINDS, *CTRLORA_KINDS, "unet"):
        try:
            check_finite(control_tensors(tensors) if about.kind.id in CTRLORA_KINDS else tensors, file)
        except UnsupportedCheckpointError as error:
            about = replace(about, problem=str(error))
    return "\n".join(to_lines(about))


def show_text(text: str, node_id: str | None) -> None:
    """Show text on a node in the web page, until it is replaced; without a server or a page nothing happens.

    Args:
        text: Any lines. The page takes them for HTML, so what a file says of itself must not reach it unescaped.
        node_id: Of the node that runs.
    """
    server = getattr(PromptServer, "instance", None)
    if server is not None and node_id is not None:
        server.send_progress_text(escape(text).replace("  ", "&nbsp; "), node_id)
