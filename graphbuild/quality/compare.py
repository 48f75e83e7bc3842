"""Two graphs of the same texts or samples: how far their neighbours agree, and which texts changed most.

Texts are matched by the xxh3 of the text itself, not by text_hash: another encoder has other tokens. Graphs that share no text,
such as one of captions and one of image vectors, are matched by sample. Neighbours that the other graph does not hold are left
out before ranks are counted.
Shape letters: S samples of a graph, C texts in both graphs, n texts of a block, K neighbours stored, T ranks compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from graphbuild.errors import ArtifactMismatch
from graphbuild.quality.view import GraphView
from graphbuild.store import schemas
from graphbuild.store.arrays import Ids
from graphbuild.store.graph import Graph
from graphbuild.store.hashes import hash_strings
from graphbuild.system.answers import Answer, next_steps, plain, quoted, render, show, table
from graphbuild.system.progress import progress, stages

_RANKS = (1, 4, 16, 64, 256, 1024)
_BLOCK = 4096
_SHOWN_NEIGHBORS = 3
_LISTED_RANK = 10
_FEWEST_SHARED = 3
"""Neighbours in both rows from which their order is compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison(Answer):
    """How far two graphs agree."""

    first: Path
    second: Path
    texts: int
    """Held by both."""
    only_first: int
    only_second: int
    overlap_by_rank: list[dict[str, float]]
    """rank, overlap: the mean share of the first `rank` neighbours that both rows hold; random: what chance gives."""
    changed: list[dict[str, Any]]
    """The texts that agree least at `changed_rank`: text, overlap, and the nearest neighbours in either graph."""
    changed_rank: int
    by_sample: bool
    """Whether texts are matched by their first samples, as where no text is in both graphs."""
    rank_correlation: float | None
    """Spearman's rho of the ranks of the neighbours that both rows hold, mean over texts with three or more of them."""
    correlated_texts: int
    """Texts whose rows have three neighbours or more in common."""

    def summary(self) -> str:
        """Return tables for people."""
        overlap = table(("rank", "overlap", "random"), right=("rank", "overlap", "random"))
        for entry in self.overlap_by_rank:
            overlap.add_row(f"{entry['rank']:,.0f}", f"{entry['overlap']:.1%}", f"{entry['random']:.1%}")
        changed = table(("overlap", "text", "nearest in the first", "nearest in the second"), right=("overlap",))
        for text in self.changed:
            shown = ("; ".join(text["first"]), "; ".join(text["second"]))
            changed.add_row(f"{text['overlap']:.0%}", plain(show(text["text"])), *(plain(show(side)) for side in shown))
        matched = "texts matched by their samples" if self.by_sample else "texts in both"
        head = f"{self.first} and {self.second}: {self.texts:,} {matched}, {self.only_first:,} and {self.only_second:,} in one"
        if self.rank_correlation is not None:
            rows = f"{self.correlated_texts:,} texts with {_FEWEST_SHARED} or more"
            head += f"\nrank correlation of the neighbours in both: {self.rank_correlation:.3f}, mean of {rows}"
        title = f"texts that changed most (first {self.changed_rank:,} neighbours)"
        after = next_steps(
            *(f"graphbuild report --graph-dir {quoted(one)}" for one in (self.first, self.second)),
            f"graphbuild fuse {quoted(self.first)} {quoted(self.second)} --out NEW_GRAPH",
        )
        return f"{render(head, {'neighbours in both, by rank': overlap, title: changed})}\n\n{after}"


def compare_graphs(first: Path, second: Path, *, count: int = 10, by_sample: bool = False) -> Comparison:
    """Compare the neighbours of every text that both graphs hold; where they share no text, of one sample a text.

    Args:
        first: A graph with neighbours.
        second: Another, of the same texts or samples, or some of them.
        count: Texts to list that changed most.
        by_sample: Match texts by their samples although they share some, as captions of the same pictures may.

    Raises:
        ArtifactError: If a graph is not finished, or damaged.
        ArtifactMismatch: If they share fewer than two texts, and fewer than two samples.
    """
    with stages("matching texts", "comparing"):
        return _compare(first, second, count, by_sample)


