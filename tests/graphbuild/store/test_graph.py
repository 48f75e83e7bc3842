"""The reader against what Parquet and Arrow say."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers_graph import clustered_vectors, unit_rows, write_graph
from numpy.typing import NDArray

from graphbuild.errors import ArtifactError, ArtifactMismatch, SourceError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.store import schemas
from graphbuild.store.graph import Graph
from graphbuild.store.lookup import build_lookup
from graphbuild.store.manifest import Manifest
from graphbuild.store.neighbors import Rows

VECTORS = clustered_vectors(230, 24)


@pytest.fixture(scope="module")
def graph_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graph")
    # Text 0 has two samples, and sample "both" two captions.
    samples = [("both", 3), *[(f"image {i}.jpg", i) for i in range(230)], ("again", 0), ("both", 229)]
    write_graph(folder, VECTORS, samples=samples, shard_size=50)
    build_knn(folder, KnnConfig(k=17, sketch_dim=16))
    return folder


@pytest.fixture(scope="module")
def graph(graph_dir: Path) -> Graph:
    return Graph.open(graph_dir)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    write_graph(tmp_path, VECTORS[:60], shard_size=25)
    build_knn(tmp_path, KnnConfig(k=5))
    return tmp_path


def random_ids(count: int) -> NDArray[np.int64]:
    return np.random.default_rng(5).integers(0, 230, count)


def test_rows_of_any_ids_equal_a_polars_read_of_the_shards(graph_dir: Path, graph: Graph) -> None:
    table = pl.concat([pl.read_ipc(path) for path in sorted((graph_dir / "knn").glob("*.arrow"))])
    ids = random_ids(300)
    rows = graph.rows(ids)
    for name in Rows.__slots__:
        np.testing.assert_array_equal(getattr(rows, name), table[name].to_numpy()[ids])


def test_rows_fill_arrays_that_were_made_before(graph: Graph) -> None:
    out = Rows.empty(40, graph.k, graph.sketch_dim)
    assert graph.rows(random_ids(40), out=out) is out
    np.testing.assert_array_equal(out.neighbor_ids, graph.rows(random_ids(40)).neighbor_ids)


def test_no_ids_give_no_rows(graph: Graph) -> None:
    assert graph.rows([]).neighbor_ids.shape == (0, 17)


@pytest.mark.parametrize("wrong", [-1, 230])
def test_an_id_outside_the_graph_is_refused(graph: Graph, wrong: int) -> None:
    with pytest.raises(ValueError, match="0 to 229"):
        graph.rows([0, wrong])


def test_output_of_another_shape_is_refused(graph: Graph) -> None:
    with pytest.raises(ValueError, match=r"of shape \(3, 17\), not int32 of shape \(2, 17\)"):
        graph.rows([1, 2], out=Rows.empty(3, graph.k, graph.sketch_dim))


@pytest.mark.parametrize("column", Rows.__slots__)
def test_arrays_of_another_kind_to_fill_are_refused(graph: Graph, column: str) -> None:
    room = Rows.empty(2, graph.k, graph.sketch_dim)
    with pytest.raises(ValueError, match=rf"`out\.{column}` is float64 of shape"):
        graph.rows([1, 2], out=replace(room, **{column: getattr(room, column).astype(np.float64)}))
    getattr(room, column).flags.writeable = False
    with pytest.raises(ValueError, match=rf"`out\.{column}` is not contiguous or not writeable"):
        graph.rows([1, 2], out=room)


def test_arrays_with_gaps_to_fill_are_refused(graph: Graph) -> None:
    whole = Rows.empty(4, graph.k, graph.sketch_dim)
    every_other = Rows(whole.neighbor_ids[::2], whole.similarities[::2], whole.sketch[::2], whole.sketch_scale[::2])
    with pytest.raises(ValueError, match="not contiguous"):
        graph.rows([1, 2], out=every_other)


def test_shards_are_mapped_and_not_copied(graph_dir: Path) -> None:
    before = pa.total_allocated_bytes()
    graph = Graph.open(graph_dir)
    assert pa.total_allocated_bytes() - before < 1_000
    assert not any(shard.rows.neighbor_ids.flags.owndata for shard in graph._shards)


def test_counts_of_an_open_graph(graph: Graph) -> None:
    assert (graph.n_texts, graph.k, graph.sketch_dim, graph.is_complete) == (230, 17, 16, False)


def test_a_graph_with_every_pair_is_complete(tmp_path: Path) -> None:
    write_graph(tmp_path, VECTORS[:9])
    build_knn(tmp_path, KnnConfig(k="all"))
    assert Graph.open(tmp_path).is_complete


def test_a_graph_of_one_text_without_a_sketch_opens(tmp_path: Path) -> None:
    write_graph(tmp_path, VECTORS[:1])
    build_knn(tmp_path, KnnConfig(sketch_dim=0))
    graph = Graph.open(tmp_path)
    assert (graph.is_complete, graph.rows([0, 0]).sketch.shape, graph.rows([0]).neighbor_ids.shape) == (True, (2, 0), (1, 0))


def test_a_pickled_graph_maps_the_same_files(graph: Graph) -> None:
    packed = pickle.dumps(graph)
    assert len(packed) < 2_000
    again: Graph = pickle.loads(packed)
    np.testing.assert_array_equal(again.rows([7]).similarities, graph.rows([7]).similarities)


def test_embeddings_come_back_as_stored(graph: Graph) -> None:
    np.testing.assert_array_equal(graph.embeddings(), VECTORS)


def test_samples_are_found_in_any_order_and_unknown_ones_are_marked(graph: Graph) -> None:
    found = graph.sample_texts(["image 200.jpg", "no such image", "again", "image 200.jpg", ""])
    assert found.known.tolist() == [True, False, True, True, False]
    assert found.text_ids.tolist() == [200, 0, 200]
    assert found.offsets.tolist() == [0, 1, 1, 2, 3, 3]


def test_a_sample_with_several_captions_has_several_texts_in_order(graph: Graph) -> None:
    found = graph.sample_texts(pa.chunked_array([["both"], ["image 1.jpg"]]))
    assert found.text_ids[: found.offsets[1]].tolist() == [3, 229]


def test_samples_with_one_hash_are_told_apart_by_their_ids(graph_dir: Path, tmp_path: Path) -> None:
    write_graph(tmp_path, VECTORS[:2], samples=[("a", 0), ("b", 1)])
    build_knn(tmp_path, KnnConfig())
    path = tmp_path / "samples/part-00000.parquet"
    table = pq.read_table(path)
    clash = pa.array([table["sample_hash"][0].as_py()] * 2, pa.uint64())
    pq.write_table(table.set_column(1, table.schema.field(1), clash), path)
    manifest = Manifest.load(tmp_path)
    del manifest.stages["lookup"]
    build_lookup(tmp_path, manifest)
    assert Graph.open(tmp_path).sample_texts(["a"]).text_ids.tolist() == [0]


def test_asking_for_no_samples_finds_none(graph: Graph) -> None:
    assert graph.sample_texts([]).offsets.tolist() == [0]


def test_a_kept_column_lies_beside_the_sample_rows(graph: Graph) -> None:
    found = graph.sample_texts(["image 9.jpg", "again"])
    names = graph.sample_column("sample_id").take(pa.array(found.sample_rows))
    assert names.to_pylist() == ["image 9.jpg", "again"]


def test_a_missing_sample_column_names_those_that_exist(graph: Graph) -> None:
    with pytest.raises(SourceError, match=r"'label'.*sample_id, sample_hash, text_id.*--keep-columns"):
        graph.sample_column("label")


def test_a_truncated_shard_is_named(scratch: Path) -> None:
    path = scratch / "knn/part-00001.arrow"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=r"part-00001\.arrow has [\d,]+ bytes, not [\d,]+\. Run `graphbuild knn`"):
        Graph.open(scratch)


def test_a_missing_shard_is_named(scratch: Path) -> None:
    (scratch / "knn/part-00002.arrow").unlink()
    with pytest.raises(ArtifactError, match=r"part-00002\.arrow is missing"):
        Graph.open(scratch)


def test_a_shard_of_the_right_size_with_other_content_is_named(scratch: Path) -> None:
    path = scratch / "knn/part-00000.arrow"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(ArtifactError, match=r"part-00000\.arrow has other bytes than were written"):
        Graph.open(scratch)
    with pytest.raises(ArtifactError, match=r"part-00000\.arrow: cannot be read"):
        Graph.open(scratch, verify=False)


def test_a_graph_without_neighbours_says_what_to_run(tmp_path: Path) -> None:
    write_graph(tmp_path, VECTORS[:9])
    with pytest.raises(ArtifactError, match="Run `graphbuild knn` first"):
        Graph.open(tmp_path)


def test_neighbours_of_other_embeddings_are_refused_and_the_file_is_named(scratch: Path) -> None:
    knn = Manifest.load(scratch).stages["knn"]
    write_graph(scratch, unit_rows(np.random.default_rng(1).standard_normal((60, 24))), shard_size=25)
    manifest = Manifest.load(scratch)
    manifest.stages["knn"] = knn
    manifest.save(scratch)
    with pytest.raises(ArtifactMismatch, match=r"embeddings/part-00000\.parquet:embedding.*graphbuild knn"):
        Graph.open(scratch)


def test_texts_added_after_the_neighbours_are_noticed(scratch: Path) -> None:
    manifest = Manifest.load(scratch)
    embed = manifest.stages["embed"].files
    last = max(embed)
    embed[last.replace("00002", "00003")] = embed[last]
    manifest.save(scratch)
    with pytest.raises(ArtifactMismatch, match="neighbours of 60 texts, but 70 texts are there"):
        Graph.open(scratch)


def test_shards_that_do_not_follow_one_another_are_refused(scratch: Path) -> None:
    manifest = Manifest.load(scratch)
    del manifest.stages["knn"].files["knn/part-00000.arrow"]
    manifest.save(scratch)
    with pytest.raises(ArtifactError, match="starts at text 25"):
        Graph.open(scratch)


def test_an_unreadable_embedding_shard_is_named(scratch: Path) -> None:
    graph = Graph.open(scratch)
    (scratch / schemas.part_name(schemas.EMBEDDINGS, 1)).write_bytes(b"PAR1")
    with pytest.raises(ArtifactError, match=r"embeddings/part-00001\.parquet has 4 bytes"):
        graph.embeddings()
