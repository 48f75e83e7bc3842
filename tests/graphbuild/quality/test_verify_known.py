"""Graphs without vectors, and rescored pairs, are compared with what they were made of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from helpers_graph import clustered_vectors, write_graph

from graphbuild.cli import cli
from graphbuild.errors import ArtifactError
from graphbuild.exchange.fused import fuse_graphs
from graphbuild.exchange.fusion import FuseConfig
from graphbuild.exchange.known import known_similarity
from graphbuild.exchange.relate.config import RelateConfig
from graphbuild.exchange.relate.stage import relate_columns
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.quality.verify import VerifyResult, verify_graph
from graphbuild.store import schemas
from graphbuild.store.files import write_arrow
from graphbuild.store.manifest import Manifest

COUNT = 80


def _related(folder: Path, *kernels: str, k: int = 6) -> Path:
    rng = np.random.default_rng(0)
    columns = {
        "key": [f"k{i}" for i in range(COUNT)],
        "year": rng.permutation(COUNT),
        "title": [f"title {i}" for i in range(COUNT)],
    }
    pq.write_table(pa.table(columns), folder / "rows.parquet")
    config = RelateConfig(sources=(str(folder / "rows.parquet"),), kernels=kernels or ("year=number:5",), id_column="key", k=k)
    relate_columns(folder / "metadata", config)
    return folder / "metadata"


def _vectors(folder: Path) -> Path:
    samples = [(f"k{i}", i) for i in range(COUNT)]
    write_graph(folder / "vectors", clustered_vectors(COUNT, 12), samples=samples, shard_size=50)
    build_knn(folder / "vectors", KnnConfig(k=COUNT - 1))
    return folder / "vectors"


def _verify(graph_dir: Path) -> VerifyResult:
    return verify_graph(graph_dir, known=known_similarity)


def _change(graph_dir: Path, stage: str, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Write the first shard of a stage anew, with receipt and manifest as if it had been made so."""
    manifest = Manifest.load(graph_dir)
    receipt = manifest.stages[stage].in_folder(None)[0]
    batch = pa.ipc.open_file(graph_dir / receipt.path).get_batch(0)
    lists = [name for name in batch.schema.names if pa.types.is_fixed_size_list(batch.schema.field(name).type)]
    held = {name: batch.column(name).flatten().to_numpy().reshape(batch.num_rows, -1).copy() for name in lists}
    change(held)
    columns = [
        pa.FixedSizeListArray.from_arrays(pa.array(held[name].reshape(-1)), type=batch.schema.field(name).type)
        if name in held
        else batch.column(name)
        for name in batch.schema.names
    ]
    changed = pa.RecordBatch.from_arrays(columns, schema=batch.schema)
    manifest.stages[stage].files[receipt.path] = write_arrow(graph_dir, receipt.path, changed, key=receipt.key, facts=receipt.facts)
    manifest.save(graph_dir)


def _farther(held: dict[str, np.ndarray]) -> None:
    """The last neighbour of a row is a text that is far away, with the similarity that it has."""
    own = set(held[schemas.NEIGHBOR_IDS][0].tolist())
    held[schemas.NEIGHBOR_IDS][0, -1] = next(one for one in range(COUNT - 1, 0, -1) if one not in own)
    held[schemas.SIMILARITIES][0, -1] = 0.0


@pytest.mark.parametrize("kernels", [("year=number:5",), ("year=number:5", "title=text:hashing:16")])
def test_graph_of_metadata_is_compared_with_its_kernels(tmp_path: Path, kernels: tuple[str, ...]) -> None:
    quality = _verify(_related(tmp_path, *kernels)).quality
    assert quality is not None
    assert (quality.recall, quality.inexact, quality.rows) == (1, 0, COUNT)
    assert quality.sketch_error is not None
    assert quality.sketch_error["50%"] < 0.05


def test_command_line_says_recall_of_a_graph_of_metadata(tmp_path: Path) -> None:
    arguments = ["verify", "--graph-dir", str(_related(tmp_path)), "--exact-sample", "20"]
    said = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert f"recall against a float64 brute force on {COUNT} rows: 1.000000" in said.stdout


