"""Digests once for each version of a file, bounds whenever it is mapped, and places where the graph cannot be written."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from helpers_embed import embed
from helpers_graph import clustered_vectors, write_graph

import graphbuild
from graphbuild.errors import ArtifactError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.quality.verify import verify_graph
from graphbuild.store import schemas
from graphbuild.store.files import Receipt, write_arrow
from graphbuild.store.graph import Graph
from graphbuild.store.lookup import HASHES, IDS
from graphbuild.store.manifest import Manifest
from graphbuild.store.verified import FILE, require_verified
from graphbuild.targets.chunks import PartitionConfig
from graphbuild.targets.partition import build_partition, load_partition


@pytest.fixture
def graph_dir(tmp_path: Path) -> Path:
    write_graph(tmp_path, clustered_vectors(40, 8), shard_size=25)
    build_knn(tmp_path, KnnConfig(k=5, sketch_dim=4))
    return tmp_path


@pytest.fixture
def receipt(graph_dir: Path) -> Receipt:
    return Manifest.load(graph_dir).stages["knn"].files["knn/part-00000.arrow"]


def flip(path: Path, place: int = 900) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    with path.open("r+b") as stream:
        stream.write(data)


def version(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def test_a_change_that_keeps_size_and_time_is_found_though_the_file_was_right_before(graph_dir: Path, receipt: Receipt) -> None:
    path = graph_dir / receipt.path
    require_verified(graph_dir, [receipt], remedy="Again.", settled=0)
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ArtifactError, match=r"part-00000\.arrow has other bytes than were written.*Again"):
        require_verified(graph_dir, [receipt], remedy="Again.")


def test_a_version_that_was_right_is_not_read_again(graph_dir: Path, receipt: Receipt) -> None:
    require_verified(graph_dir, [receipt], remedy="", settled=0)
    known = json.loads((graph_dir / FILE).read_text())
    assert known == {receipt.path: [receipt.digest, *version(graph_dir / receipt.path)]}
    # Only what is remembered says that this version is right.
    flip(graph_dir / receipt.path)
    (graph_dir / FILE).write_text(json.dumps({receipt.path: [receipt.digest, *version(graph_dir / receipt.path)]}))
    require_verified(graph_dir, [receipt], remedy="")


def test_a_file_that_was_just_written_is_not_remembered(graph_dir: Path, receipt: Receipt) -> None:
    require_verified(graph_dir, [receipt], remedy="", settled=60)
    assert not (graph_dir / FILE).exists()


def test_what_is_remembered_is_found_out_again_where_it_cannot_be_read(graph_dir: Path, receipt: Receipt) -> None:
    (graph_dir / FILE).write_text("[no json")
    require_verified(graph_dir, [receipt], remedy="", settled=0)
    assert json.loads((graph_dir / FILE).read_text())


def test_digests_are_left_out_by_argument_and_by_environment(graph_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(graph_dir / "texts/part-00000.parquet", 20)
    with pytest.raises(ArtifactError, match=r"texts/part-00000\.parquet has other bytes"):
        _ = graphbuild.open(graph_dir).texts
    assert graphbuild.open(graph_dir, verify=False).texts is not None
    monkeypatch.setenv("GRAPHBUILD_VERIFY", "0")
    assert graphbuild.open(graph_dir).texts is not None


def as_column(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    """A column of a type; PyArrow before 21 makes no float16 of Python's numbers."""
    if pa.types.is_fixed_size_list(kind) and pa.types.is_float16(kind.value_type):
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel().astype(np.float16)), type=kind)
    return pa.array(values.tolist(), kind)


