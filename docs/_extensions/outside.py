"""Links from a page to files of the repository outside docs/, which a site does not hold, become their names, if they are there."""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\[([^\]]+)\]\((\.\./[^)#\s]+|study/[^)#\s]+)(#[^)]*)?\)")


def _name(app: Sphinx, name: str, source: list[str]) -> None:
    def replaced(match: re.Match[str]) -> str:
        target = (DOCS / match[2]).resolve()
        if not target.exists():
            raise ValueError(f"docs/{name}.md links to {match[2]}, which is not there")
        return f"{match[1]} (`{target.relative_to(DOCS.parent)}`)"

    source[0] = LINK.sub(replaced, source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("source-read", _name)
    return {"parallel_read_safe": True}
