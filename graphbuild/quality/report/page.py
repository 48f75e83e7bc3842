"""What the report's template shows, and filling it in.

Captions, labels, ids and paths come from outside: the template escapes every one, and only the charts are passed as markup.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from graphbuild.quality.fidelity import Fidelity
from graphbuild.quality.health.result import Health
from graphbuild.quality.report.figures import Figure
from graphbuild.quality.report.map import MapFigure
from graphbuild.quality.report.worst import Shown, Worst
from graphbuild.system.pages import page_template


@dataclass(frozen=True, slots=True)
class Neighborhood:
    """A text and its nearest neighbours."""

    center: Shown
    neighbors: tuple[Shown, ...]


@dataclass(frozen=True, slots=True)
class FidelityTable:
    """KL(dense || assembled): a row for each choice of what is stored, two columns for each temperature."""

    taus: tuple[float, ...]
    rows: tuple[tuple[int, int, int, tuple[float, ...]], ...]
    """k, sketch bytes, bytes a row, and nats in random and neighbour batches for each temperature in turn."""
    absent: float
    hit_rate_random: float
    hit_rate_neighbors: float

    @classmethod
    def of(cls, found: Fidelity) -> FidelityTable:
        """Lay out what was measured."""
        nats: dict[tuple[int, int, int], list[float]] = {}
        for choice in found.storage:
            key = (choice.k, choice.sketch_dim, choice.bytes_a_row)
            nats.setdefault(key, []).extend((choice.kl_random, choice.kl_neighbors))
        taus = tuple(dict.fromkeys(choice.tau_s for choice in found.storage))
        rows = tuple((*key, tuple(values)) for key, values in nats.items())
        return cls(taus, rows, found.absent, found.hit_rate_random, found.hit_rate_neighbors)


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """What the template shows."""

    title: str
    subtitle: str
    warnings: tuple[tuple[str, str], ...]
    """Headline, and what to do."""
    verdict: str
    map: MapFigure | None
    map_note: str
    """What to say where there is no map."""
    worst: Worst
    health: Health
    figures: tuple[Figure, ...]
    fidelity: FidelityTable | None
    neighborhoods: tuple[Neighborhood, ...]
    pictures_note: str
    made_of: tuple[tuple[str, str], ...]


def render(page: Page) -> str:
    """Return the page as HTML, with every string escaped."""
    html: str = _template().render(page=page)
    return html


@cache
def _template() -> Any:
    return page_template("graphbuild.quality.report", "graph_report.html")
