"""The run's numbers, one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..models.foreign import parse_json
from .durable import write_text, writing


class MetricsFile:
    """Appends to metrics.jsonl; each line is handed to the system at once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def go_back_to(self, step: int) -> None:
        """Drop what was written after the state that a run goes on from, a line that was cut short among it."""
        kept = [line for line in self.lines() if line["step"] <= step]
        write_text(self.path, "".join(f"{json.dumps(line)}\n" for line in kept))

    def append(self, **values: Any) -> None:
        """Write one line; values that are None are left out."""
        line = json.dumps({name: value for name, value in values.items() if value is not None})
        with writing(self.path.name), self.path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    def lines(self) -> list[dict[str, Any]]:
        """Return what has been written; lines that cannot be read, and an incomplete last one, are left out."""
        if not self.path.is_file():
            return []
        whole = self.path.read_bytes().rpartition(b"\n")[0]
        return [line for line in map(_line_of, whole.split(b"\n")) if line is not None]


def _line_of(text: bytes) -> dict[str, Any] | None:
    try:
        line = parse_json(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and type(line.get("step")) is int else None


def smoothed(losses: list[float], width: int = 50) -> float:
    """Mean of the last `width` losses."""
    recent = losses[-width:]
    return sum(recent) / len(recent)
