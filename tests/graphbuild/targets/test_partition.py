"""Chunks of neighbours: every sample once, balanced, few of one text, the same bytes again."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from helpers_forked import run_program
from helpers_graph import clustered_vectors, write_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from graphbuild.errors import OptionError, ResourceError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.store.graph import Graph
from graphbuild.store.manifest import Manifest
from graphbuild.targets.chunks import PartitionConfig, chunk_samples, parse_ranks
from graphbuild.targets.partition import build_partition, load_partition

TEXTS = 400


def build(folder: Path, *, texts: int = TEXTS, k: int = 20, samples: list[tuple[str, int]] | None = None) -> Graph:
    write_graph(folder, clustered_vectors(texts, 16), samples=samples, shard_size=128)
    build_knn(folder, KnnConfig(k=k, sketch_dim=8))
    return Graph.open(folder)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return build(tmp_path_factory.mktemp("graph"))


def random_samples(rng: np.random.Generator, count: int, texts: int, most: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Samples of 1 to `most` texts, of which the first ones are common."""
    counts = rng.integers(1, most + 1, count)
    drawn = np.minimum(rng.geometric(min(1.0, 6 / texts), counts.sum()) - 1, texts - 1)
    return np.concatenate([[0], np.cumsum(counts)]), drawn.astype(np.int32)


