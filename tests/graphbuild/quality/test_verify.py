"""`verify` finds what was broken on purpose, and names the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from helpers_graph import clustered_vectors, write_graph

import graphbuild
from graphbuild.cli import cli
from graphbuild.errors import ArtifactError, ArtifactMismatch
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.quality.verify import verify_graph
from graphbuild.store import schemas
from graphbuild.store.files import write_arrow, write_parquet
from graphbuild.store.manifest import Manifest


@pytest.fixture
def graph_dir(tmp_path: Path) -> Path:
    write_graph(tmp_path, clustered_vectors(300, 16), shard_size=100, sample_counts=[1 + i % 3 for i in range(300)])
    build_knn(tmp_path, KnnConfig(k=10, sketch_dim=8))
    return tmp_path


def forge_knn(graph_dir: Path, shard: int, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Change a neighbour shard as a faulty search would: with a receipt that fits."""
    manifest = Manifest.load(graph_dir)
    name = schemas.part_name(schemas.KNN, shard)
    batch = pa.ipc.open_file(graph_dir / name).get_batch(0)
    columns = {f: np.stack(batch.column(f).to_numpy(zero_copy_only=False)) for f in batch.schema.names}
    change(columns)
    arrays = [
        pa.FixedSizeListArray.from_arrays(pa.array(columns[f.name].reshape(-1)), type=f.type)
        if columns[f.name].ndim == 2
        else pa.array(columns[f.name])
        for f in batch.schema
    ]
    forged = pa.RecordBatch.from_arrays(arrays, schema=batch.schema)
    manifest.stages["knn"].files[name] = write_arrow(graph_dir, name, forged, key=manifest.stages["knn"].files[name].key)
    manifest.save(graph_dir)


def forge_parquet(graph_dir: Path, stage: str, folder: str, shard: int, column: str, row: int, value: int) -> None:
    manifest = Manifest.load(graph_dir)
    name = schemas.part_name(folder, shard)
    table = pq.read_table(graph_dir / name)
    values = table[column].to_pylist()
    values[row] = value
    table = table.set_column(table.column_names.index(column), table.schema.field(column), pa.array(values, table[column].type))
    manifest.stages[stage].files[name] = write_parquet(graph_dir, name, table, key=manifest.stages[stage].files[name].key)
    manifest.stages["knn"].inputs = {}
    manifest.save(graph_dir)


def test_sound_graph_has_recall_one_on_all_rows(graph_dir: Path) -> None:
    quality = verify_graph(graph_dir).quality
    assert quality is not None
    assert (quality.rows, quality.recall, quality.inexact) == (300, 1.0, 0)


def test_graph_without_neighbours_is_verified_and_says_so(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(30, 8))
    assert "knn stage is not there" in verify_graph(tmp_path).summary()


def test_graph_of_one_text_is_verified(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(1, 8))
    build_knn(tmp_path, KnnConfig())
    assert verify_graph(tmp_path).quality is None


@pytest.mark.parametrize("name", ["knn/part-00001.arrow", "embeddings/part-00002.parquet", "samples/part-00000.parquet"])
def test_flipped_byte_is_found_and_the_file_named(graph_dir: Path, name: str) -> None:
    data = bytearray((graph_dir / name).read_bytes())
    data[len(data) // 2] ^= 1
    (graph_dir / name).write_bytes(data)
    with pytest.raises(ArtifactError, match=f"{name} has other bytes than were written"):
        verify_graph(graph_dir)


def test_truncated_shard_is_found_and_both_sizes_named(graph_dir: Path) -> None:
    path = graph_dir / "knn/part-00001.arrow"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match=rf"part-00001.arrow has 1,000 bytes, not {size:,}.*graphbuild knn"):
        verify_graph(graph_dir)


def test_missing_file_is_found(graph_dir: Path) -> None:
    (graph_dir / "counts/part-00001.parquet").unlink()
    with pytest.raises(ArtifactError, match=r"counts/part-00001.parquet is missing"):
        verify_graph(graph_dir)


def test_command_exits_1_and_names_the_damaged_file(graph_dir: Path) -> None:
    (graph_dir / "knn/part-00001.arrow").write_bytes(b"")
    outcome = CliRunner().invoke(cli, ["verify", "--graph-dir", str(graph_dir)])
    assert outcome.exit_code == 1
    assert "part-00001.arrow" in str(outcome.exception)


def test_embeddings_of_another_data_set_are_found_by_their_hashes(graph_dir: Path) -> None:
    forge_parquet(graph_dir, "embed", schemas.EMBEDDINGS, 1, schemas.TEXT_HASH, 7, 12345)
    with pytest.raises(ArtifactMismatch, match=r"embeddings/part-00001.parquet: row 7 \(text_id 107\).*another text"):
        verify_graph(graph_dir)


def test_neighbours_of_another_encoder_are_found(graph_dir: Path) -> None:
    write_graph(graph_dir / "other", clustered_vectors(300, 16, seed=1), shard_size=100)
    knn = Manifest.load(graph_dir).stages["knn"]
    manifest = Manifest.load(graph_dir / "other")
    manifest.stages["knn"] = knn
    manifest.save(graph_dir / "other")
    (graph_dir / "knn").rename(graph_dir / "other/knn")
    with pytest.raises(ArtifactMismatch, match=r"computed from another embeddings/part-00000.parquet"):
        verify_graph(graph_dir / "other")


