"""Text on a node of the web page while the node runs; what it returns at its end the page shows by itself."""

from __future__ import annotations

from server import PromptServer

from ...models.foreign import shown

EVENT = "nextcontrol.text"
"""What `web/text.js` listens for."""
LONGEST_LINE = 2000


def readable(report: str) -> str:
    """A report as every page, log and node can take it: names of files may hold halves of surrogate pairs or escapes."""
    return "\n".join(shown(line, LONGEST_LINE) for line in report.split("\n"))


def show_text(text: str, node_id: str | None) -> None:
    """Show text on a node until it is replaced; without a page that asked for the job nothing happens.

    Args:
        text: Any lines, as they are to be read.
        node_id: Of the node that runs.
    """
    server = getattr(PromptServer, "instance", None)
    # Every open page has a node of this number; only the one that asked is told, as the host does it.
    if server is not None and server.client_id is not None and node_id:
        server.send_sync(EVENT, {"node": node_id, "text": readable(text)}, server.client_id)
