"""Bring up a real ComfyUI for the demo and the tests: the user's own, or a private one in the cache, of any release.

`python3 scripts/host.py` prints one line of JSON: {"python": ..., "comfyui": ..., "version": ...}.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from private_host import COMFYUI, PYTHON, ROOT, private_folder
from provide import SetupError, say


@dataclass(frozen=True)
class Host:
    """A ComfyUI that can be started."""

    python: Path
    comfyui: Path
    version: str


def find_host(comfyui: Path | None = None, python: Path | None = None, release: str | None = None) -> Host:
    """The ComfyUI to work with.

    Args:
        comfyui: A ComfyUI folder. Without it NEXTCONTROL_COMFYUI counts, and without that a private ComfyUI is made.
        python: The interpreter that runs `comfyui`. Without it NEXTCONTROL_PYTHON counts, then the folder's own
            virtual environment, then the interpreter of Windows' portable ComfyUI, then the running one.
        release: A version of ComfyUI; a private one is made of its official archive, whatever the variables name.

    Returns:
        The host; a private one is whole, a given one has torch and what the pack needs.

    Raises:
        SetupError: There is no usable ComfyUI, in one sentence that says what to do.
    """
    if release and (comfyui or python):
        message = f"--release {release} brings a ComfyUI and a Python of its own: leave out --comfyui and --python."
        raise SetupError(message)
    comfyui = comfyui or _path_from("NEXTCONTROL_COMFYUI")
    if release or comfyui is None:
        folder = private_folder(release)
        return Host(folder / PYTHON, folder / COMFYUI, _version_of(folder / COMFYUI))
    comfyui = comfyui.expanduser().absolute()
    missing = [name for name in ("main.py", "comfyui_version.py") if not (comfyui / name).is_file()]
    if missing:
        names = " and no ".join(f"'{name}'" for name in missing)
        message = f"'{comfyui}' is not a ComfyUI folder: it has no {names}. Give the folder that holds its main.py."
        raise SetupError(message)
    python = python or _path_from("NEXTCONTROL_PYTHON") or _python_of(comfyui)
    _check_modules(python, comfyui)
    return Host(python, comfyui, _version_of(comfyui))


def _path_from(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value) if value else None


def _python_of(comfyui: Path) -> Path:
    inside = "Scripts/python.exe" if sys.platform == "win32" else "bin/python"
    places = [comfyui / "venv" / inside, comfyui / ".venv" / inside, comfyui.parent / "python_embeded" / "python.exe"]
    return next((place for place in places if place.is_file()), Path(sys.executable))


def _version_of(comfyui: Path) -> str:
    text = (comfyui / "comfyui_version.py").read_text(encoding="utf-8")
    found = re.search(r"__version__\s*=\s*[\"']([^\"']+)", text)
    return found.group(1) if found else "unknown"


def _check_modules(python: Path, comfyui: Path) -> None:
    script = "import importlib.util as u, sys; print(*[m for m in sys.argv[1:] if u.find_spec(m) is None])"
    try:
        answer = subprocess.run([python, "-c", script, "torch", "cv2"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        message = f"'{python}' does not run ({error}): name the Python of '{comfyui}' with --python or NEXTCONTROL_PYTHON."
        raise SetupError(message) from error
    missing = answer.stdout.split()
    if "torch" in missing:
        message = f"'{python}' has no torch: name the Python that runs '{comfyui}' with --python or NEXTCONTROL_PYTHON."
        raise SetupError(message)
    if missing:
        message = f"'{python}' lacks what the pack requires: run '{python} -m pip install -r {ROOT / 'requirements.txt'}'."
        raise SetupError(message)


def main(arguments: list[str] | None = None) -> int:
    """Find or make the host and print it as JSON."""
    parser = argparse.ArgumentParser(description="Find or set up a ComfyUI and print where it is, as one line of JSON.")
    parser.add_argument("--comfyui", type=Path, help="a ComfyUI of your own (or NEXTCONTROL_COMFYUI); default: a private one")
    parser.add_argument("--python", type=Path, help="the Python that runs it (or NEXTCONTROL_PYTHON)")
    parser.add_argument("--release", metavar="VERSION", help="a private ComfyUI of this version, from its official archive")
    options = parser.parse_args(arguments)
    try:
        host = find_host(options.comfyui, options.python, options.release)
    except SetupError as error:
        say(f"host.py: {error}")
        return 1
    except KeyboardInterrupt:
        say("host.py: interrupted; the next run starts the set-up anew.")
        return 130
    print(json.dumps({"python": str(host.python), "comfyui": str(host.comfyui), "version": host.version}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
