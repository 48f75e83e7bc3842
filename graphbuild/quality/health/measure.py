"""Measures a graph: the figures of docs/definitions.md, Health.

Shape letters: N texts, s texts of a sample, K neighbours stored, B samples of a batch.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from graphbuild.errors import OptionError
from graphbuild.quality.health import verdicts
from graphbuild.quality.health.agreement import agreement
from graphbuild.quality.health.coverage import Coverage, measure_coverage
from graphbuild.quality.health.edges import EdgePass, count_edges
from graphbuild.quality.health.result import Health, HealthConfig
from graphbuild.quality.health.sample import Findings, RowSample
from graphbuild.quality.health.structure import FAR_QUANTILE, NEAR_DUPLICATE, structure
from graphbuild.quality.health.target import TAUS, PairSimilarity, random_pairs, target_by_temperature, truncated_mass
from graphbuild.quality.samples import Samples
from graphbuild.store import schemas
from graphbuild.store.frames import DST, SIMILARITY, SRC, Frames
from graphbuild.store.graph import Graph
from graphbuild.store.neighbors import Rows
from graphbuild.system.progress import progress

_RANKS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 256, 500, 1000, 2000, 4000)
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_LISTED = 12
_BINS = 24


def check_health(view: Frames, **options: Any) -> Health:
    """Measure a graph: one pass over its edges, and samples of its rows.

    Args:
        view: The graph's tables.
        options: Fields of `HealthConfig`.

    Raises:
        ArtifactError: If the knn stage is not done, or a file is damaged.
        OptionError: If a row has no neighbours to look at.
        SourceError: If a column or the WordNet file is not there.
    """
    config = HealthConfig(**options)
    graph = view.graph
    if graph.k == 0:
        raise OptionError(f"{view.path}: the graph is a single text without neighbours; there is nothing to measure.")
    rng = np.random.default_rng(config.seed)
    sample = RowSample.draw(graph, config.sample, rng)
    edges = count_edges(graph, _sample_shares(view), rng)
    with progress("figures", None, unit="figures"):
        return _assess(view, config, rng, sample, edges)


def _assess(view: Frames, config: HealthConfig, rng: np.random.Generator, sample: RowSample, edges: EdgePass) -> Health:
    """Return everything that follows from the one pass over the edges, and from samples."""
    graph = view.graph
    pairs = PairSimilarity(graph)
    random_similarity = random_pairs(pairs, graph.n_texts, rng) if pairs.source else np.empty(0, np.float32)
    coverage = measure_coverage(view, sample.ids_s)
    found = structure(sample, edges, view.manifest.stages["knn"], random_similarity, rng)
    if coverage is not None:
        found.measures.append(verdicts.uncovered(coverage.share))
    if len(random_similarity) and not graph.is_complete:
        found.add(_beyond_k(sample, pairs, random_similarity, config, rng))
    target = _target(Samples.read(graph), graph, edges, config, rng, found)
    found.add(agreement(view, sample, config))
    return Health(
        graph_dir=view.path,
        texts=graph.n_texts,
        k=graph.k,
        complete=graph.is_complete,
        config={name: str(value) if name == "wordnet" and value else value for name, value in asdict(config).items()},
        measures=tuple(found.measures),
        notes=tuple(found.notes),
        similarity_by_rank=similarity_by_rank(sample.rows, graph.k),
        random_similarity=_quantiles(random_similarity) if len(random_similarity) else {},
        components=edges.components,
        in_degrees=_histogram(edges),
        target=target,
        hubs=_hubs(view, graph, edges),
        isolated=_isolated(view, edges),
        uncovered=_uncovered(view, coverage),
        near_duplicates=_near_duplicates(view),
    )


def _sample_shares(view: Frames) -> npt.NDArray[np.float64]:
    counts = view.texts.select(schemas.SAMPLE_COUNT).collect(engine="streaming").to_series().to_numpy()
    shares: npt.NDArray[np.float64] = counts / max(counts.sum(), 1)
    return shares


def _beyond_k(
    sample: RowSample,
    pairs: PairSimilarity,
    random_similarity: npt.NDArray[np.float32],
    config: HealthConfig,
    rng: np.random.Generator,
) -> Findings:
    """What the last rank and the texts beyond it are."""
    graph = sample.graph
    last = float(np.median(sample.rows.similarities[:, -1].astype(np.float32)))
    mass = truncated_mass(graph, pairs, sample.few(rng), config.tau_s, rng)
    return Findings(
        [
            verdicts.contrast(last - float(np.quantile(random_similarity, FAR_QUANTILE))),
            verdicts.truncated(mass, 1 - graph.k / (graph.n_texts - 1), config.tau_s, bool(graph.sketch_dim)),
        ]
    )


def _target(
    samples: Samples, graph: Graph, edges: EdgePass, config: HealthConfig, rng: np.random.Generator, found: Findings
) -> list[dict[str, float]]:
    """What the graph does to training; figures and notes are added to what was found."""
    batch_size = min(config.batch_size, len(samples))
    # Of a batch drawn without replacement. Two samples of one text are not an edge; all else is counted by the pass, each pair
    # of samples once a direction.
    others = (batch_size - 1) * len(samples) / max(len(samples) - 1, 1)
    found.measures.append(verdicts.hit_rate(others * edges.stored.weight, batch_size, others * edges.shuffled.weight))
    if not graph.sketch_dim and config.absent is None:
        found.notes.append("target entropy: the graph has no sketch, and no --absent was given for pairs that it does not store")
        return []
    absent = None if graph.sketch_dim else config.absent
    temperatures = tuple(sorted({*TAUS, config.tau_s}))
    table = target_by_temperature(graph, samples.random_batch(batch_size, rng), temperatures, absent)
    at_tau = next(entry for entry in table if entry["tau_s"] == config.tau_s)
    found.measures.append(verdicts.own_view(at_tau["own_view_mass"], config.tau_s))
    return table


def similarity_by_rank(rows: Rows, k: int) -> list[dict[str, float]]:
    """Return the quantiles of the similarity to the neighbour of each of some ranks, over the given rows."""
    values_sK = rows.similarities.astype(np.float32)
    ranks = sorted({rank for rank in (*_RANKS, k) if 1 <= rank <= k})
    return [{"rank": rank, **_quantiles(values_sK[:, rank - 1])} for rank in ranks]


def _quantiles(values: npt.NDArray[np.float32]) -> dict[str, float]:
    return {f"{q:.0%}": round(float(np.quantile(values, q)), 4) for q in _QUANTILES}


def _histogram(edges: EdgePass) -> list[dict[str, float]]:
    """Texts by how often they are a neighbour (first ten ranks), in bins that widen: in-degrees span decades."""
    degrees = edges.stored.near_degree_N
    top = int(max(degrees.max(), edges.shuffled.near_degree_N.max())) + 1
    limits = np.unique(np.concatenate([[0, 1], np.geomspace(1, top + 1, _BINS).astype(np.int64), [top + 1]]))
    counted = [np.histogram(one, limits)[0].tolist() for one in (degrees, edges.shuffled.near_degree_N)]
    return [
        {"from": int(low), "to": int(high), "texts": texts, "shuffled": shuffled}
        for low, high, texts, shuffled in zip(limits[:-1], limits[1:], *counted, strict=True)
    ]


def _hubs(view: Frames, graph: Graph, edges: EdgePass) -> list[dict[str, Any]]:
    degrees = edges.stored.near_degree_N if graph.is_complete else edges.stored.in_degree_N
    ids = np.lexsort((np.arange(len(degrees)), -degrees))[:_LISTED]
    return _named(view, ids, "in_degree", degrees[ids])


def _isolated(view: Frames, edges: EdgePass) -> list[dict[str, Any]]:
    nearest = edges.nearest_N
    ids = np.lexsort((np.arange(len(nearest)), nearest))[:_LISTED]
    return _named(view, ids, "nearest", nearest[ids])


def _uncovered(view: Frames, coverage: Coverage | None) -> list[dict[str, Any]]:
    ids = coverage.uncovered[:_LISTED] if coverage is not None else []
    texts = dict(view.texts_of(ids).iter_rows()) if ids else {}
    return [{"text_id": text_id, "text": texts[text_id]} for text_id in ids]


def _named(view: Frames, ids: npt.NDArray[Any], name: str, values: npt.NDArray[Any]) -> list[dict[str, Any]]:
    texts = dict(view.texts_of(ids.tolist()).iter_rows())
    return [
        {"text_id": text_id, "text": texts[text_id], name: round(value, 4)}
        for text_id, value in zip(ids.tolist(), values.tolist(), strict=True)
    ]


def _near_duplicates(view: Frames) -> list[dict[str, Any]]:
    """The nearest pairs at or above 0.98, each once."""
    import polars as pl

    close = view.edges.filter(pl.col(SIMILARITY) >= NEAR_DUPLICATE)
    ordered = close.select(pl.min_horizontal(SRC, DST).alias(SRC), pl.max_horizontal(SRC, DST).alias(DST), SIMILARITY)
    best = ordered.unique().sort([SIMILARITY, SRC, DST], descending=[True, False, False]).head(_LISTED).collect(engine="streaming")
    texts = dict(view.texts_of([*best[SRC].to_list(), *best[DST].to_list()]).iter_rows())
    return [
        {"text_id": src, "text": texts[src], "other_id": dst, "other": texts[dst], SIMILARITY: round(similarity, 4)}
        for src, dst, similarity in best.select(SRC, DST, SIMILARITY).iter_rows()
    ]
