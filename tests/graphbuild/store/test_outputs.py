"""Files that users name: those of this program are replaced, those of others are not, unless they say so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers_graph import clustered_vectors, write_graph

from graphbuild.errors import OptionError
from graphbuild.exchange.export import export_edges
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.quality.curate.dedup import find_duplicates
from graphbuild.quality.curate.outliers import find_outliers
from graphbuild.quality.curate.sample import choose_sample
from graphbuild.quality.report.write import write_report
from train.results.compare.matrices import draw

WRITERS: dict[str, Callable[..., object]] = {
    "edges.parquet": export_edges,
    "edges.npz": export_edges,
    "page.html": lambda graph, out, **more: write_report(graph, out, fidelity=False, batch_size=16, **more),
    "dedup.parquet": find_duplicates,
    "sample.parquet": lambda graph, out, **more: choose_sample(graph, out, count=5, **more),
    "outliers.parquet": find_outliers,
}


@pytest.fixture(scope="module")
def graph_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outputs") / "g"
    write_graph(folder, clustered_vectors(60, 16), sample_counts=[1] * 60)
    build_knn(folder, KnnConfig(k=8))
    return folder


@pytest.mark.parametrize("name", WRITERS)
def test_file_of_others_is_kept_and_one_of_ours_replaced(graph_dir: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    out.write_text("mine")
    with pytest.raises(OptionError, match=f"{name}: is there already, and no command of ours wrote it"):
        WRITERS[name](graph_dir, out)
    assert out.read_text() == "mine"
    WRITERS[name](graph_dir, out, overwrite=True)
    WRITERS[name](graph_dir, out)
    assert out.read_bytes()[:4] != b"mine"


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_figures_say_who_wrote_them(tmp_path: Path, suffix: str) -> None:
    import numpy as np

    from graphbuild.store.outputs import require_replaceable

    draw({"one": np.eye(4, dtype=np.float32)}, tmp_path / f"a{suffix}")
    require_replaceable(tmp_path / f"a{suffix}", overwrite=False)
