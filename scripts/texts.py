"""Write the nodes' English texts from their schemas, and put the Chinese ones into the same order.

    python3 scripts/texts.py [--comfyui PATH]

Chinese texts are written by hand in locales/zh/nodeDefs.json; what is missing there is named.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from host import find_host
from host_library import import_host, import_pack
from provide import SetupError, say

INSIDE = "NEXTCONTROL_TEXTS_INSIDE"
LOCALES = Path(__file__).resolve().parents[1] / "locales"


def main(arguments: list[str]) -> int:
    """Parse, bring up the host's interpreter, and write in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, help="an existing ComfyUI")
    options = parser.parse_args(arguments)
    if os.environ.get(INSIDE):
        with tempfile.TemporaryDirectory() as base:
            import_host(options.comfyui, Path(base), is_cpu=True)
            import_pack()
            return write_texts()
    try:
        host = find_host(options.comfyui)
    except SetupError as error:
        say(f"texts.py: {error}")
        return 1
    command = [str(host.python), "-B", __file__, "--comfyui", str(host.comfyui)]
    return subprocess.run(command, env={**os.environ, INSIDE: "1"}, check=False).returncode


def write_texts() -> int:
    """Write both files.

    Returns:
        1 if a Chinese text is missing.
    """
    import nextcontrol

    async def schemas() -> list[Any]:
        return [node.GET_SCHEMA() for node in await (await nextcontrol.comfy_entrypoint()).get_node_list()]

    english = {schema.node_id: texts_of(schema) for schema in asyncio.run(schemas())}
    write("en", english)
    missing: list[str] = []
    write("zh", follow(english, json.loads((LOCALES / "zh" / "nodeDefs.json").read_text(encoding="utf-8")), "", missing))
    for path in missing:
        say(f"locales/zh/nodeDefs.json has no text for {path}")
    return int(bool(missing))


def texts_of(schema: Any) -> dict[str, Any]:
    """A node's texts as the web page's translation file wants them."""
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": {spec.id: {"name": spec.id, "tooltip": spec.tooltip} for spec in schema.inputs},
        "outputs": {
            str(index): {"name": spec.display_name, "tooltip": spec.tooltip} for index, spec in enumerate(schema.outputs)
        },
    }


def follow(english: dict[str, Any], other: dict[str, Any], place: str, missing: list[str]) -> dict[str, Any]:
    """`other` with the keys of `english` in its order, and then what else it has; paths that it lacks go to `missing`."""
    result: dict[str, Any] = {}
    for key, value in english.items():
        path = f"{place}{key}"
        if key not in other and not isinstance(value, dict):
            missing.append(path)
        elif isinstance(value, dict):
            result[key] = follow(value, other.get(key, {}), f"{path}.", missing)
        else:
            result[key] = other[key]
    return result | {key: value for key, value in other.items() if key not in english}


def write(language: str, texts: dict[str, Any]) -> None:
    """Write one file."""
    path = LOCALES / language / "nodeDefs.json"
    path.write_text(json.dumps(texts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
