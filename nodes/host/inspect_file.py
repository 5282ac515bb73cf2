"""A weight file as text."""

from __future__ import annotations

from dataclasses import replace

from ...models.ctrlora_file import control_tensors, is_alpha
from ...models.describe import CONTROLNEXT_KINDS, CTRLORA_KINDS, describe_file, to_lines
from ...models.detect import UnsupportedCheckpointError
from .files import check_weights, read_file
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
            own = control_tensors(tensors) if about.kind.id in CTRLORA_KINDS else tensors
            check_weights({key: tensor for key, tensor in own.items() if not is_alpha(key)}, file)
        except UnsupportedCheckpointError as error:
            about = replace(about, problem=str(error))
    return "\n".join(to_lines(about))
