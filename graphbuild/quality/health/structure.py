"""The graph as a graph: exactness, duplicates, isolation, hubs, mutual edges, components."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from graphbuild.quality.health import verdicts
from graphbuild.quality.health.edges import NEAR_RANKS, EdgePass, mutual_share
from graphbuild.quality.health.result import Measure
from graphbuild.quality.health.sample import Findings, RowSample
from graphbuild.store.manifest import Stage

NEAR_DUPLICATE = 0.98
FAR_QUANTILE = 0.95
"""Quantile of random pairs that a neighbour is expected to lie above."""


def structure(
    sample: RowSample,
    edges: EdgePass,
    stage: Stage,
    random_similarity: npt.NDArray[np.float32],
    rng: np.random.Generator,
) -> Findings:
    """Judge what one pass over the edges counted.

    Args:
        sample: Of the graph.
        edges: What was counted.
        stage: The knn stage's entry in the manifest.
        random_similarity: Of random pairs; empty where it is not known.
        rng: Draws the rows whose edges are looked up the other way.
    """
    graph = sample.graph
    proven = (stage.facts.get("certified_rows", 0) + stage.facts.get("recomputed_rows", 0)) / graph.n_texts
    found = Findings([verdicts.certified(proven, stage.config["method"])])
    found.measures.append(verdicts.near_duplicates(_share(edges.nearest_N >= NEAR_DUPLICATE)))
    if len(random_similarity):
        limit = float(np.quantile(random_similarity, FAR_QUANTILE))
        chance = FAR_QUANTILE ** (graph.n_texts - 1)
        found.measures.append(verdicts.isolated(_share(edges.nearest_N < limit), limit, chance))
    else:
        found.notes.append("isolated texts, truncated mass and contrast: the graph holds neither embeddings nor a sketch")
    found.measures += _in_degrees(edges, graph.k, complete=graph.is_complete)
    if graph.is_complete:
        found.notes.append("in-degree, mutual edges and orphans over all ranks: every pair is stored, so they say nothing")
    else:
        mutual = mutual_share(graph, sample.few(rng), graph.k)
        found.measures.append(verdicts.mutual(mutual, graph.k / (graph.n_texts - 1)))
    at_90 = next(entry for entry in edges.components if entry["threshold"] == 0.9)
    found.measures.append(verdicts.chaining(at_90["largest_share"], at_90["shuffled_largest_share"], graph.n_texts))
    return found


def _in_degrees(edges: EdgePass, k: int, *, complete: bool) -> list[Measure]:
    from scipy.stats import skew

    stored, shuffled = edges.stored, edges.shuffled
    found = []
    if not complete:
        found.append(verdicts.orphans(_share(stored.in_degree_N == 0), _share(shuffled.in_degree_N == 0)))
        found.append(verdicts.largest_hub(stored.in_degree_N.max() / k, shuffled.in_degree_N.max() / k))
    if len(edges.nearest_N) > 2 * NEAR_RANKS:
        # Equal in-degrees have no skewness; SciPy's is not a number then.
        skews = [float(skew(one.near_degree_N)) if np.ptp(one.near_degree_N) else 0.0 for one in (stored, shuffled)]
        found.append(verdicts.hubness(*skews))
    return found


def _share(flags_N: npt.NDArray[np.bool_]) -> float:
    return float(flags_N.mean())