def _compare(first: Path, second: Path, count: int, by_sample: bool) -> Comparison:
    views = (GraphView(first), GraphView(second))
    with progress("matching texts", None):
        hashes = [_text_hashes(view) for view in views]
        # Given vectors may have equal captions: of those the first alone.
        _, ours, theirs = np.intersect1d(hashes[0], hashes[1], return_indices=True)
        graphs, shared = (views[0].graph, views[1].graph), len(ours)
        if by_sample := by_sample or shared < 2:
            ours, theirs = _match_samples(graphs)
    if len(ours) < 2:
        raise ArtifactMismatch(
            f"{first} and {second} share {shared} of their texts ({len(hashes[0]):,} and {len(hashes[1]):,}), and {len(ours)} "
            "samples. Compare graphs of the same captions, classes or samples."
        )
    places = (_places(ours, graphs[0].n_texts), _places(theirs, graphs[1].n_texts))
    most = min(graphs[0].k, graphs[1].k)
    ranks = np.array(sorted({rank for rank in (*_RANKS, most) if 1 <= rank <= most}), np.int32)
    overlap_CT, rho_C, compared_C = _agreements(graphs, (ours, theirs), places, ranks)
    listed = int(np.searchsorted(ranks, min(_LISTED_RANK, most)))
    correlated_C = rho_C[~np.isnan(rho_C)]
    worst = np.lexsort((np.arange(len(ours)), overlap_CT[:, -1], overlap_CT[:, listed]))[:count]
    return Comparison(
        first=first,
        second=second,
        texts=len(ours),
        only_first=graphs[0].n_texts - len(ours),
        only_second=graphs[1].n_texts - len(ours),
        overlap_by_rank=[
            {"rank": rank, "overlap": mean, "random": float(np.minimum(compared_C, rank).mean() / (len(ours) - 1))}
            for rank, mean in zip(ranks.tolist(), overlap_CT.mean(axis=0).tolist(), strict=True)
        ],
        changed=[_describe(views, (int(ours[i]), int(theirs[i])), float(overlap_CT[i, listed])) for i in worst],
        changed_rank=int(ranks[listed]),
        by_sample=by_sample,
        rank_correlation=float(correlated_C.mean()) if len(correlated_C) else None,
        correlated_texts=len(correlated_C),
    )


def _text_hashes(view: GraphView) -> npt.NDArray[np.uint64]:
    texts = view.texts.select(schemas.TEXT).collect(engine="streaming").to_series()
    return hash_strings(texts)