def forge(graph_dir: Path, stage: str, name: str, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Change numbers of an Arrow file as a faulty program would: with a receipt that fits."""
    manifest = Manifest.load(graph_dir)
    batch = pa.ipc.open_file(graph_dir / name).get_batch(0)
    numbers = {field.name: np.array(batch[field.name].to_pylist()) for field in batch.schema}
    change(numbers)
    arrays = [as_column(numbers[field.name], field.type) for field in batch.schema]
    forged = pa.RecordBatch.from_arrays(arrays, schema=batch.schema)
    files = manifest.stages[stage].files
    files[name] = write_arrow(graph_dir, name, forged, key=files[name].key)
    manifest.save(graph_dir)


def put(column: str, place: tuple[int, ...], value: int) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda numbers: numbers[column].__setitem__(place, value)


@pytest.mark.parametrize("value", [-1, 40, 2**31 - 1])
def test_a_neighbour_that_is_no_text_is_refused_when_the_shard_is_mapped(graph_dir: Path, value: int) -> None:
    forge(graph_dir, "knn", "knn/part-00001.arrow", put(schemas.NEIGHBOR_IDS, (3, 2), value))
    with pytest.raises(ArtifactError, match=rf"the row of text_id 28 names text {value}, and ids run from 0 to 39"):
        Graph.open(graph_dir, verify=False)


@pytest.mark.parametrize(
    ("name", "column", "value", "said"),
    [
        (HASHES, schemas.SAMPLE_ROW, 40, "names a sample row that is not there"),
        (HASHES, schemas.SAMPLE_ROW, -3, "names a sample row that is not there"),
        (IDS, schemas.TEXT_ID, 40, "names a text that is not there"),
    ],
)
def test_a_look_up_out_of_bounds_is_refused_when_it_is_mapped(
    graph_dir: Path, name: str, column: str, value: int, said: str
) -> None:
    forge(graph_dir, "lookup", name, put(column, (7,), value))
    with pytest.raises(ArtifactError, match=f"{name}: {said}"):
        Graph.open(graph_dir, verify=False).sample_texts(["sample-1-0"])


def test_offsets_of_the_look_up_that_do_not_rise_are_refused(graph_dir: Path) -> None:
    path = graph_dir / IDS
    offsets = pa.ipc.open_file(path).get_batch(0)[schemas.SAMPLE_ID].buffers()[1]
    data = path.read_bytes()
    place = data.index(offsets.to_pybytes()) + 8 * 5 + 1
    path.write_bytes(data[:place] + b"\x01" + data[place + 1 :])
    with pytest.raises(ArtifactError, match=r"offsets do not rise within its bytes|cannot be read"):
        Graph.open(graph_dir, verify=False).sample_texts(["sample-1-0"])


def test_a_chunk_that_there_is_not_is_refused(graph_dir: Path) -> None:
    name = build_partition(graph_dir, PartitionConfig(chunk=8)).path.relative_to(graph_dir).as_posix()
    forge(graph_dir, "partition", name, put(schemas.CHUNK, (3,), 5))
    with pytest.raises(ArtifactError, match="holds a chunk that there is not"):
        load_partition(Graph.open(graph_dir), PartitionConfig(chunk=8))


def test_an_open_graph_outlives_a_change_of_folder_and_so_does_its_pickle(
    graph_dir: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(graph_dir.parent)
    view, graph = graphbuild.open(graph_dir.name), Graph.open(graph_dir.name)
    edges, packed = view.edges, pickle.dumps((view, graph))
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    again, graph_again = pickle.loads(packed)
    assert edges.collect().equals(again.edges.collect())
    assert view.texts.collect().equals(again.texts.collect())
    assert graph.texts().equals(graph_again.texts())
    assert graph.sample_texts(["sample-1-0"]).text_ids.tolist() == graph_again.sample_texts(["sample-1-0"]).text_ids.tolist() == [1]


def test_signs_of_patterns_and_partitions_in_a_folder_are_names(tmp_path: Path) -> None:
    folder = tmp_path / "a[1]" / "year=7"
    write_graph(folder, clustered_vectors(9, 8))
    build_knn(folder, KnnConfig(k=3))
    view = graphbuild.open(folder)
    assert view.texts.collect().columns == ["text_id", "text", "text_hash", "sample_count", "caption_count"]
    assert view.graph.texts().to_pylist()[4] == "text 4"


def test_a_damaged_tokenizer_is_named_before_it_is_used_and_a_damaged_picture_by_verify(tmp_path: Path) -> None:
    embed(tmp_path, None, "scenes", sources=("train=30,val=5",))
    build_knn(tmp_path, KnnConfig(k=3))
    flip(tmp_path / "images/val-00000.parquet")
    with pytest.raises(ArtifactError, match=r"images/val-00000\.parquet has other bytes"):
        verify_graph(tmp_path)
    flip(tmp_path / "tokenizer/hashing.json", 5)
    with pytest.raises(ArtifactError, match=r"tokenizer/hashing\.json has other bytes"):
        _ = Graph.open(tmp_path).tokenizer
