"""Samples by id: the mapped look-up against a dictionary, and text hashes that must agree wherever files are joined."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from helpers_embed import embed, numbered_captions, write_captions
from helpers_graph import clustered_vectors, write_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from graphbuild.errors import ArtifactError, ArtifactMismatch
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.store.embeddings import load_embeddings
from graphbuild.store.graph import Graph
from graphbuild.store.lookup import SampleLookup, build_lookup
from graphbuild.store.manifest import Manifest

SAMPLES = [("", 0), ("é", 1), ("ab", 2), ("a", 3), ("b", 4), ("ab", 5), ("\x00", 6), ("ab\x00", 7), ("a", 3)]


@pytest.fixture(scope="module")
def graph_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lookup")
    write_graph(folder, clustered_vectors(8, 8), samples=SAMPLES, shard_size=3)
    return folder


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), st.sampled_from([sample_id for sample_id, _ in SAMPLES]), st.text("ab\x00", max_size=3))))
def test_look_up_equals_a_dictionary(graph_dir: Path, asked: list[str | None]) -> None:
    found = SampleLookup(graph_dir, Manifest.load(graph_dir)).find(pa.array(asked, pa.string()))
    rows = [[row for row, (known, _) in enumerate(SAMPLES) if known == sample_id] for sample_id in asked]
    assert [part.tolist() for part in np.split(found.sample_rows, found.offsets[1:-1])][: len(rows)] == rows
    assert found.text_ids.tolist() == [SAMPLES[row][1] for some in rows for row in some]


def test_an_id_is_not_taken_for_another_of_its_hash(graph_dir: Path) -> None:
    lookup = SampleLookup(graph_dir, Manifest.load(graph_dir))
    stored = np.array([xxhash.xxh3_64_intdigest(b"b")] * 2, np.uint64)
    assert lookup.find(["b", "x"], stored).known.tolist() == [True, False]


def test_look_up_of_a_slice_of_ids_finds_these(graph_dir: Path) -> None:
    asked = pa.array(["nobody", "b", "ab", "é"]).slice(1, 2)
    assert SampleLookup(graph_dir, Manifest.load(graph_dir)).find(asked).text_ids.tolist() == [4, 2, 5]


def test_damaged_look_up_is_rebuilt_to_the_same_bytes_and_nothing_else_is(tmp_path: Path) -> None:
    source = write_captions(tmp_path / "a.parquet", {"caption": numbered_captions(50)})
    embed(tmp_path / "g", source)
    files = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "g").rglob("*.parquet")}
    before = {path: path.read_bytes() for path in (tmp_path / "g/lookup").glob("*.arrow")}
    (tmp_path / "g/lookup/ids.arrow").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"ids\.arrow has 1 bytes.*graphbuild embed"):
        SampleLookup(tmp_path / "g", Manifest.load(tmp_path / "g"))
    assert embed(tmp_path / "g", source).built == ("lookup",)
    assert {path: path.read_bytes() for path in (tmp_path / "g/lookup").glob("*.arrow")} == before
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "g").rglob("*.parquet")} == files


def test_look_up_of_other_samples_is_refused(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(8, 8))
    build_knn(tmp_path, KnnConfig(k=3))
    manifest = Manifest.load(tmp_path)
    manifest.stages["lookup"].inputs["samples/part-00000.parquet:sample_id"] = "0" * 32
    manifest.save(tmp_path)
    with pytest.raises(ArtifactMismatch, match=r"lookup: made from other samples.*graphbuild embed"):
        Graph.open(tmp_path).sample_texts(["a"])
    assert build_lookup(tmp_path, manifest)
    assert Graph.open(tmp_path).sample_texts(["sample-3-0"]).text_ids.tolist() == [3]


def test_embeddings_of_other_texts_stop_every_join_with_file_and_row(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(60, 8), shard_size=25)
    build_knn(tmp_path, KnnConfig(k=3))
    path = tmp_path / "texts/part-00001.parquet"
    table = pq.read_table(path)
    hashes = table["text_hash"].to_pylist()
    hashes[4] = 1
    pq.write_table(table.set_column(2, table.schema.field(2), pa.array(hashes, pa.uint64())), path)
    expected = r"embeddings/part-00001\.parquet: row 4 \(text_id 29\) is the embedding of another text .*1 of 25 rows"
    with pytest.raises(ArtifactMismatch, match=expected):
        Graph.open(tmp_path).embeddings()
    with pytest.raises(ArtifactMismatch, match=expected):
        load_embeddings(tmp_path)
    with pytest.raises(ArtifactMismatch, match=expected):
        build_knn(tmp_path, KnnConfig(k=4, overwrite=True))
