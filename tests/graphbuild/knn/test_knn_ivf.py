"""Neighbours through the FAISS index: recall is measured and reached, similarities are exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from helpers_graph import clustered_vectors, write_graph
from numpy.typing import NDArray
from scipy.stats import binomtest

from graphbuild.embed.index import build_index
from graphbuild.errors import ArtifactError, OptionError, ResourceError
from graphbuild.knn import approximate as ivf
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn, estimate_knn
from graphbuild.quality.verify import verify_graph
from graphbuild.store.manifest import Manifest

IVF = KnnConfig(k=20, method="ivf", recall=0.9)


def indexed_graph(graph_dir: Path, vectors: NDArray[np.float16], *, flat_limit: int = 100) -> Path:
    manifest = write_graph(graph_dir, vectors, shard_size=1_000)
    build_index(graph_dir, manifest, overwrite=True, flat_limit=flat_limit)
    return graph_dir


def stored(graph_dir: Path) -> tuple[NDArray[np.int32], NDArray[np.float16]]:
    table = pa.concat_tables([pa.ipc.open_file(path).read_all() for path in sorted((graph_dir / "knn").glob("*.arrow"))])
    ids, similarities = (table[name].combine_chunks().flatten().to_numpy() for name in ("neighbor_ids", "similarities"))
    return ids.reshape(table.num_rows, -1), similarities.reshape(table.num_rows, -1)


def exact_similarities(vectors: NDArray[np.float16]) -> NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    scores = wide @ wide.T
    np.fill_diagonal(scores, -np.inf)
    return scores


@pytest.mark.parametrize(("share", "trials"), [(0.99, 1000), (1.0, 50), (0.0, 20), (0.5, 7)])
def test_interval_is_wilsons(share: float, trials: int) -> None:
    expected = binomtest(round(share * trials), trials).proportion_ci(method="wilson")
    exact_share = round(share * trials) / trials
    assert ivf.wilson_interval(exact_share, trials) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_rows_that_are_found_or_missed_whole_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    alone = rng.binomial(100, 0.9, 1000) / 100
    together = (rng.random(1000) < 0.9).astype(float)
    widths = [high - low for low, high in (ivf.recall_interval(alone), ivf.recall_interval(together))]
    assert widths[1] > 5 * widths[0]


def test_true_recall_of_all_rows_lies_in_the_interval_of_the_manifest_and_reaches_the_target(tmp_path: Path) -> None:
    vectors = clustered_vectors(4_000, 16, clusters=100, spread=1.0)
    build_knn(indexed_graph(tmp_path, vectors), IVF)
    said = Manifest.load(tmp_path).stages["knn"].facts["ivf"]
    scores = exact_similarities(vectors)
    ids, _ = stored(tmp_path)
    kth = np.partition(scores, len(vectors) - 20, axis=1)[:, len(vectors) - 20]
    recall = (np.take_along_axis(scores, ids.astype(np.int64), 1) >= kth[:, None] - 1e-6).mean()
    assert 0.9 <= said["interval"][0] <= recall <= said["interval"][1]
    assert (said["rows"], said["nprobe"] < said["lists"]) == (2000, True)


def test_stored_similarities_are_exact_and_rows_pass_verification(tmp_path: Path) -> None:
    vectors = clustered_vectors(2_500, 16)
    build_knn(indexed_graph(tmp_path, vectors), IVF)
    ids, similarities = stored(tmp_path)
    expected = np.take_along_axis(exact_similarities(vectors), ids.astype(np.int64), 1).astype(np.float16)
    np.testing.assert_array_equal(similarities, expected)
    # Order, range, no text its own neighbour, the same value in both rows of a pair.
    assert verify_graph(tmp_path).method == "ivf"


def test_rows_whose_lists_hold_too_few_texts_are_searched_exactly(tmp_path: Path) -> None:
    vectors = clustered_vectors(3_000, 16, clusters=60, spread=0.2)
    result = build_knn(indexed_graph(tmp_path, vectors), KnnConfig(k=49, method="ivf", recall=0.3))
    ids, _ = stored(tmp_path)
    assert result.recomputed_rows > 0
    assert ids.shape == (3_000, 49)
    assert (ids >= 0).all()


def test_all_lists_find_everything(tmp_path: Path) -> None:
    vectors = clustered_vectors(1_500, 16)
    build_knn(indexed_graph(tmp_path, vectors), KnnConfig(k=20, method="ivf", recall=1.0))
    said = Manifest.load(tmp_path).stages["knn"].facts["ivf"]
    assert (said["nprobe"], said["by_similarity"], said["by_id"]) == (said["lists"], 1.0, 1.0)


def test_target_that_is_missed_is_an_error_with_both_figures(tmp_path: Path) -> None:
    indexed_graph(tmp_path / "a", clustered_vectors(1_500, 16))
    # An index over other vectors: what it finds is no neighbour.
    other = indexed_graph(tmp_path / "b", clustered_vectors(1_500, 16, seed=1)) / "index.faiss"
    with pytest.raises(ResourceError, match=r"reaches a recall of 0\.\d+ with all \d+ lists probed, less than --recall 0.9"):
        ivf.IvfEngine(clustered_vectors(1_500, 16), other, k=20, memory_limit=10**9, recall=0.9)


def test_flat_index_is_said_to_be_exact_and_recorded_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_knn(indexed_graph(tmp_path, clustered_vectors(300, 16), flat_limit=1_000), IVF)
    assert "the index of so few texts is flat, which is exact" in capsys.readouterr().err
    assert Manifest.load(tmp_path).stages["knn"].config["method"] == "exact"
    assert build_knn(tmp_path, KnnConfig(k=20)).already_done


def test_ivf_without_an_index_says_how_to_make_one(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(300, 16))
    with pytest.raises(ArtifactError, match=r"the index stage is not finished. Run `graphbuild embed` first"):
        build_knn(tmp_path, IVF)


def test_damaged_index_is_refused_by_name(tmp_path: Path) -> None:
    indexed_graph(tmp_path, clustered_vectors(300, 16))
    (tmp_path / "index.faiss").write_bytes(b"short")
    with pytest.raises(ArtifactError, match=r"index.faiss has 5 bytes"):
        build_knn(tmp_path, IVF)


@pytest.mark.parametrize("options", [{"workers": 2}, {"scheduler": "tcp://127.0.0.1:1"}])
def test_ivf_on_workers_is_refused(tmp_path: Path, options: dict[str, object]) -> None:
    indexed_graph(tmp_path, clustered_vectors(300, 16))
    with pytest.raises(OptionError, match="searches in this process"):
        build_knn(tmp_path, KnnConfig(k=5, method="ivf", **options))


def test_dry_run_of_ivf_is_refused(tmp_path: Path) -> None:
    indexed_graph(tmp_path, clustered_vectors(300, 16))
    with pytest.raises(OptionError, match="Leave out --method ivf"):
        estimate_knn(tmp_path, IVF)


def test_dry_run_says_what_ivf_would_take(tmp_path: Path) -> None:
    vectors = clustered_vectors(3_000, 16)
    estimate = estimate_knn(indexed_graph(tmp_path, vectors), KnnConfig(k=20, recall=0.9))
    assert estimate.ivf is not None
    assert 0.9 <= estimate.ivf.recall <= 1
    assert 1 <= estimate.ivf.nprobe < estimate.ivf.lists
    assert estimate.ivf.seconds > 0
    assert "--method ivf" in estimate.summary()


def test_dry_run_leaves_ivf_out_where_the_index_is_flat_or_damaged(tmp_path: Path) -> None:
    indexed_graph(tmp_path / "flat", clustered_vectors(300, 16), flat_limit=1_000)
    assert estimate_knn(tmp_path / "flat", KnnConfig(k=20)).ivf is None
    indexed_graph(tmp_path / "damaged", clustered_vectors(300, 16))
    (tmp_path / "damaged" / "index.faiss").write_bytes(b"short")
    assert estimate_knn(tmp_path / "damaged", KnnConfig(k=20)).ivf is None
