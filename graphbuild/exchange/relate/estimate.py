"""What `relate` would take: columns are read, a few rows compared, a few texts embedded; nothing is written.

Shape letters: N texts, C distinct texts of a column, D vector width.
"""

from __future__ import annotations

from pathlib import Path
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from graphbuild.exchange.relate.config import RelateConfig, RelateEstimate
from graphbuild.exchange.relate.numbering import Texts
from graphbuild.exchange.relate.related import combined, embed_now
from graphbuild.exchange.relate.stage import Relation, Requested, settled
from graphbuild.knn.blockwise import Similarity, nearest
from graphbuild.knn.stage import stored_k
from graphbuild.store.files import ShardRange, shard_ranges
from graphbuild.store.manifest import Manifest
from graphbuild.system.cores import available_cores

_PROBE_ROWS = 128
"""For each core."""
_PROBE_TEXTS = 128
_NEIGHBOR_BYTES = 20
"""Of each neighbour of a shard that is being written, as of `graphbuild.knn.plan`."""


def estimate_relate(graph_dir: Path, config: RelateConfig) -> RelateEstimate:
    """Return what `relate_columns` would take; changes nothing.

    Raises:
        UserError: As `relate_columns`.
    """
    requested = Requested.read(graph_dir, config)
    relation = Relation(graph_dir, Manifest.load_or_new(graph_dir), requested)
    texts = Texts()
    # All rows, for what is equal is known by reading alone.
    text_S = np.concatenate([numbers for _, numbers in requested.numbered(texts)])
    count = len(texts.values)
    k = stored_k(config.k, count)
    shards = shard_ranges(count, config.shard_size)
    missing = _missing(relation, config) if relation.has_texts() else shards
    rows = sum(map(len, missing))
    probe = _Probe()
    pairs_per_second = embed_seconds = 0.0
    if missing:
        values = [list(one) for one in zip(*texts.values, strict=True)]
        similarity = combined(settled(requested.specs), values, np.bincount(text_S), config.rule, requested.weights, probe.embed)
        pairs_per_second, embed_seconds = _rate(similarity, count, k), probe.seconds
    return RelateEstimate(
        samples=len(text_S),
        texts=count,
        k=k,
        pairs=rows * count,
        pairs_per_second=pairs_per_second,
        embedded=probe.texts,
        embed_seconds=embed_seconds,
        seconds=embed_seconds + (rows * count / pairs_per_second if missing else 0.0),
        memory=_NEIGHBOR_BYTES * min(count, config.shard_size) * k + probe.bytes,
        bytes=rows * (4 + 6 * k + (config.sketch_dim + 4 if config.sketch_dim else 0)),
        missing_shards=len(missing),
        shards=len(shards),
    )


def _missing(relation: Relation, config: RelateConfig) -> list[ShardRange]:
    search = relation.search()
    return [] if search.is_done(overwrite=config.overwrite) else search.missing()


class _Probe:
    """Embeds a few texts, to tell what all of them take; their vectors are random."""

    def __init__(self) -> None:
        self.texts, self.bytes, self.seconds = 0, 0, 0.0

    def embed(self, encoder: str, precision: str, texts: list[str]) -> NDArray[np.float16]:
        """Return random unit vectors as wide as the encoder's; (C, D)."""
        # The first call of a process loads kernels, and is no measure.
        few = texts[:_PROBE_TEXTS]
        dim = embed_now(encoder, precision, few[:2]).shape[1]
        started = monotonic()
        embed_now(encoder, precision, few)
        self.seconds += (monotonic() - started) / len(few) * len(texts)
        self.texts += len(texts)
        self.bytes += 2 * dim * len(texts)
        vectors_CD = np.random.default_rng(0).standard_normal((len(texts), dim), np.float32)
        unit_CD: NDArray[np.float16] = (vectors_CD / np.linalg.norm(vectors_CD, axis=1, keepdims=True)).astype(np.float16)
        return unit_CD


def _rate(similarity: Similarity, count: int, k: int) -> float:
    """Pairs a second, on all cores."""
    # Compiled programs are loaded first.
    nearest(similarity, np.arange(1), min(count, k + 1), k)
    rows = np.arange(min(count, _PROBE_ROWS * available_cores()))
    started = monotonic()
    nearest(similarity, rows, count, k)
    return len(rows) * count / max(monotonic() - started, 1e-9)
