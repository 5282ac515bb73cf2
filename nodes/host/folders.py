"""Model folders: which files a combo shows, and where a chosen one lies."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ...models.foreign import shown

CONTROLNEXT_FOLDERS = ("controlnext", "controlnet")
"""Where control modules may lie."""
UNET_FOLDERS = (*CONTROLNEXT_FOLDERS, "diffusion_models")
"""Where fine-tuned UNet weights may lie; a full SVD UNet is a diffusion model of its own."""
CTRLORA_FOLDERS = ("ctrlora", "controlnet")
"""Where bases and conditions of CtrLoRA may lie."""
CONTROL_FOLDERS = ("controlnext", "ctrlora", "controlnet", "diffusion_models")
"""Where any of these may lie."""
OWN_FOLDERS = ("controlnext", "ctrlora")
NO_FILE_YET = "no file yet"
"""Begins what a combo shows where there is nothing to choose."""
DEMO = Path(__file__).parents[2] / "demo"
"""What comes with the pack."""
DEMO_FOLDERS = ("controlnext", "ctrlora", "controlnet")
"""Kinds of which the pack brings files, in sub-folders of `DEMO`."""


def register_folders() -> None:
    """Tell ComfyUI about our model folders. Places that the user's own configuration added stay valid."""
    folder_paths.add_model_folder_path("annotators", str(Path(folder_paths.models_dir) / "annotators"))
    for kind in OWN_FOLDERS:
        folder_paths.add_model_folder_path(kind, str(Path(folder_paths.models_dir) / kind))
        # A kind made this way lists every file; show weights only.
        folder_paths.folder_names_and_paths[kind][1].update(folder_paths.supported_pt_extensions)
    # Last: a file of the user's own is found first, and new ones are written into the first place.
    for kind in DEMO_FOLDERS:
        if (DEMO / kind).is_dir():
            folder_paths.add_model_folder_path(kind, str(DEMO / kind))


def list_files(kinds: tuple[str, ...]) -> list[str]:
    """Names of the files of several folder kinds, with forward slashes on every system, each once; the pack's own last."""
    names = (name.replace("\\", "/") for kind in kinds for name in folder_paths.get_filename_list(kind))
    shipped = {path.relative_to(DEMO / kind).as_posix() for kind in DEMO_FOLDERS for path in (DEMO / kind).rglob("*")}
    return sorted(dict.fromkeys(names), key=shipped.__contains__)


def file_options(kinds: tuple[str, ...]) -> list[str]:
    """`list_files` for a combo that would be empty without a file.

    The page shows nothing in an empty combo and leaves it out of what it sends, and the host then says that an input is
    missing, not which file is.

    Args:
        kinds: Folder kinds.

    Returns:
        The names, or one that says where to put a file.
    """
    return list_files(kinds) or [f"{NO_FILE_YET}: put one into models/{kinds[0]}"]


def find_file(name: str, kinds: tuple[str, ...]) -> Path:
    """The path of a file chosen in a combo.

    Args:
        name: As listed by `list_files` or `file_options`, or with backslashes.
        kinds: Folder kinds, searched in this order.

    Returns:
        The path of the first that exists.

    Raises:
        FileNotFoundError: None does; the message names the folder to put it in.
    """
    for kind in kinds:
        path = folder_paths.get_full_path(kind, name.replace("\\", "/"))
        if path is not None:
            return Path(path)
    places = [f"models/{kind}" for kind in kinds]
    if name.startswith(NO_FILE_YET):
        raise FileNotFoundError(
            f"There is no weight file in {' or '.join(places)}: put one into {places[0]}, press R on the canvas and choose it."
        )
    raise FileNotFoundError(
        f"'{shown(name)}' is not in any of {', '.join(places)}: put it into {places[0]}, press R on the canvas and choose it "
        "again."
    )


def fingerprint(name: str, kinds: tuple[str, ...]) -> tuple[str, int, int] | None:
    """Path, time and size of a file, so that a file replaced on disk is read again; None if there is none."""
    try:
        path = find_file(name, kinds)
        status = path.stat()
    except OSError:  # none, or one that goes away meanwhile
        return None
    return str(path), status.st_mtime_ns, status.st_size
