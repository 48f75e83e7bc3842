"""The synthetic graphs that target assembly is measured on open, and are what is said of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.synthetic_graph import GraphSize, write_synthetic_graph


def test_wanted_texts_of_a_synthetic_graph_have_distinct_neighbours_none_of_them_the_text_itself(tmp_path: Path) -> None:
    wanted = np.array([3, 41, 999])
    graph = write_synthetic_graph(tmp_path, GraphSize(texts=1000, k=16, sketch_dim=8), wanted)
    assert (graph.n_texts, graph.k, graph.sketch_dim) == (1000, 16, 8)
    for text, neighbours in zip(wanted.tolist(), graph.rows(wanted).neighbor_ids.tolist(), strict=True):
        assert len({text, *neighbours}) == 17
