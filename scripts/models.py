"""The files that the nodes can use: which there are, which are there, and fetching those that are named.

    python3 scripts/models.py list [--comfyui PATH]
    python3 scripts/models.py fetch NAME... [--comfyui PATH]

PATH is the ComfyUI folder; without it NEXTCONTROL_COMFYUI counts, then the ComfyUI that this pack lies in, then the working
folder. HF_ENDPOINT names a mirror of the hub, HF_TOKEN a token for repositories that need one.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub import RemoteFile, fetch, list_folder, read_catalogue
from provide import SetupError, cache_home, hold_lock, keyed_folder, say

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).absolute().parents[1]
WEIGHTS = {".safetensors", ".bin", ".pth", ".pt", ".ckpt"}
SHOW_SECONDS, TERMINAL_SECONDS = 10.0, 0.1


def find_comfyui(chosen: Path | None) -> Path:
    """The ComfyUI folder whose models/ is meant.

    Args:
        chosen: From the command line.

    Returns:
        Its path.

    Raises:
        SetupError: None is given and none is found, or what is given is none.
    """
    if chosen is None and (variable := os.environ.get("NEXTCONTROL_COMFYUI")):
        chosen = Path(variable)
    if chosen is not None:
        chosen = chosen.expanduser().absolute()
        if not _is_comfyui(chosen):
            raise SetupError(f"'{chosen}' is not a ComfyUI folder: give the folder that holds its main.py.")
        return chosen
    places = [ROOT.parents[1], Path.cwd(), Path.cwd() / "ComfyUI"]
    found = next((place for place in places if _is_comfyui(place)), None)
    if found is None:
        raise SetupError("No ComfyUI is found here: give its folder with --comfyui PATH or NEXTCONTROL_COMFYUI.")
    return found


def _is_comfyui(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfyui_version.py").is_file()


def base_of(item: Any, comfyui: Path) -> Path:
    """The folder in which the paths of an item's repository begin."""
    return comfyui / "models" / item.folder / (item.place or ("" if item.files else item.name))


def find_present(item: Any, comfyui: Path) -> str:
    """How much of an item is there: "yes", "part" or "no". A single file may lie anywhere below its folder of models/."""
    base = base_of(item, comfyui)
    if not item.files or item.files[0].endswith("/"):
        folder = base / item.files[0] if item.files else base
        found = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
        if any(path.suffix == ".part" for path in found):
            return "part"
        return "yes" if any(path.suffix in WEIGHTS for path in found) else "no"
    count = sum(_find_file(item, file, comfyui) is not None for file in item.files)
    is_begun = count or any((base / f"{file}.part").exists() for file in item.files)
    return "yes" if count == len(item.files) else "part" if is_begun else "no"


def _find_file(item: Any, file: str, comfyui: Path) -> Path | None:
    target = base_of(item, comfyui) / file
    if target.is_file():
        return target
    folder = comfyui / "models" / item.folder
    # Several releases call their files the same; such a one counts in its own place alone.
    is_named_after = target.name == item.name
    return next(folder.rglob(target.name), None) if is_named_after and folder.is_dir() else None


def print_list(comfyui: Path) -> None:
    """Print the table."""
    print(f"In '{comfyui / 'models'}':\n")
    print(f"{'there':<6}{'size':>9}  {'for':<20}{'licence':<24}name")
    for item in read_catalogue():
        size = f"{item.megabytes} MB" if item.megabytes else "?"
        print(f"{find_present(item, comfyui):<6}{size:>9}  {item.task:<20}{item.licence:<24}{item.name}")
    print("\nFetch with: python3 scripts/models.py fetch NAME")


def find_items(names: list[str]) -> list[Any]:
    """The items of the catalogue with these names.

    Args:
        names: As `list` prints them.

    Returns:
        One for each name.

    Raises:
        SetupError: A name is not in the catalogue; the message has the nearest.
    """
    known = {item.name: item for item in read_catalogue()}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 3, 0.4)
            hint = f"; nearest is {' or '.join(near)}" if near else ""
            raise SetupError(f"'{name}' is not in the list{hint}: 'python3 scripts/models.py list' prints all names.")
    return [known[name] for name in dict.fromkeys(names)]


def remote_files(item: Any) -> Iterator[RemoteFile]:
    """What has to be fetched for an item; folders are asked of the hub."""
    if not item.files:
        yield from list_folder(item.repository)
    for path in item.files:
        if path.endswith("/"):
            yield from list_folder(item.repository, path)
        else:
            yield RemoteFile(item.repository, path, item.size, item.sha256)


def fetch_item(item: Any, comfyui: Path) -> None:
    """Fetch what is missing of an item.

    Args:
        item: Of the catalogue.
        comfyui: Whose models/ it goes into.

    Raises:
        SetupError: A file cannot be fetched.
    """
    base = base_of(item, comfyui)
    lock = keyed_folder("fetch", {"folder": str(base.resolve()), "name": item.name}).with_suffix(".lock")
    cache_home().mkdir(parents=True, exist_ok=True)
    with hold_lock(lock):
        files = list(remote_files(item))
        if not files:
            raise SetupError(f"The hub has nothing of '{item.name}' in '{item.repository}': look at the repository's page.")
        for file in files:
            if there := _find_file(item, file.path, comfyui):
                print(f"{there}: there already")
                continue
            target = base / file.path
            checked = fetch(file, target, Progress(file.path))
            print(f"{target}: {target.stat().st_size / 1e6:.1f} MB, {checked} checked, licence: {item.licence}", flush=True)
    lock.unlink(missing_ok=True)


class Progress:
    """Bytes so far on stderr: one line that updates on a terminal, a line now and then elsewhere."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.shown = time.monotonic()
        self.is_terminal = sys.stderr.isatty()

    def __call__(self, done: int, size: int) -> None:
        """Tell how far it is, now and then."""
        now = time.monotonic()
        if now - self.shown < (TERMINAL_SECONDS if self.is_terminal else SHOW_SECONDS) and done != size:
            return
        self.shown = now
        share = f" of {size / 1e6:.1f} MB ({100 * done // size} %)" if size else " MB"
        text = f"{self.name}: {done / 1e6:.1f}{share}"
        if self.is_terminal:
            sys.stderr.write(f"\r{text:<78}" + ("\n" if done == size else ""))
        else:
            sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def main(arguments: list[str] | None = None) -> int:
    """List or fetch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    for action, text in (("list", "print what there is"), ("fetch", "download what is named")):
        sub = actions.add_parser(action, help=text)
        if action == "fetch":
            sub.add_argument("names", nargs="+", metavar="NAME", help="as `list` prints it")
        sub.add_argument("--comfyui", type=Path, help="the ComfyUI folder")
    options = parser.parse_args(arguments)
    try:
        comfyui = find_comfyui(options.comfyui)
        if options.action == "list":
            print_list(comfyui)
            return 0
        items = find_items(options.names)
        return max(_fetch_or_say(item, comfyui) for item in items)
    except SetupError as error:
        say(f"models.py: {error}")
        return 1
    except BrokenPipeError:  # whoever reads the list has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        say("models.py: interrupted; the next run goes on where this one stopped.")
        return 130


def _fetch_or_say(item: Any, comfyui: Path) -> int:
    try:
        fetch_item(item, comfyui)
    except SetupError as error:
        say(f"models.py: {error}")
        return 1
    except OSError as error:
        say(f"models.py: '{item.name}' cannot be written ({error}): look at the folder's rights.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
