"""What the report's template shows, and filling it in.

Captions, class names and paths come from outside: the template escapes every one of them, and only the charts drawn
here are passed as markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from markupsafe import Markup

from graphbuild.system.pages import page_template


@dataclass(frozen=True, slots=True)
class RunHead:
    """A run's name, and the number of its colour."""

    name: str
    color: int


@dataclass(frozen=True, slots=True)
class Cell:
    """One number of the table of results."""

    text: str
    best: bool = False


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One encoder of the table of results; `reference` for chance and the untrained encoder."""

    name: str
    cells: tuple[Cell, ...]
    color: int | None = None
    reference: bool = False


@dataclass(frozen=True, slots=True)
class Results:
    """The table of results; `groups` are its two lines of headings."""

    how: str = ""
    groups: tuple[tuple[str, tuple[str, ...]], ...] = ()
    rows: tuple[ResultRow, ...] = ()


@dataclass(frozen=True, slots=True)
class CurveFigure:
    """A chart of all runs."""

    title: str
    svg: Markup
    caption: str


@dataclass(frozen=True, slots=True)
class MatrixFigure:
    """A matrix of similarities."""

    title: str
    image: str
    caption: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A neighbour: its picture, its caption, and for each label whether it is the query's."""

    image: str
    caption: str
    marks: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class HitRow:
    """The neighbours of a query that one run finds, or the captions' encoder."""

    name: str
    color: int | None
    """None for the captions."""
    hits: tuple[Hit, ...]


@dataclass(frozen=True, slots=True)
class Query:
    """A picture, and what lies nearest to it."""

    image: str
    caption: str
    rows: tuple[HitRow, ...]


@dataclass(frozen=True, slots=True)
class Neighborhoods:
    """What lies nearest to some pictures of one kind."""

    how: str
    queries: tuple[Query, ...]
    mark_names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """All runs on the images and the graph of one of them."""

    title: str = ""
    """Empty where there is one alone."""
    matrices: tuple[MatrixFigure, ...] = ()
    matrices_how: str = ""
    matrices_order: str = ""
    neighborhoods: tuple[Neighborhoods, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """What the template of the report shows, in its order."""

    title: str
    subtitle: str
    runs: tuple[RunHead, ...]
    conditions: tuple[tuple[str, tuple[str, ...]], ...]
    """Name and values: one a run, or a single one that holds for all."""
    remarks: tuple[str, ...] = ()
    results: tuple[Results, ...] = ()
    """One a data set."""
    curves: tuple[CurveFigure, ...] = ()
    places: tuple[Place, ...] = ()
    """One for each images and graph that runs were trained on."""

    @property
    def neighbors_shown(self) -> int:
        """Return the longest row of neighbours, which decides the columns of the strip."""
        found = (query for place in self.places for hood in place.neighborhoods for query in hood.queries)
        return max((len(row.hits) for query in found for row in query.rows), default=1)


def render_page(page: Page) -> str:
    """Return the report as one HTML file, with every string escaped."""
    html: str = _template().render(page=page)
    return html


@cache
def _template() -> Any:
    return page_template("train.results.report", "report.html")


def same_for_all(values: Sequence[str]) -> tuple[str, ...]:
    """Return a condition's values as one if they are equal, else as they are."""
    return (values[0],) if len(set(values)) == 1 else tuple(values)
