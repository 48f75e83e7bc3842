"""Docstrings write code between single backticks, as Markdown does; reStructuredText wants two."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

SINGLE = re.compile(r"(?<!`)`([^`]+)`(?!`)")


def _double(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    text = "\n".join(lines)
    lines[:] = SINGLE.sub(lambda match: f"``{' '.join(match[1].split())}``", text).split("\n")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("autodoc-process-docstring", _double)
    return {"parallel_read_safe": True}
