"""README.md and README.zh-CN.md say the same: headings, tables, code, pictures, figures and links go in pairs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README, TWIN = "README.md", "README.zh-CN.md"
HAN = r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]"
"""Characters of Chinese, and its punctuation."""
FENCE = re.compile(r"^(```\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[((?:[^]\[]|\[[^]]*\])*)\]\(([^)\s]+)\)")

both = pytest.mark.parametrize("name", [README, TWIN])


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def prose(text: str) -> str:
    """`text` without its blocks of code."""
    return FENCE.sub("", text)


def headings(text: str) -> list[tuple[int, str]]:
    return [(len(marks), title) for marks, title in re.findall(r"^(#+) (.+)$", prose(text), re.MULTILINE)]


def anchors(text: str) -> list[str]:
    """What the hub makes of each heading: letters, digits, hyphens and underscores stay, the second of a kind gets -1."""
    found: list[str] = []
    slugs: list[str] = []
    for _, title in headings(text):
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        found.append(f"{slug}-{slugs.count(slug)}" if slug in slugs else slug)
        slugs.append(slug)
    return found


def sections(text: str) -> list[str]:
    """The prose before the first heading of the second level, then of each."""
    return re.split(r"^## ", prose(text), flags=re.MULTILINE)


def tables(text: str) -> list[list[int]]:
    """The number of cells in each row of each table."""
    blocks = re.findall(r"(?:^\|.*\n)+", prose(text) + "\n", re.MULTILINE)
    return [[row.count("|") - 1 for row in block.splitlines()] for block in blocks]


def places(text: str) -> list[str]:
    """Where the links lead, in words that both languages share: a heading is its number."""
    ids = anchors(text)
    found = []
    for _, address in LINK.findall(prose(text)):
        if address.startswith("#"):
            found.append(f"#{ids.index(address[1:])}")
        elif address not in (README, TWIN):
            found.append(re.sub(r"^(web/docs/\w+)/zh\.md$", r"\1.md", address))
    return sorted(found)


def code_of(section: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", section))


def figures_of(section: str) -> set[str]:
    """Numbers with a point or commas: measurements, counts, versions, papers."""
    return set(re.findall(r"\d+(?:[.,]\d+)+", re.sub(r"`[^`\n]+`|\]\([^)]+\)", "", section)))


def locale(language: str) -> dict[str, str]:
    texts = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    return {node_id: entry["display_name"] for node_id, entry in texts.items()}


def differing(of: Iterable[set[str]], other: Iterable[set[str]]) -> list[set[str]]:
    return [one ^ two for one, two in zip(of, other, strict=True)]


def test_the_headings_have_the_same_levels_in_the_same_order():
    english, chinese = headings(read(README)), headings(read(TWIN))
    assert [level for level, _ in chinese] == [level for level, _ in english]
    names = {"NextControl", "ControlNeXt", "CtrLoRA", "HTTP API"}
    assert all(re.search(HAN, title) for _, title in chinese if title not in names)


def test_the_blocks_of_code_are_the_same():
    """Explanations inside a block may be Chinese; what is code in them stays."""
    english, chinese = FENCE.findall(read(README)), FENCE.findall(read(TWIN))
    assert [kind for kind, _ in chinese] == [kind for kind, _ in english]
    for (_, block), (_, twin) in zip(english, chinese, strict=True):
        if not re.search(HAN, twin):
            assert twin == block
            continue
        for line, twin_line in zip(block.splitlines(), twin.splitlines(), strict=True):
            code = set(re.sub(HAN, " ", twin_line).split())
            words = set(re.split(r"[\s:;,()]+", line)) | set(line.split())
            assert {word for word in line.split() if re.search("[/_=]", word)} <= code <= words


def test_the_pictures_are_the_same():
    english, chinese = (re.findall(r"!\[([^]]*)\]\(([^)]+)\)", prose(read(name))) for name in (README, TWIN))
    assert [path for _, path in chinese] == [path for _, path in english]
    assert all(re.search(HAN, words) for words, _ in chinese)


def test_the_tables_have_the_same_rows_and_columns():
    english = tables(read(README))
    assert len(english) > 10
    assert tables(read(TWIN)) == english


def test_the_lists_have_the_same_items():
    english, chinese = (re.findall(r"^ *(\*|\d+\.) ", prose(read(name)), re.MULTILINE) for name in (README, TWIN))
    assert chinese == english


def test_the_links_lead_to_the_same_places():
    assert places(read(TWIN)) == places(read(README))


def test_the_sections_name_the_same_settings_files_and_messages():
    english, chinese = (map(code_of, sections(read(name))) for name in (README, TWIN))
    assert [names for names in differing(english, chinese) if names] == []


def test_the_sections_have_the_same_figures():
    english, chinese = (map(figures_of, sections(read(name))) for name in (README, TWIN))
    assert [figures for figures in differing(english, chinese) if figures] == []


def test_the_twin_lists_every_node_under_both_its_names():
    text, english = read(TWIN), locale("en")
    for node_id, title in locale("zh").items():
        assert f"| [{title}](web/docs/{node_id}/zh.md)<br>{english[node_id]} |" in text


def test_the_twin_calls_nodes_by_their_names():
    """What stands in quotation marks is a node, without the words in brackets that people search for."""
    names = {title.split("（")[0] for title in locale("zh").values()}
    assert set(re.findall("“([^”]+)”", prose(read(TWIN)))) <= names


@both
def test_every_link_leads_somewhere(name):
    text = read(name)
    targets = [address for _, address in LINK.findall(prose(text))] + re.findall(r"!\[[^]]*\]\(([^)]+)\)", prose(text))
    assert len(targets) > 50
    for address in targets:
        if address.startswith(("https://", "http://")):
            continue
        path, _, heading = address.partition("#")
        page = ROOT / (path or name)
        assert page.exists(), address
        if heading:
            assert heading in anchors(page.read_text(encoding="utf-8")), address


@both
def test_each_page_links_the_other_language_under_its_title(name):
    other = f"[English]({README}) | 中文" if name == TWIN else f"English | [中文]({TWIN})"
    assert read(name).splitlines()[:3] == ["# NextControl", "", other]


@both
def test_bold_and_italic_are_seen_as_such(name):
    """Markdown shows the asterisks where a mark of punctuation touches them from inside and a letter from outside."""
    text = re.sub(r"`[^`\n]+`", "x", prose(read(name)))
    for marked in re.finditer(r"(\*{1,2})(?! )([^*\n]+?)\1(\w?)", text):
        before = text[marked.start() - 1 : marked.start()]
        words = marked[2]
        assert not (before.isalnum() and not words[0].isalnum()), marked[0]
        assert not (marked[3] and not words[-1].isalnum()), marked[0]