def test_id_out_of_place_is_found(graph_dir: Path) -> None:
    forge_parquet(graph_dir, "text", schemas.TEXTS, 2, schemas.TEXT_ID, 5, 9)
    with pytest.raises(ArtifactError, match=r"texts/part-00002.parquet: row 5 has text_id 9, not 205"):
        verify_graph(graph_dir)


def test_sample_of_no_text_is_found(graph_dir: Path) -> None:
    forge_parquet(graph_dir, "text", schemas.SAMPLES, 0, schemas.TEXT_ID, 3, 300)
    with pytest.raises(ArtifactError, match=r"samples/part-00000.parquet: row 3 has text_id 300, but there are 300"):
        verify_graph(graph_dir)


def test_counts_that_do_not_add_up_are_found(graph_dir: Path) -> None:
    forge_parquet(graph_dir, "text", schemas.COUNTS, 0, schemas.SAMPLE_COUNT, 4, 9)
    with pytest.raises(ArtifactMismatch, match=r"counts/part-00000.parquet: row 4 has sample_count 9 of text_id 4, but .* gives 2"):
        verify_graph(graph_dir)


def test_a_graph_that_counts_only_captions_is_read_and_verified(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(3, 8), samples=[("a", 0), ("a", 0), ("a", 1), ("b", 2)])
    name = schemas.part_name(schemas.COUNTS, 0)
    table = pa.table({schemas.TEXT_ID: pa.array([0, 1, 2], pa.int32()), schemas.SAMPLE_COUNT: pa.array([2, 1, 1], pa.int32())})
    manifest = Manifest.load(tmp_path)
    manifest.stages["text"].files[name] = write_parquet(tmp_path, name, table, key=manifest.stages["text"].files[name].key)
    manifest.save(tmp_path)
    verify_graph(tmp_path)
    counted = graphbuild.open(tmp_path).texts.select(schemas.SAMPLE_COUNT, schemas.CAPTION_COUNT).collect()
    assert counted.rows() == [(2, 2), (1, 1), (1, 1)]


def _swap_order(columns: dict[str, np.ndarray]) -> None:
    for name in (schemas.NEIGHBOR_IDS, schemas.SIMILARITIES):
        columns[name][3] = columns[name][3][::-1]


def _put_self(columns: dict[str, np.ndarray]) -> None:
    columns[schemas.NEIGHBOR_IDS][3, 0] = columns[schemas.TEXT_ID][3]


def _repeat(columns: dict[str, np.ndarray]) -> None:
    columns[schemas.NEIGHBOR_IDS][3, 1] = columns[schemas.NEIGHBOR_IDS][3, 0]


def _leave_range(columns: dict[str, np.ndarray]) -> None:
    columns[schemas.NEIGHBOR_IDS][3, 0] = 300


def _lengthen_sketch(columns: dict[str, np.ndarray]) -> None:
    columns[schemas.SKETCH_SCALE][3] *= 9


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_swap_order, "is not ordered"),
        (_put_self, "holds itself"),
        (_repeat, "holds a neighbour twice"),
        (_leave_range, "names text 300"),
        (_lengthen_sketch, "sketch longer"),
    ],
)
def test_row_that_breaks_an_invariant_is_found(graph_dir: Path, change: Callable[..., None], said: str) -> None:
    forge_knn(graph_dir, 1, change)
    with pytest.raises(ArtifactError, match=f"knn/part-00001.arrow: the row of text_id 103 .*{said}"):
        verify_graph(graph_dir)


def test_pair_with_two_similarities_is_found(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(30, 8))
    build_knn(tmp_path, KnnConfig())

    def nudge(columns: dict[str, np.ndarray]) -> None:
        columns[schemas.SIMILARITIES][4, 0] += np.float16(0.01)

    forge_knn(tmp_path, 0, nudge)
    with pytest.raises(ArtifactError, match=r"texts \d+ and \d+ store different similarities"):
        verify_graph(tmp_path)


def test_similarity_that_is_off_is_found(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(300, 16))
    build_knn(tmp_path, KnnConfig(k=10))

    def lower_all(columns: dict[str, np.ndarray]) -> None:
        columns[schemas.SIMILARITIES] -= np.float16(0.125)

    forge_knn(tmp_path, 0, lower_all)
    with pytest.raises(ArtifactError, match=r"over one float16 step off"):
        verify_graph(tmp_path)


def test_neighbour_that_is_not_the_nearest_is_found(tmp_path: Path) -> None:
    vectors = clustered_vectors(300, 16)
    write_graph(tmp_path, vectors)
    build_knn(tmp_path, KnnConfig(k=10))

    def take_a_stranger(columns: dict[str, np.ndarray]) -> None:
        scores = vectors.astype(np.float64) @ vectors[8].astype(np.float64)
        columns[schemas.NEIGHBOR_IDS][8, -1] = scores.argmin()
        columns[schemas.SIMILARITIES][8, -1] = scores.min()

    forge_knn(tmp_path, 0, take_a_stranger)
    with pytest.raises(ArtifactError, match=r"the neighbours of text_id 8 are not the nearest \(recall 0.99"):
        verify_graph(tmp_path)
