"""The worst cases of a graph: hubs with the texts that they swallow, groups of near-duplicates, and isolated texts.

Shape letters: N texts, H hubs, K neighbours stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from graphbuild.quality.curate.dedup import duplicate_keepers
from graphbuild.quality.health.edges import NEAR_RANKS
from graphbuild.quality.health.result import Health
from graphbuild.quality.view import GraphView
from graphbuild.store.graph import Graph
from graphbuild.system.answers import quoted

HUBS = GROUPS = 6
MEMBERS = 6
"""Texts shown beside a hub or a representative."""
SAME = 0.95
"""Similarity from which texts are one group, as `graphbuild dedup` has it by default."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A text, and its picture where there is one."""

    text_id: int
    text: str
    image: str | None
    similarity: float | None = None


@dataclass(frozen=True, slots=True)
class WorstCase:
    """A text, the texts that it stands for or swallows, and the command that looks at it."""

    center: Shown
    count: int
    """Rows that hold a hub; texts of a group."""
    members: tuple[Shown, ...]
    """Some of them, from the most to the least similar."""
    command: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Worst:
    """The worst cases, each with ids, and commands that take them."""

    hubs: tuple[WorstCase, ...]
    groups: tuple[WorstCase, ...]
    """Of near-duplicates."""
    isolated: tuple[WorstCase, ...]
    """Each with its nearest text as the only member."""
    without_hubs: tuple[str, ...]
    """Commands that make the graph without them; likewise the two below."""
    without_duplicates: tuple[str, ...]
    without_isolated: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """Ids of the worst cases: for each its members, with similarities, from the most to the least similar."""

    hubs: dict[int, list[tuple[int, float]]]
    groups: dict[int, list[tuple[int, float]]]
    group_sizes: dict[int, int]
    isolated: dict[int, list[tuple[int, float]]]

    def ids(self) -> set[int]:
        """Return every text that is shown."""
        cases = [*self.hubs.items(), *self.groups.items(), *self.isolated.items()]
        return {one for center, members in cases for one in (center, *(member for member, _ in members))}


def find_worst(view: GraphView, health: Health) -> Found:
    """Find the members of the largest hubs and groups, and the nearest of the isolated texts.

    Args:
        view: The graph.
        health: What was measured of it: names the hubs and the isolated texts.
    """
    graph = view.graph
    hubs = [int(entry["text_id"]) for entry in health.hubs[:HUBS] if entry["in_degree"]]
    isolated = [int(entry["text_id"]) for entry in health.isolated]
    nearest = graph.rows(np.array(isolated, np.int64))
    groups, sizes = _groups(view)
    return Found(
        hubs={hub: _spread(*rows) for hub, rows in zip(hubs, rows_that_hold(graph, hubs), strict=True)},
        groups=groups,
        group_sizes=sizes,
        isolated={
            text_id: [(int(ids[0]), float(values[0]))]
            for text_id, ids, values in zip(isolated, nearest.neighbor_ids, nearest.similarities, strict=True)
        },
    )


def rows_that_hold(graph: Graph, text_ids: Sequence[int]) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """Return, for each of some texts, which rows hold it and how similar they are; one pass over the edges.

    Where every pair is stored, all rows do: then only the first ten of each row count.
    """
    places_N = np.full(graph.n_texts, -1, np.int16)
    places_N[list(text_ids)] = np.arange(len(text_ids))
    ranks = NEAR_RANKS if graph.is_complete else graph.k
    parts: list[tuple[npt.NDArray[np.int16], npt.NDArray[np.int64], npt.NDArray[np.float32]]] = []
    for first, rows in graph.shard_rows():
        held_nK = places_N[rows.neighbor_ids[:, :ranks]]
        at, rank = np.nonzero(held_nK >= 0)
        parts.append((held_nK[at, rank], at + first, rows.similarities[at, rank].astype(np.float32)))
    which, sources, values = (np.concatenate(column) for column in zip(*parts, strict=True))
    return [(sources[which == place], values[which == place]) for place in range(len(text_ids))]


def _groups(view: GraphView) -> tuple[dict[int, list[tuple[int, float]]], dict[int, int]]:
    """The largest groups of near-duplicates by their representative, and the number of texts of each."""
    keeper_N, similarity_N = duplicate_keepers(view, SAME)
    dropped = np.flatnonzero(keeper_N >= 0)
    sizes_N = np.bincount(keeper_N[dropped], minlength=len(keeper_N))
    largest = np.lexsort((np.arange(len(sizes_N)), -sizes_N))[:GROUPS]
    chosen = [int(keeper) for keeper in largest if sizes_N[keeper]]
    members = {keeper: dropped[keeper_N[dropped] == keeper] for keeper in chosen}
    groups = {keeper: _spread(ids, similarity_N[ids]) for keeper, ids in members.items()}
    return groups, {keeper: len(ids) + 1 for keeper, ids in members.items()}


def _spread(ids: npt.NDArray[np.integer], values: npt.NDArray[np.floating]) -> list[tuple[int, float]]:
    """Some of the texts, evenly from the most to the least similar."""
    order = np.lexsort((ids, -values))
    picked = order[np.unique(np.linspace(0, len(order) - 1, min(MEMBERS, len(order))).round().astype(np.int64))]
    return [(int(ids[i]), float(values[i])) for i in picked]


def worst_cases(found: Found, health: Health, graph_dir: Path, shown: Callable[..., Shown]) -> Worst:
    """Put the worst cases into words and commands.

    Args:
        found: Their ids.
        health: Which names them and counts the rows that hold a hub.
        graph_dir: As the commands name it.
        shown: Makes a text of an id and a similarity.
    """
    graph = f"--graph-dir {quoted(graph_dir)}"
    degrees = {int(entry["text_id"]): int(entry["in_degree"]) for entry in health.hubs}

    def cases(members_of: dict[int, list[tuple[int, float]]], counts: dict[int, int]) -> tuple[WorstCase, ...]:
        return tuple(
            WorstCase(
                shown(center),
                counts.get(center, len(members)),
                tuple(shown(one, value) for one, value in members),
                f"graphbuild neighbors {graph} --id {center}",
            )
            for center, members in members_of.items()
        )

    farthest = max((members[0][1] for members in found.isolated.values()), default=0.0)
    return Worst(
        hubs=cases(found.hubs, degrees),
        groups=cases(found.groups, found.group_sizes),
        isolated=cases(found.isolated, {}),
        without_hubs=_without(graph, found.hubs),
        without_duplicates=(
            f"graphbuild dedup {graph} --threshold {SAME:g} --out dedup.parquet",
            f"graphbuild subset {graph} --keep dedup.parquet --out NEW_GRAPH",
        ),
        without_isolated=(
            f"graphbuild outliers {graph} --below {min(farthest + 1e-4, 1):.4f} --out outliers.parquet",
            f"graphbuild subset {graph} --keep outliers.parquet --out NEW_GRAPH",
        ),
    )


def _without(graph: str, text_ids: Iterable[int]) -> tuple[str, ...]:
    listed = ", ".join(map(str, text_ids))
    query = f"SELECT sample_id FROM samples WHERE text_id NOT IN ({listed})"
    return (
        f'graphbuild inspect {graph} --sql "{query}" --format csv > keep.csv',
        f"graphbuild subset {graph} --keep keep.csv --out NEW_GRAPH",
    )
