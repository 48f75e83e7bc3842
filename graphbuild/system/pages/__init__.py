"""HTML pages of one file, for reports of both packages: one head and style sheet, and charts as inline SVG."""

from __future__ import annotations

from typing import Any


def page_template(package: str, name: str) -> Any:
    """Load a template of a package's `templates` folder, which extends `page.html`; every string that it shows is escaped.

    Args:
        package: Its dotted name.
        name: The template's file.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    loader = ChoiceLoader([PackageLoader(package, "templates"), PackageLoader("graphbuild.system.pages", "templates")])
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template(name)
