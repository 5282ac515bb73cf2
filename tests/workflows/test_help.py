"""The help pages as the panel of ComfyUI's page asks a real server for them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from host_client import HttpError

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "web" / "docs"
WITH_PICTURE = sorted(path.stem for path in (DOCS / "pictures").glob("*.jpg"))
LANGUAGES = ("en", "zh", "fr")


def panel_address(server, node_id: str) -> str:
    """What the panel puts before the names of pages and pictures of a node: by the module that it comes from."""
    pack = server.get_json(f"/object_info/{node_id}")[node_id]["python_module"].removeprefix("custom_nodes.")
    return f"/extensions/{pack}/docs"


def read_page(server, node_id: str, language: str) -> str:
    """A page as the panel reads it: the language's own, else the one beside the folder."""
    try:
        return server.fetch(f"{panel_address(server, node_id)}/{node_id}/{language}.md").decode()
    except HttpError:
        return server.fetch(f"{panel_address(server, node_id)}/{node_id}.md").decode()


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_picture_loads_where_the_panel_asks_for_it(server, language):
    assert WITH_PICTURE
    for node_id in WITH_PICTURE:
        (shown,) = re.findall(r"!\[[^]]*\]\(([^)]+)\)", read_page(server, node_id, language))
        assert not shown.startswith(("/", "http", "."))  # such paths the panel leaves as they are
        picture = server.fetch(f"{panel_address(server, node_id)}/{shown}")
        assert picture == (DOCS / "pictures" / f"{node_id}.jpg").read_bytes()


def test_every_node_has_a_page_in_its_language(server):
    for node_id in json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8")):
        assert re.search("[\u4e00-\u9fff]", read_page(server, node_id, "zh")), node_id
        assert not re.search("[\u4e00-\u9fff]", read_page(server, node_id, "fr")), node_id
