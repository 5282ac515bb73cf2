"""How the node library and the search box of ComfyUI's page (frontend 1.32.9) find nodes, without a browser.

They ask Fuse 7.0.0 with extended search, threshold 0.3 and a distance of 100 letters, for the node's id and its display name,
and put what it found into an order of their own. Neither description, category nor aliases are looked at. What is found is the
same as there; among those that fit only roughly the order may differ, because Fuse's own score is not imitated in full.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from functools import cache
from statistics import mean

THRESHOLD = 0.3
DISTANCE = 100
SHOWN = 64
"""What the page shows of a result."""
WORDS = re.compile(r" |\b|(?<=[a-z])(?=[A-Z])|(?=[A-Z][a-z])")


def search(words: str, names: Mapping[str, str]) -> list[str]:
    """The ids that the page shows, best first.

    Args:
        words: As typed.
        names: Display name of each node id.

    Returns:
        Up to `SHOWN` ids.
    """
    query = words.lower()
    found = {node_id: score for node_id, name in names.items() if (score := item_score(query, node_id, name)) is not None}
    order = sorted(found, key=lambda node_id: min(rank(query, text, found[node_id]) for text in (node_id, names[node_id])))
    return order[:SHOWN]


def item_score(query: str, *texts: str) -> float | None:
    """Fuse's score of an item over its texts, 0 at best, less for short texts; None if none of them holds all words."""
    score, is_found = 1.0, False
    for text in texts:
        scores = [value for word in query.split() if (value := word_score(word, text.lower())) is not None]
        if len(scores) == len(query.split()):
            is_found = True
            norm = round(len(text.split(" ")) ** -0.5, 3)
            score *= max(mean(scores), sys.float_info.epsilon) ** (norm / len(texts))
    return score if is_found else None


@cache
def word_score(word: str, text: str) -> float | None:
    """Errors as a part of the word, plus how far from the text's beginning it is found; None if too much of both."""
    if word == text:
        return 0.0
    best = min(errors / len(word) + place / DISTANCE for place, errors in enumerate(errors_from(word, text)))
    return max(best, 0.001) if best <= THRESHOLD else None


def errors_from(word: str, text: str) -> list[int]:
    """The fewest letters to put in, leave out or exchange that make `word` begin at each place of `text`."""
    column = [0] * (len(text) + 1)  # an empty word is found everywhere
    for used, letter in enumerate(reversed(word), 1):
        longer = [used] * (len(text) + 1)
        for place in range(len(text) - 1, -1, -1):
            longer[place] = min(column[place + 1] + (text[place] != letter), column[place] + 1, longer[place + 1] + 1)
        column = longer
    return column


def rank(query: str, text: str, score: float) -> tuple[float, ...]:
    """The page's own order: the whole text, its beginning, a word of it, a part, all words, all parts, anything else."""
    words = [word.lower() for word in WORDS.split(text)]
    text = text.lower()
    parts = query.split(" ")
    length = len(text)
    tie = score + 0.2 * (1 - min(length, len(query)) / max(length, len(query)))
    if text == query:
        return 0, 0, 0, tie
    if text.startswith(query):
        return 1, 0, length, tie
    if query in text:
        return 2 + (query not in words), text.index(query) + length / 2, length, tie
    if all(part in words for part in parts):
        places = [words.index(part) for part in parts]
        return 4, max(places) - min(places) + max(places) / 2 + length / 2, length, tie
    if all(part in text for part in parts):
        first, last = min(text.index(part) for part in parts), max(text.index(part) + len(part) for part in parts)
        return 5, last - first + last / 2 + length / 2, length, tie
    return 9, 0, 0, tie
