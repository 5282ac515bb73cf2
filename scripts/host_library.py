"""ComfyUI as a library in this process, and the pack beside it under the fixed name `nextcontrol`.

For scripts and tests that run in the host's interpreter. Standard library only until a function is called.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

PACK = "nextcontrol"


def import_host(comfyui: Path, base: Path, *, is_cpu: bool) -> None:
    """Import ComfyUI with its own argument parser switched off.

    Both `nodes` and `utils` are also names of ours or of a folder inside the host, so the host's are imported first.

    Args:
        comfyui: Its folder.
        base: Takes the place of its models, input, output and custom_nodes.
        is_cpu: Use no accelerator.
    """
    root = pack_root()
    sys.path[:] = [entry for entry in sys.path if Path(entry or os.curdir).resolve() != root]
    sys.path.insert(0, str(comfyui))
    (base / "custom_nodes").mkdir(parents=True, exist_ok=True)

    from comfy.cli_args import args

    args.cpu, args.base_directory, args.database_url = is_cpu, str(base), "sqlite:///:memory:"
    import utils.extra_config  # noqa: F401, I001 - before `nodes`, which puts another `utils` on the path
    import nodes

    assert Path(str(nodes.__file__)).resolve().parent == comfyui.resolve()


def import_pack() -> None:
    """Make `import nextcontrol` find the pack, wherever its folder lies and whatever it is called."""
    root = pack_root()
    spec = importlib.util.spec_from_file_location(PACK, root / "__init__.py", submodule_search_locations=[str(root)])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    spec.loader.exec_module(module)


def pack_root() -> Path:
    """The folder of the checkout."""
    return Path(__file__).resolve().parents[1]