def _match_samples(graphs: tuple[Graph, Graph]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Texts of the samples that both graphs hold, (C,) each; of several samples of a text, the first alone."""
    (our_S, our_texts_S), (their_S, their_texts_S) = (graph.sample_rows() for graph in graphs)
    _, ours, theirs = np.intersect1d(our_S, their_S, return_indices=True)
    order = np.argsort(ours)
    pairs_2C = np.stack([our_texts_S[ours[order]], their_texts_S[theirs[order]]])
    for side in range(2):
        pairs_2C = pairs_2C[:, np.sort(np.unique(pairs_2C[side], return_index=True)[1])]
    return pairs_2C[0], pairs_2C[1]


def _places(shared: npt.NDArray[Any], n_texts: int) -> Ids:
    """Number among the shared texts of every text id; -1 for the rest."""
    places = np.full(n_texts, -1, np.int32)
    places[shared] = np.arange(len(shared))
    return places


def _agreements(
    graphs: tuple[Graph, Graph], ids: tuple[npt.NDArray[Any], npt.NDArray[Any]], places: tuple[Ids, Ids], ranks: Ids
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64], Ids]:
    """Share of the first r shared neighbours that are in both rows, (C, T), the correlation of their ranks, and their number."""
    count = len(ids[0])
    out_CT, rho_C, compared_C = np.empty((count, len(ranks)), np.float32), np.empty(count), np.empty(count, np.int32)
    seen, held, order = (np.zeros(count, np.int64) for _ in range(3))
    with progress("comparing", count, unit="texts") as meter:
        for start in range(0, count, _BLOCK):
            part = slice(start, start + _BLOCK)
            rows = [place[graph.rows(own[part]).neighbor_ids] for graph, own, place in zip(graphs, ids, places, strict=True)]
            _count_shared(rows[0], rows[1], ranks, seen, 4 * start + 2, out_CT[part], compared_C[part])
            _correlate_ranks(rows[0], rows[1], held, order, 2 * start + 1, rho_C[part])
            meter.advance(len(rows[0]))
    return out_CT, rho_C, compared_C


@njit(nogil=True, cache=True)
def _correlate_ranks(
    one_nK: Ids,
    other_nK: Ids,
    held: npt.NDArray[np.int64],
    order: npt.NDArray[np.int64],
    stamp: int,
    rho_n: npt.NDArray[np.float64],
) -> None:
    """Spearman's rho of each pair of rows over what both hold, ranked anew; NaN where that is too little.

    There are no ties, so it is 1 - 6 sum(d^2) / (m (m^2 - 1)). `held` holds stamps, two a row, so it is never cleared.
    """
    for i in range(len(one_nK)):
        in_other, in_both = stamp + 2 * i, stamp + 2 * i + 1
        for b in range(other_nK.shape[1]):
            if other_nK[i, b] >= 0:
                held[other_nK[i, b]] = in_other
        m = 0
        for a in range(one_nK.shape[1]):
            if one_nK[i, a] >= 0 and held[one_nK[i, a]] == in_other:
                held[one_nK[i, a]] = in_both
                order[one_nK[i, a]] = m
                m += 1
        total, rank = 0.0, 0
        for b in range(other_nK.shape[1]):
            if other_nK[i, b] >= 0 and held[other_nK[i, b]] == in_both:
                total += (order[other_nK[i, b]] - rank) ** 2
                rank += 1
        rho_n[i] = 1 - 6 * total / (m * (m * m - 1.0)) if m >= _FEWEST_SHARED else np.nan


@njit(nogil=True, cache=True)
def _count_shared(
    one_nK: Ids,
    other_nK: Ids,
    ranks: Ids,
    seen: npt.NDArray[np.int64],
    stamp: int,
    out_nT: npt.NDArray[np.float32],
    compared_n: Ids,
) -> None:
    """Walk both rows rank by rank; a text counts when its second row reaches it. `seen` holds stamps, so it is never cleared.

    A row that has fewer shared neighbours than a rank asks for is compared on those that it has, with as many of the other.
    """
    for i in range(len(one_nK)):
        # Each row has two stamps of its own: one for either graph.
        mine = stamp + 4 * i
        a = b = found = taken = t = 0
        while t < len(ranks):
            while a < one_nK.shape[1] and one_nK[i, a] < 0:
                a += 1
            while b < other_nK.shape[1] and other_nK[i, b] < 0:
                b += 1
            moved = a < one_nK.shape[1] and b < other_nK.shape[1]
            if moved:
                found += seen[one_nK[i, a]] == mine + 1
                seen[one_nK[i, a]] = mine
                found += seen[other_nK[i, b]] == mine
                seen[other_nK[i, b]] = mine + 1
                a, b, taken = a + 1, b + 1, taken + 1
            while t < len(ranks) and (ranks[t] == taken or not moved):
                out_nT[i, t] = found / max(taken, 1)
                t += 1
        compared_n[i] = taken


def _describe(views: tuple[GraphView, GraphView], ids: tuple[int, int], overlap: float) -> dict[str, Any]:
    nearest = [
        view.neighbors(text_id, count=_SHOWN_NEIGHBORS)[schemas.TEXT].to_list() for view, text_id in zip(views, ids, strict=True)
    ]
    text = views[0].texts_of([ids[0]])[schemas.TEXT][0]
    return {"text": text, "overlap": overlap, "first": nearest[0], "second": nearest[1]}
