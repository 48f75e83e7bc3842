"""The page of error messages, made from the code: every `raise` of a user error, by room and module.

A message is written once, where it is raised; `{...}` stands for what the program fills in.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
ERRORS = {"UserError", "SourceError", "OptionError", "ArtifactError", "ArtifactMismatch", "ResourceError"}
MARK = "<!-- messages -->"


def messages_of(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (error, message) of every user error that a module raises."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            text = _text(node.exc.args[0]) if node.exc.args else None
            if node.exc.func.id in ERRORS and text:
                yield node.exc.func.id, text


def _text(node: ast.expr) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) or "" if isinstance(part, ast.Constant) else "{...}" for part in node.values)
    return None


def page() -> str:
    """Return the list as Markdown."""
    lines: list[str] = []
    for package in ("graphbuild", "train"):
        for path in sorted((ROOT / package).rglob("*.py")):
            found = sorted(set(messages_of(path)))
            if found:
                name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
                lines += [f"\n### {name}\n", *(f"- {_escape(text)}" for _, text in found)]
    return "\n".join(lines)


def _escape(text: str) -> str:
    return "`` " + " ".join(text.split()) + " ``"


def _fill(app: Sphinx, name: str, source: list[str]) -> None:
    if MARK in source[0]:
        source[0] = source[0].replace(MARK, page())


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("source-read", _fill)
    return {"parallel_read_safe": True}