def test_neighbour_that_is_not_the_nearest_by_the_kernels_is_found(tmp_path: Path) -> None:
    graph_dir = _related(tmp_path)
    _change(graph_dir, "knn", _farther)
    with pytest.raises(ArtifactError, match=r"the neighbours of text_id 0 are not the nearest.* Run `graphbuild relate` again"):
        _verify(graph_dir)


def test_damaged_file_of_a_graph_of_metadata_names_the_command_that_made_it(tmp_path: Path) -> None:
    graph_dir = _related(tmp_path)
    for folder in ("knn", "texts"):
        path = next((graph_dir / folder).glob("part-*"))
        held = path.read_bytes()
        path.write_bytes(held[:-1])
        with pytest.raises(ArtifactError, match=r"has [\d,]+ bytes, not [\d,]+\. Run `graphbuild relate` again"):
            _verify(graph_dir)
        _related(tmp_path)
        assert path.read_bytes() == held


def test_similarity_that_is_not_the_kernels_is_found(tmp_path: Path) -> None:
    graph_dir = _related(tmp_path)

    def nudge(held: dict[str, np.ndarray]) -> None:
        held[schemas.SIMILARITIES][3, 0] += np.float16(0.01)

    _change(graph_dir, "knn", nudge)
    with pytest.raises(ArtifactError, match=r"over one float16 step off \(text_id 3 among them\)|store different similarities"):
        _verify(graph_dir)


def test_taxonomy_that_is_gone_is_said_and_is_no_fault(tmp_path: Path) -> None:
    tree = tmp_path / "tree.tsv"
    tree.write_text("".join(f"title {i}\tgroup {i % 4}\n" for i in range(COUNT)))
    graph_dir = _related(tmp_path, f"title=taxonomy:{tree}")
    tree.unlink()
    result = _verify(graph_dir)
    assert result.quality is None
    assert "recall: not measured, for " in result.summary()
    assert "tree.tsv" in result.summary()


@pytest.mark.parametrize("rule", ["max", "product"])
def test_fused_graph_is_compared_with_the_graphs_that_it_is_of(tmp_path: Path, rule: Any) -> None:
    fuse_graphs([_vectors(tmp_path), _related(tmp_path)], tmp_path / "both", FuseConfig(rule=rule, k=5))
    quality = _verify(tmp_path / "both").quality
    assert quality is not None
    assert (quality.recall, quality.inexact) == (1, 0)
    _change(tmp_path / "both", "knn", _farther)
    with pytest.raises(ArtifactError, match=r"the neighbours of text_id 0 are not the nearest|over one float16 step off"):
        _verify(tmp_path / "both")


def test_graph_whose_sources_are_gone_or_others_is_not_compared(tmp_path: Path) -> None:
    fuse_graphs([_vectors(tmp_path), _related(tmp_path)], tmp_path / "both", FuseConfig(rule="max", k=5))
    shutil.rmtree(tmp_path / "metadata")
    assert "metadata, of which it was fused, is not there any more" in (_verify(tmp_path / "both").unmeasured or "")
    _related(tmp_path, k=4)
    assert "have changed since they were fused" in (_verify(tmp_path / "both").unmeasured or "")


def test_imported_edges_are_the_nearest_of_nothing(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a", "b"], "text": ["a", "b"]}), tmp_path / "texts.parquet")
    pq.write_table(pa.table({"src": ["a"], "dst": ["b"], "similarity": [0.5]}), tmp_path / "edges.parquet")
    arguments = ["import", "--texts", str(tmp_path / "texts.parquet"), "--edges", str(tmp_path / "edges.parquet"), "--symmetric"]
    CliRunner().invoke(cli, [*arguments, "--graph-dir", str(tmp_path / "g")], catch_exceptions=False)
    said = CliRunner().invoke(cli, ["verify", "--graph-dir", str(tmp_path / "g"), "--json"], catch_exceptions=False)
    assert json.loads(said.stdout)["quality"] is None
    assert json.loads(said.stdout)["unmeasured"] is None