def texts_of(offsets: NDArray[np.int64], text_ids: NDArray[np.int32], sample: int) -> set[int]:
    return set(text_ids[offsets[sample] : offsets[sample + 1]].tolist())


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 300), chunk=st.integers(1, 40), most=st.integers(1, 4))
def test_each_sample_is_in_one_of_equal_chunks(graph: Graph, seed: int, count: int, chunk: int, most: int) -> None:
    offsets, text_ids = random_samples(np.random.default_rng(seed), count, TEXTS, most)
    chunks, facts = chunk_samples(graph, offsets, text_ids, PartitionConfig(chunk=chunk, seed=seed))
    sizes = np.bincount(chunks)
    assert sizes.sum() == count
    assert (sizes[:-1] == chunk).all()
    assert len(sizes) == facts["chunks"] == -(-count // chunk)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 300), chunk=st.integers(1, 40), most=st.integers(1, 4))
def test_samples_beyond_two_of_a_text_in_a_chunk_are_those_that_are_counted(
    graph: Graph, seed: int, count: int, chunk: int, most: int
) -> None:
    offsets, text_ids = random_samples(np.random.default_rng(seed), count, TEXTS, most)
    chunks, facts = chunk_samples(graph, offsets, text_ids, PartitionConfig(chunk=chunk))
    crowded = 0
    for number in range(facts["chunks"]):
        held: dict[int, int] = {}
        for sample in np.flatnonzero(chunks == number):
            for text in texts_of(offsets, text_ids, int(sample)):
                held[text] = held.get(text, 0) + 1
        crowded += any(value > 2 for value in held.values())
    assert (crowded == 0) == (facts["beyond_two_of_a_text"] == 0)


def test_no_chunk_of_a_graph_of_classes_holds_three_of_a_class(graph: Graph) -> None:
    classes = np.repeat(np.arange(TEXTS, dtype=np.int32), 30)
    offsets = np.arange(len(classes) + 1)
    chunks, facts = chunk_samples(graph, offsets, classes, PartitionConfig(chunk=32))
    assert facts["beyond_two_of_a_text"] == 0
    assert np.unique(chunks.astype(np.int64) * TEXTS + classes, return_counts=True)[1].max() == 2


def test_a_text_that_most_samples_have_is_counted_and_not_dropped(graph: Graph) -> None:
    text_ids = np.concatenate([np.zeros(80, np.int32), np.arange(1, 21, dtype=np.int32)])
    chunks, facts = chunk_samples(graph, np.arange(101), text_ids, PartitionConfig(chunk=10))
    assert np.bincount(chunks).tolist() == [10] * 10
    assert facts["beyond_two_of_a_text"] >= 80 - 2 * 10


def test_the_same_caption_twice_is_one_text_of_its_sample(graph: Graph) -> None:
    text_ids = np.repeat(np.arange(40, dtype=np.int32), 3)
    chunks, facts = chunk_samples(graph, np.arange(0, 121, 3), text_ids, PartitionConfig(chunk=8))
    assert facts["beyond_two_of_a_text"] == 0
    assert np.bincount(chunks).tolist() == [8] * 5


def slow_neighbors(graph: Graph, chunks: NDArray[np.int32], offsets: NDArray[np.int64], text_ids: NDArray[np.int32]) -> float:
    """Stored neighbours per anchor in its chunk, over all draws of one text a sample, pair by pair."""
    rows = [set(row) for row in graph.rows(np.arange(graph.n_texts)).neighbor_ids.tolist()]
    texts = [text_ids[offsets[i] : offsets[i + 1]].tolist() for i in range(len(chunks))]
    total = 0.0
    for i in range(len(chunks)):
        for j in np.flatnonzero(chunks == chunks[i]).tolist():
            if i != j:
                total += sum(b in rows[a] for a in texts[i] for b in texts[j]) / (len(texts[i]) * len(texts[j]))
    return total / len(chunks)


@pytest.mark.parametrize("most", [1, 3])
def test_neighbours_inside_chunks_equal_a_count_over_pairs(graph: Graph, most: int) -> None:
    offsets, text_ids = random_samples(np.random.default_rng(most), 200, TEXTS, most)
    chunks, facts = chunk_samples(graph, offsets, text_ids, PartitionConfig(chunk=16))
    assert facts["neighbors_per_anchor"] == pytest.approx(slow_neighbors(graph, chunks, offsets, text_ids), abs=1e-4)


def test_chunks_hold_many_times_the_neighbours_of_random_ones(graph: Graph) -> None:
    result = build_partition(graph.path, PartitionConfig(chunk=16))
    # Of 15 others in a chunk.
    assert result.facts["neighbors_per_anchor"] > 7
    assert result.facts["neighbors_per_anchor_random"] == pytest.approx(15 * 20 / 399, abs=1e-6)


def test_only_the_ranks_asked_for_are_followed(graph: Graph) -> None:
    offsets, text_ids = np.arange(TEXTS + 1), np.arange(TEXTS, dtype=np.int32)
    rows = graph.rows(text_ids).neighbor_ids

    def hits(ranks: str, first: int, last: int) -> int:
        chunks, _ = chunk_samples(graph, offsets, text_ids, PartitionConfig(chunk=8, neighbor_ranks=ranks))
        return int((chunks[rows[:, first:last]] == chunks[:, None]).sum())

    assert hits("1:4", 0, 4) > hits("11:20", 0, 4)
    assert hits("11:20", 10, 20) > hits("1:4", 10, 20)


def test_partitions_are_the_same_bytes_again_and_another_seed_gives_others(graph: Graph, tmp_path: Path) -> None:
    one = build_partition(graph.path, PartitionConfig(chunk=8))
    again = build_partition(build(tmp_path / "again").path, PartitionConfig(chunk=8))
    assert one.path.read_bytes() == again.path.read_bytes()
    offsets, text_ids = np.arange(TEXTS + 1), np.arange(TEXTS, dtype=np.int32)
    seeded = [chunk_samples(graph, offsets, text_ids, PartitionConfig(chunk=8, seed=seed))[0] for seed in (0, 1)]
    assert (seeded[0] != seeded[1]).any()


def test_captions_of_one_sample_are_found_wherever_their_rows_stand(tmp_path: Path) -> None:
    samples = [(f"s{i % 50}", (7 * i) % 60) for i in range(150)]
    graph = build(tmp_path, texts=60, k=10, samples=samples)
    partition = load_partition(graph, PartitionConfig(chunk=8))
    assert partition.sample_rows.tolist() == list(range(50))
    assert np.bincount(partition.chunks).tolist() == [8] * 6 + [2]
    assert partition.of_rows(np.array([3, 50, 149])).tolist() == [partition.chunks[3], -1, -1]


def test_partition_enters_the_manifest_with_options_inputs_and_facts(graph: Graph) -> None:
    for chunk in (8, 16):
        build_partition(graph.path, PartitionConfig(chunk=chunk))
    stage = Manifest.load(graph.path).stages["partition"]
    assert {fields["chunk"] for fields in stage.config.values()} >= {8, 16}
    assert set(stage.config) == set(stage.files) == set(stage.facts)
    assert "knn/part-00000.arrow:neighbor_ids" in stage.inputs
    assert "samples/part-00000.parquet:text_id" in stage.inputs


def test_partition_that_is_there_is_not_made_again_and_a_damaged_one_is(graph: Graph) -> None:
    config = PartitionConfig(chunk=8)
    path = build_partition(graph.path, config).path
    before, written = path.read_bytes(), path.stat().st_mtime_ns
    assert build_partition(graph.path, config).already_done
    assert path.stat().st_mtime_ns == written
    path.write_bytes(before[:-9] + b"x" + before[-8:])
    assert not build_partition(graph.path, config).already_done
    assert path.read_bytes() == before


def test_partition_of_an_earlier_graph_is_made_again(tmp_path: Path) -> None:
    graph = build(tmp_path)
    build_partition(graph.path, PartitionConfig(chunk=8))
    build_knn(graph.path, KnnConfig(k=10, sketch_dim=8, overwrite=True))
    assert "partition" not in Manifest.load(graph.path).stages
    assert not build_partition(graph.path, PartitionConfig(chunk=8, neighbor_ranks="1:10")).already_done


KILLED = """
import os, signal, sys
from pathlib import Path
from graphbuild.targets import partition
from graphbuild.targets.partition import PartitionConfig, build_partition
partition._enter = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
build_partition(Path(sys.argv[1]), PartitionConfig(chunk=8))
"""


def test_partition_killed_before_the_manifest_is_entered_from_its_receipt(tmp_path: Path) -> None:
    graph = build(tmp_path, texts=60, k=10)
    died = run_program(KILLED, graph.path)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert "partition" not in Manifest.load(graph.path).stages
    partition = load_partition(Graph.open(graph.path), PartitionConfig(chunk=8))
    assert len(partition.chunks) == 60


def test_partition_needs_no_right_to_write_once_it_is_there(tmp_path: Path) -> None:
    graph = build(tmp_path, texts=60, k=10)
    build_partition(graph.path, PartitionConfig(chunk=8))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    load_partition(Graph.open(graph.path), PartitionConfig(chunk=8))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("text", ["64", "0:64", "9:8", "1:", "a:b", "1:64:2"])
def test_what_is_no_range_of_ranks_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match=r"--neighbor-ranks .* as in 1:64"):
        parse_ranks(text)


def test_ranks_beyond_the_graph_are_refused_with_its_k(graph: Graph) -> None:
    with pytest.raises(OptionError, match="stores 20 neighbours a text"):
        build_partition(graph.path, PartitionConfig(neighbor_ranks="21:40"))


def test_too_little_memory_is_one_error_with_both_sizes(graph: Graph) -> None:
    with pytest.raises(ResourceError, match=r"takes about .* GB, and the limit is 0\.0 GB"):
        build_partition(graph.path, PartitionConfig(chunk=13, memory_limit="1kB"))


def test_file_is_what_the_schema_says(graph: Graph) -> None:
    table = pa.ipc.open_file(build_partition(graph.path, PartitionConfig(chunk=8)).path).read_all()
    assert [(field.name, str(field.type)) for field in table.schema] == [("sample_row", "int64"), ("chunk", "int32")]
