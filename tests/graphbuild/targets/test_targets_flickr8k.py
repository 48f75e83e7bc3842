"""How far assembled targets are from dense ones, on real captions with the real encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from graphbuild.embed.build import build_embeddings
from graphbuild.embed.config import EmbedConfig
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.sketch import fit_correction
from graphbuild.knn.stage import build_knn
from graphbuild.store.graph import Graph
from graphbuild.store.sketches import UNCORRECTED, estimate
from graphbuild.targets import assemble as targets
from graphbuild.targets import softmax

CAPTIONS = 1200
BATCH = 1024
TAU_S = 0.1
K = 10
"""Of 1,200 captions: about as many stored neighbours an anchor as k = 256 gives among Flickr8k's 40,000."""


@pytest.fixture(scope="session")
def flickr_graph(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    folder = tmp_path_factory.mktemp("flickr8k")
    captions = pq.read_table(shared_data / "flickr8k/flickr8k_96.parquet", columns=["captions"])["captions"]
    # One caption a picture, so that the batch is as varied as one of the whole set.
    firsts = [captions[row].as_py()[0] for row in range(CAPTIONS)]
    pq.write_table(pa.table({"caption": firsts}), folder / "captions.parquet")
    source = str(folder / "captions.parquet")
    build_embeddings(folder / "graph", EmbedConfig(dataset="parquet", sources=(source,), caption_column="caption", workers=0))
    build_knn(folder / "graph", KnnConfig(k=K))
    return Graph.open(folder / "graph")


def divergence(graph: Graph, *, absent: float | None) -> float:
    """KL(dense || assembled) in nats of one random batch."""
    ids = np.random.default_rng(0).choice(graph.n_texts, BATCH, replace=False)
    exact = targets.dense(graph.embeddings()[ids], ids)
    return softmax.kl(exact, targets.assemble(graph.rows(ids), ids, absent=absent).similarity_BB, TAU_S)


def test_sketch_keeps_the_target_within_002_nats_of_the_dense_one(flickr_graph: Graph) -> None:
    assert flickr_graph.sketch_dim == 64
    assert divergence(flickr_graph, absent=None) <= 0.02


def test_correction_of_some_captions_brings_the_pairs_of_others_nearer_to_brute_force(flickr_graph: Graph) -> None:
    exact = flickr_graph.embeddings()[:CAPTIONS].astype(np.float64)
    rows = flickr_graph.rows(np.arange(CAPTIONS))
    fitted, others = slice(0, CAPTIONS // 2), slice(CAPTIONS // 2, CAPTIONS)
    last = rows.similarities[:, -1]
    known = flickr_graph.embeddings()[fitted], rows.sketch[fitted], rows.sketch_scale[fitted], last[fitted]
    truth, sketches = exact[others] @ exact[others].T, (rows.sketch[others], rows.sketch_scale[others])
    absent = truth < np.minimum(last[others, None], last[others])
    errors = [
        np.square(estimate(*sketches, *sketches, correction) - truth)[absent].mean()
        for correction in (UNCORRECTED, fit_correction(*known))
    ]
    assert errors[1] < errors[0]


def test_a_constant_for_absent_pairs_is_ten_times_further_off_than_the_sketch(flickr_graph: Graph) -> None:
    assert divergence(flickr_graph, absent=0.0) > 10 * divergence(flickr_graph, absent=None)
