"""Packages of the pack's extras, in a folder of their own beside the host, whose own packages they cannot replace."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, NamedTuple

from private_host import ROOT
from provide import SetupError, log_of, provide
from steps import Steps

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from host import Host

# Decides what the folder holds; asked of the host's Python, because this one may be too old for tomllib.
DESCRIBE = """
import json, sys, sysconfig
try:
    import tomllib
except ModuleNotFoundError:
    from pip._vendor import tomli as tomllib
with open(sys.argv[1], "rb") as file:
    extras = tomllib.load(file)["project"]["optional-dependencies"]
python = [sys.implementation.name, *sys.version_info[:2]]
packages = {name: extras[name] for name in sys.argv[2:]}
print(json.dumps({"packages": packages, "python": python, "platform": sysconfig.get_platform()}))
"""


class Extra(NamedTuple):
    """A row of `optional-dependencies` in pyproject.toml."""

    name: str
    title: str
    """Of the step in which it is installed."""
    is_bare: bool = False
    """Without what its packages require."""


def find_extras(host: Host, name: str, extras: Sequence[Extra], required: Sequence[str]) -> Path:
    """The folder with the packages of some extras, installed for the host's Python on the first call.

    Args:
        host: Whose Python they are for.
        name: Of the folder in our cache.
        extras: What it holds.
        required: Paths that must be there for it to count as whole, from the set-up's folder on: lib/PACKAGE.

    Returns:
        A folder for the end of `sys.path`; its bin/ holds the commands.

    Raises:
        SetupError: The host's Python has no pip, or pip fails.
    """
    names = [extra.name for extra in extras]
    command = [str(host.python), "-I", "-c", DESCRIBE, str(ROOT / "pyproject.toml"), *names]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        message = f"'{host.python}' cannot read '{ROOT / 'pyproject.toml'}': {answer.stderr.strip().splitlines()[-1]}."
        raise SetupError(message)
    recipe = json.loads(answer.stdout)

    def build(folder: Path) -> None:
        steps = Steps(len(extras), log_of(folder))
        for extra in extras:
            packages = recipe["packages"][extra.name]
            with steps.step(extra.title):
                bare = ["--no-deps"] if extra.is_bare else []
                steps.pip(host.python, ["install", *bare, "--target", folder / "lib", *packages], " and ".join(packages), "")

    return provide(name, recipe, build, required) / "lib"
