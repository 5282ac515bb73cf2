"""Any release of ComfyUI: the archive that its repository hands out for a version, fetched and unpacked with care."""

from __future__ import annotations

import http.client
import re
import shutil
import urllib.error
import zipfile
import zlib
from pathlib import Path

from downloads import FAILURES, Redirects, TooMuchError, copy_answer, is_plain_path, open_url, reason_of, shown
from provide import SetupError, say

ADDRESS = "https://github.com/Comfy-Org/ComfyUI/archive/refs/tags/v{version}.zip"
SILENCE_SECONDS = 10.0
"""Without a connection, or without a byte from it, before it is given up."""
ARCHIVE_BYTES, TREE_BYTES, TREE_FILES = 300_000_000, 1_000_000_000, 20_000
"""What a release may have at most. 0.33.0 has 42 MB in about 1,000 files."""
OTHERWISE = ", or use a ComfyUI of your own with NEXTCONTROL_COMFYUI=PATH or --comfyui PATH"
DAMAGES = (OSError, ValueError, LookupError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error)
"""What zipfile raises for a file that is cut short, damaged, encrypted or empty, or when the disk is full."""
AUDIO = "torchaudio==2.11.1"
LAST_WITHOUT_AUDIO = (0, 8)


def check_version(text: str) -> str:
    """Refuse what is no version.

    Returns:
        Its numbers alone: "0.33.0", also from "v0.33.0".

    Raises:
        SetupError: It is no version of ComfyUI.
    """
    found = re.fullmatch(r"v?([0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4})", text)
    if found is None:
        message = f"'{text}' is no version of ComfyUI: give one of three numbers, such as 0.3.75."
        raise SetupError(message)
    return found.group(1)


def bare_packages(version: str) -> list[str]:
    """What a release needs beside our torch, to be installed without what it requires, which would be another torch."""
    # Up to 0.8 ComfyUI does without torchaudio; newer ones import it as they start (comfy/ldm/lightricks/vae/audio_vae.py).
    major, minor, _ = map(int, version.split("."))
    return [AUDIO] if (major, minor) > LAST_WITHOUT_AUDIO else []


def fetch_release(version: str, room: Path) -> Path:
    """Fetch a release and unpack it.

    Args:
        version: As `check_version` returns it.
        room: An empty folder for the archive and the tree.

    Returns:
        The tree: a ComfyUI folder in `room`.

    Raises:
        SetupError: It cannot be had, or is something else.
    """
    address = ADDRESS.format(version=version)
    archive, tree = room / "comfyui.zip", room / "comfyui"
    _download(version, address, archive)
    unpack_tree(archive, tree)
    about = tree / "comfyui_version.py"
    if not (tree / "main.py").is_file() or not about.is_file() or f'"{version}"'.encode() not in about.read_bytes():
        message = f"What '{address}' hands out is not ComfyUI {version}: try another version{OTHERWISE}."
        raise SetupError(message)
    return tree


def _download(version: str, address: str, archive: Path) -> None:
    advice = f"check the connection and the proxy, then run this again{OTHERWISE}."
    try:
        with open_url(address, {}, Redirects(), SILENCE_SECONDS) as answer, archive.open("wb") as file:
            say(f"Fetching ComfyUI {version} from '{address}'.")
            copy_answer(answer, file, 0, ARCHIVE_BYTES, lambda *_: None)
    except TooMuchError as error:
        message = f"'{address}' has more than {ARCHIVE_BYTES // 10**6} MB and is no ComfyUI: {advice}"
        raise SetupError(message) from error
    except urllib.error.HTTPError as error:
        if error.code == http.client.NOT_FOUND:
            message = f"There is no ComfyUI {version} at '{address}': give the version of a release{OTHERWISE}."
        else:
            message = f"ComfyUI {version} cannot be fetched ('{address}' answers {error.code}): {advice}"
        raise SetupError(message) from error
    except (*FAILURES, ValueError) as error:
        message = f"ComfyUI {version} cannot be fetched from '{address}' ({reason_of(error)}): {advice}"
        raise SetupError(message) from error


def unpack_tree(archive: Path, tree: Path, prefix: str = "") -> None:
    """Unpack one folder of an archive; a failed one leaves nothing of it.

    Args:
        archive: A zip file.
        tree: Where the folder's content goes, with an empty custom_nodes beside the rest; it does not exist yet.
        prefix: The folder, with a slash at its end; without one, the only folder at the top.

    Raises:
        SetupError: It is no such archive, too large, or has a path that leads out of the folder.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            _unpack(file, tree, prefix or f"{file.namelist()[0].partition('/')[0]}/")
    except SetupError:
        shutil.rmtree(tree, ignore_errors=True)
        raise
    except DAMAGES as error:
        shutil.rmtree(tree, ignore_errors=True)
        message = f"'{archive.name}' cannot be unpacked ({reason_of(error)}): run this again, with free disk space{OTHERWISE}."
        raise SetupError(message) from error


def _unpack(file: zipfile.ZipFile, tree: Path, prefix: str) -> None:
    members = [member for member in file.infolist() if member.filename.startswith(prefix) and member.filename != prefix]
    # What a member claims to have is also the most that is written of it.
    size = sum(member.file_size for member in members)
    if len(members) > TREE_FILES or size > TREE_BYTES:
        message = (
            f"'{Path(str(file.filename)).name}' has {len(members)} files and {size / 1e6:.0f} MB and is no ComfyUI{OTHERWISE}."
        )
        raise SetupError(message)
    for member in members:
        member.filename = member.filename[len(prefix) :]
        # A folder's name ends with a slash; a release has names with a dot at their beginning.
        if not is_plain_path(re.sub(r"(^|/)\.(?=[^./])", r"\1", member.filename.removesuffix("/"))):
            message = f"'{shown(member.filename)}' leads out of the archive's folder: nothing is unpacked{OTHERWISE}."
            raise SetupError(message)
    for member in members:
        file.extract(member, tree)
    (tree / "custom_nodes").mkdir(exist_ok=True)
