"""What several figures share: a sample of texts with their stored rows, and what was found out.

Shape letters: s texts of a sample, K neighbours stored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import numpy as np
import numpy.typing as npt

from graphbuild.quality.health.edges import random_ends
from graphbuild.quality.health.result import Measure
from graphbuild.store.graph import Graph
from graphbuild.store.neighbors import Rows

_FEW_ROWS = 256


@dataclass(frozen=True, slots=True)
class RowSample:
    """Some texts and their neighbours, stored and shuffled."""

    graph: Graph
    ids_s: npt.NDArray[np.int64]
    rows: Rows
    shuffled_sK: npt.NDArray[np.int32]
    """Ends of the same rows' edges in the shuffled graph."""

    @classmethod
    def draw(cls, graph: Graph, count: int, rng: np.random.Generator) -> Self:
        """Draw so many texts, or all where there are fewer."""
        ids_s = np.sort(rng.choice(graph.n_texts, min(count, graph.n_texts), replace=False))
        shuffled = np.concatenate([random_ends(rng, int(i), (1, graph.k), graph.n_texts) for i in ids_s])
        return cls(graph, ids_s, graph.rows(ids_s), shuffled)

    def few(self, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Draw some of its texts, for figures that read many rows of each."""
        return np.sort(rng.choice(self.ids_s, min(_FEW_ROWS, len(self.ids_s)), replace=False))


@dataclass(slots=True)
class Findings:
    """Figures, and notes on what was not measured."""

    measures: list[Measure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, other: Findings) -> None:
        """Take over what others found."""
        self.measures += other.measures
        self.notes += other.notes
