"""Measures a graph: the figures of docs/definitions.md, Health.

Shape letters: N texts, s texts of a sample, K neighbours stored, B samples of a batch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from graphbuild.errors import OptionError
from graphbuild.quality.health import labels, verdicts
from graphbuild.quality.health.edges import NEAR_RANKS, EdgePass, count_edges, mutual_share, random_ends, skewness
from graphbuild.quality.health.result import Health, HealthConfig, Measure
from graphbuild.quality.health.target import TAUS, PairSimilarity, random_pairs, target_by_temperature, truncated_mass
from graphbuild.store import schemas
from graphbuild.store.frames import DST, SIMILARITY, SRC, Frames
from graphbuild.store.graph import Graph
from graphbuild.store.neighbors import Rows

NEAR_DUPLICATE = 0.98
_RANKS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 256, 500, 1000, 2000, 4000)
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_PURITY_RANKS = (1, 5, 10)
_LISTED = 12
_FEW_ROWS = 256
_BINS = 24


@dataclass(slots=True)
class _Work:
    """What the measures share."""

    view: Frames
    graph: Graph
    config: HealthConfig
    rng: np.random.Generator
    ids_s: npt.NDArray[np.int64]
    rows: Rows
    shuffled_sK: npt.NDArray[np.int32]
    edges: EdgePass
    counts_N: npt.NDArray[np.int64]
    pairs: PairSimilarity
    random_similarity: npt.NDArray[np.float32]
    measures: list[Measure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


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
    work = _prepare(view, config)
    _structure(work)
    target = _target(work)
    _labels(work)
    _groups(work)
    _wordnet(work)
    graph = work.graph
    return Health(
        graph_dir=view.path,
        texts=graph.n_texts,
        k=graph.k,
        complete=graph.is_complete,
        config={name: str(value) if name == "wordnet" and value else value for name, value in asdict(config).items()},
        measures=tuple(work.measures),
        notes=tuple(work.notes),
        similarity_by_rank=similarity_by_rank(work.rows, graph.k),
        random_similarity=_quantiles(work.random_similarity) if len(work.random_similarity) else {},
        components=work.edges.components,
        in_degrees=_histogram(work.edges),
        target=target,
        hubs=_hubs(work),
        isolated=_isolated(work),
        near_duplicates=_near_duplicates(view),
    )


def _prepare(view: Frames, config: HealthConfig) -> _Work:
    graph = view.graph
    if graph.k == 0:
        raise OptionError(f"{view.path}: the graph is a single text without neighbours; there is nothing to measure.")
    rng = np.random.default_rng(config.seed)
    counts = view.texts.select(schemas.SAMPLE_COUNT).collect(engine="streaming").to_series().to_numpy().astype(np.int64)
    ids_s = np.sort(rng.choice(graph.n_texts, min(config.sample, graph.n_texts), replace=False))
    shuffled = np.concatenate([random_ends(rng, int(i), (1, graph.k), graph.n_texts) for i in ids_s])
    pairs = PairSimilarity(graph)
    return _Work(
        view=view,
        graph=graph,
        config=config,
        rng=rng,
        ids_s=ids_s,
        rows=graph.rows(ids_s),
        shuffled_sK=shuffled,
        edges=count_edges(graph, counts / max(counts.sum(), 1), rng),
        counts_N=counts,
        pairs=pairs,
        random_similarity=random_pairs(pairs, graph.n_texts, rng) if pairs.source else np.empty(0, np.float32),
    )


def _structure(work: _Work) -> None:
    """Exactness, duplicates, isolation, hubs, mutual edges, components."""
    graph, edges = work.graph, work.edges
    n_texts, k = graph.n_texts, graph.k
    stage = work.view.manifest.stages["knn"]
    proven = (stage.facts.get("certified_rows", 0) + stage.facts.get("recomputed_rows", 0)) / n_texts
    found = [
        verdicts.certified(proven, stage.config["method"]),
        verdicts.near_duplicates(_share(edges.nearest_N >= NEAR_DUPLICATE)),
    ]
    if len(work.random_similarity):
        found.append(verdicts.isolated(_share(edges.nearest_N < _isolation_limit(work)), _isolation_limit(work)))
    else:
        work.notes.append("isolated texts, truncated mass and contrast: the graph holds neither embeddings nor a sketch")
    stored, shuffled = edges.stored, edges.shuffled
    if graph.is_complete:
        work.notes.append("in-degree, mutual edges and orphans over all ranks: every pair is stored, so they say nothing")
    else:
        found.append(verdicts.orphans(_share(stored.in_degree_N == 0), _share(shuffled.in_degree_N == 0)))
        found.append(verdicts.largest_hub(stored.in_degree_N.max() / k, shuffled.in_degree_N.max() / k))
    if n_texts > 2 * NEAR_RANKS:
        found.append(verdicts.hubness(skewness(stored.near_degree_N), skewness(shuffled.near_degree_N)))
    if not graph.is_complete:
        few = work.rng.choice(work.ids_s, min(_FEW_ROWS, len(work.ids_s)), replace=False)
        found.append(verdicts.mutual(mutual_share(graph, few, k), k / (n_texts - 1)))
    at_90 = next(entry for entry in edges.components if entry["threshold"] == 0.9)
    found.append(verdicts.chaining(at_90["largest_share"], at_90["shuffled_largest_share"]))
    work.measures += found


def _isolation_limit(work: _Work) -> float:
    return float(np.quantile(work.random_similarity, 0.95))


def _target(work: _Work) -> list[dict[str, float]]:
    """What the graph does to training."""
    graph, config = work.graph, work.config
    if len(work.random_similarity) and not graph.is_complete:
        last = float(np.median(work.rows.similarities[:, -1].astype(np.float32)))
        work.measures.append(verdicts.contrast(last - float(np.quantile(work.random_similarity, 0.95))))
        few = np.sort(work.rng.choice(work.ids_s, min(_FEW_ROWS, len(work.ids_s)), replace=False))
        mass = truncated_mass(graph, work.pairs, few, config.tau_s, work.rng)
        beyond = 1 - graph.k / (graph.n_texts - 1)
        work.measures.append(verdicts.truncated(mass, beyond, config.tau_s, bool(graph.sketch_dim)))
    # Two samples of one text are not an edge; everything else is counted by the pass, each pair of samples once a direction.
    meetings, random_meetings = work.edges.stored.weight, work.edges.shuffled.weight
    others = config.batch_size - 1
    work.measures.append(verdicts.hit_rate(others * meetings, config.batch_size, others * random_meetings))
    if not graph.sketch_dim and config.absent is None:
        work.notes.append("target entropy: the graph has no sketch, and no --absent was given for the pairs that it does not store")
        return []
    share_N = work.counts_N / work.counts_N.sum()
    batch = work.rng.choice(graph.n_texts, min(config.batch_size, int(work.counts_N.sum())), p=share_N)
    absent = None if graph.sketch_dim else config.absent
    temperatures = tuple(sorted({*TAUS, config.tau_s}))
    table = target_by_temperature(graph, batch, temperatures, absent)
    at_tau = next(entry for entry in table if entry["tau_s"] == config.tau_s)
    work.measures.append(verdicts.own_view(at_tau["own_view_mass"], config.tau_s))
    return table


def _labels(work: _Work) -> None:
    columns = work.config.label_columns or _usual(work, labels.LABEL_NAMES)
    recorded = (work.view.manifest.dataset.get("images") or {}).get("label_column")
    if not work.config.label_columns and recorded in work.graph.sample_columns and recorded not in columns:
        columns = (recorded, *columns)
    for column in columns:
        codes_N, names = labels.majority_labels(work.view, column)
        if len(names) > work.graph.n_texts // 2:
            work.notes.append(
                f"purity of {column}: {len(names):,} values for {work.graph.n_texts:,} texts, hardly any of them shared"
            )
            continue
        ranks = [rank for rank in sorted({*_PURITY_RANKS, work.graph.k}) if rank <= work.graph.k]
        stored = labels.purity_at(codes_N, work.ids_s, work.rows.neighbor_ids, ranks)
        shuffled = labels.purity_at(codes_N, work.ids_s, work.shuffled_sK, ranks)
        work.measures += [verdicts.purity(column, *figures) for figures in zip(ranks, stored, shuffled, strict=True)]
        if missing := int((codes_N < 0).sum()):
            work.notes.append(f"purity of {column}: {missing:,} texts have no {column} and are left out")


def _groups(work: _Work) -> None:
    column = work.config.group_column or next(iter(_usual(work, labels.GROUP_NAMES)), None)
    if column is None and work.counts_N.sum() > work.view.manifest.counts.get("samples", work.counts_N.sum()):
        column = schemas.SAMPLE_ID
    if column is None:
        return
    groups = labels.text_groups(work.view, column)
    stored = labels.group_agreement(groups, work.ids_s, work.rows.neighbor_ids)
    shuffled = labels.group_agreement(groups, work.ids_s, work.shuffled_sK)
    if stored is None or shuffled is None:
        work.notes.append(f"same {column}: no two sampled texts share one")
        return
    work.measures.append(verdicts.group_first(column, stored.first, shuffled.first))
    work.measures.append(verdicts.group_found(column, stored.found, shuffled.found, work.graph.k))


def _wordnet(work: _Work) -> None:
    if work.config.wordnet is None:
        return
    distance = labels.WordNetDistance.read(work.config.wordnet)
    column = labels.WNID if labels.WNID in work.graph.sample_columns else schemas.SAMPLE_ID
    codes_N, names = labels.majority_labels(work.view, column)
    number = np.array([distance.index.get(name, -1) for name in names] + [-1])
    nodes_N = number[codes_N]
    known = nodes_N[work.ids_s] >= 0
    if missing := int((nodes_N < 0).sum()):
        work.notes.append(f"WordNet: {missing:,} texts have no {column} that {work.config.wordnet.name} knows, and are left out")
    if not known.any():
        return
    values = []
    for ends_sK in (work.rows.neighbor_ids[known], work.shuffled_sK[known]):
        lengths = distance.between(nodes_N[work.ids_s[known], None], nodes_N[ends_sK])
        values.append(labels.wordnet_agreement(work.rows.similarities[known], np.where(nodes_N[ends_sK] >= 0, lengths, np.nan)))
    if np.isfinite(values).all():
        work.measures.append(verdicts.wordnet(*values))
    else:
        work.notes.append("WordNet: no row has neighbours of different distances")


def _usual(work: _Work, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in work.graph.sample_columns if name.lower() in names)


def similarity_by_rank(rows: Rows, k: int) -> list[dict[str, float]]:
    """Quantiles of the similarity to the neighbour of each of some ranks, over the given rows."""
    values_sK = rows.similarities.astype(np.float32)
    ranks = sorted({rank for rank in (*_RANKS, k) if 1 <= rank <= k})
    return [{"rank": rank, **_quantiles(values_sK[:, rank - 1])} for rank in ranks]


def _quantiles(values: npt.NDArray[np.float32]) -> dict[str, float]:
    return {f"{q:.0%}": round(float(np.quantile(values, q)), 4) for q in _QUANTILES}


def _share(flags_N: npt.NDArray[np.bool_]) -> float:
    return float(flags_N.mean())


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


def _hubs(work: _Work) -> list[dict[str, Any]]:
    degrees = work.edges.stored.near_degree_N if work.graph.is_complete else work.edges.stored.in_degree_N
    ids = np.lexsort((np.arange(len(degrees)), -degrees))[:_LISTED]
    return _named(work.view, ids, "in_degree", degrees[ids])


def _isolated(work: _Work) -> list[dict[str, Any]]:
    nearest = work.edges.nearest_N
    ids = np.lexsort((np.arange(len(nearest)), nearest))[:_LISTED]
    return _named(work.view, ids, "nearest", nearest[ids])


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
