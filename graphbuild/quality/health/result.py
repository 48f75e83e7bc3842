"""How good a graph is, measured: every figure with what a good value is, why, and what a shuffled graph would have.

docs/definitions.md, Health, says how each is computed. Importing this loads neither numba nor polars.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from graphbuild.system.answers import Answer, plain, render, show, table

Verdict = Literal["good", "fair", "poor", "info"]
Unit = Literal["share", "number", "count"]


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthConfig:
    """How a graph is judged."""

    batch_size: int = 1024
    """Samples a batch, for the hit rate and the target."""
    tau_s: float = 0.1
    """Temperature of the target."""
    label_columns: tuple[str, ...] = ()
    """Sample columns whose agreement among neighbours is measured; usual names if none is given."""
    group_column: str | None = None
    """Sample column of what belongs together, such as captions of one picture; None takes a usual name, else the
    sample_id where samples have several texts."""
    wordnet: Path | None = None
    """WordNet paths or distances, for graphs whose samples have a wnid."""
    absent: float | None = None
    """Similarity of pairs that are not stored, for graphs without a sketch."""
    sample: int = 2000
    """Texts looked at where a full pass would take too long."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """A figure of the graph, its verdict and the reason."""

    key: str
    title: str
    value: float
    unit: Unit
    shuffled: float | None = None
    """The same of a graph whose edges end at random texts; None where that says nothing."""
    verdict: Verdict
    good: str
    """What a good value is."""
    why: str
    """Why it matters, and what to do if it is not."""

    def show(self, value: float | None) -> str:
        """Return a value as people read it."""
        if value is None:
            return ""
        if self.unit == "share":
            if 0 < value < 0.0005:
                return "< 0.1%"
            return f"{value:.1%}" if abs(value) < 0.9995 or value == 1 else f"{value:.3%}"
        return f"{value:,.0f}" if self.unit == "count" else f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Health(Answer):
    """Everything measured of a graph."""

    graph_dir: Path
    texts: int
    k: int
    complete: bool
    config: dict[str, Any]
    measures: tuple[Measure, ...]
    notes: tuple[str, ...]
    """What could not be measured, and why."""
    similarity_by_rank: list[dict[str, float]]
    """Quantiles over sampled texts, an entry a rank."""
    random_similarity: dict[str, float]
    """Quantiles over random pairs of texts; empty where the graph holds neither embeddings nor a sketch."""
    components: list[dict[str, Any]]
    """By threshold: components, the share of texts alone, and of those in the largest one."""
    in_degrees: list[dict[str, float]]
    """Histogram: from, to (exclusive), texts, shuffled."""
    target: list[dict[str, float]]
    """Entropy, effective positives and own-view mass of a random batch's target by tau_s."""
    hubs: list[dict[str, Any]]
    isolated: list[dict[str, Any]]
    uncovered: list[dict[str, Any]] = field(default_factory=list)
    """Texts that the encoder's vocabulary hardly knows."""
    near_duplicates: list[dict[str, Any]] = field(default_factory=list)

    def measure(self, key: str) -> Measure | None:
        """Return a figure by its key; None where it was not measured."""
        return next((one for one in self.measures if one.key == key), None)

    @property
    def warnings(self) -> tuple[Measure, ...]:
        """Return the figures that are poor."""
        return tuple(one for one in self.measures if one.verdict == "poor")

    def summary(self) -> str:
        """Return tables for people."""
        return render(str(self.graph_dir), health_tables(self))


def health_tables(health: Health) -> dict[str, Table]:
    """Return what was measured, as tables with titles."""
    measures = table(("figure", "value", "shuffled", "verdict", "good is"), right=("value", "shuffled"))
    for one in health.measures:
        measures.add_row(plain(one.title), one.show(one.value), one.show(one.shuffled), one.verdict, plain(one.good))
    components = table(("at least", "components", "texts alone", "largest", "its share", "shuffled"), right=_COMPONENT_COLUMNS)
    for entry in health.components:
        components.add_row(
            f"{entry['threshold']:.2f}",
            f"{entry['components']:,}",
            f"{entry['alone_share']:.1%}",
            f"{entry['largest']:,}",
            f"{entry['largest_share']:.1%}",
            f"{entry['shuffled_largest_share']:.1%}",
        )
    hubs = table(("in-degree", "text_id", "text"), right=("in-degree", "text_id"))
    for entry in health.hubs[:5]:
        hubs.add_row(f"{entry['in_degree']:,}", f"{entry['text_id']:,}", plain(show(entry["text"])))
    uncovered = table(("text_id", "text"), right=("text_id",))
    for entry in health.uncovered[:5]:
        uncovered.add_row(f"{entry['text_id']:,}", plain(show(entry["text"])))
    notes = table(("",))
    notes.show_header = False
    for note in health.notes:
        notes.add_row(plain(note))
    return {
        "health (beside a shuffled graph: the same edges, each ending at a random text)": measures,
        "similarity to the neighbour of each rank": similarity_table(health.similarity_by_rank),
        "connected components, by similarity": components,
        "hubs: the most frequent neighbours": hubs,
        "texts that the encoder hardly knows": uncovered,
        "not measured": notes,
    }


_COMPONENT_COLUMNS = ("components", "texts alone", "largest", "its share", "shuffled")


def similarity_table(entries: list[dict[str, float]]) -> Table:
    """Lay out the quantiles of each rank as a table."""
    columns = tuple(entries[0]) if entries else ()
    made = table(columns, right=columns)
    for entry in entries:
        made.add_row(*(f"{value:,.0f}" if key == "rank" else f"{value:.3f}" for key, value in entry.items()))
    return made
