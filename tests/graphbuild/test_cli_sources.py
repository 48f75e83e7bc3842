"""What the command line hands on: vectors, parts, prompts and fusion; and what it says of bad options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from graphbuild.cli import cli
from graphbuild.errors import OptionError
from graphbuild.store.manifest import Manifest


def _run(*arguments: str | Path) -> dict[str, Any]:
    done = CliRunner().invoke(cli, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _captions(tmp_path: Path) -> Path:
    path = tmp_path / "captions.parquet"
    pq.write_table(pa.table({"caption": [f"word{i} of {i % 7}" for i in range(30)]}), path)
    return path


def _vectors(tmp_path: Path, name: str, seed: int) -> Path:
    vectors = np.random.default_rng(seed).standard_normal((30, 8)).astype(np.float32)
    keys = [f"key {i}" for i in range(30)]
    pq.write_table(pa.table({"key": keys, "emb": list(vectors), "other": list(vectors)}), tmp_path / f"{name}.parquet")
    return tmp_path / f"{name}.parquet"


def test_vectors_are_taken_from_the_named_column_with_the_named_ids(tmp_path: Path) -> None:
    source = ("embed", "--dataset", "vectors", "--source", _vectors(tmp_path, "v", 0), "--graph-dir", tmp_path / "g")
    with pytest.raises(Exception, match="choose a column with --vector-column; those of vectors are: emb, other"):
        _run(*source)
    assert _run(*source, "--vector-column", "emb", "--id-column", "key")["counts"]["samples"] == 30
    assert pq.read_table(tmp_path / "g" / "samples" / "part-00000.parquet")["sample_id"][4].as_py() == "key 4"


def test_parts_of_embed_and_knn_and_a_last_call(tmp_path: Path) -> None:
    graph = ("--graph-dir", tmp_path / "g")
    embed = (
        "embed",
        "--dataset",
        "parquet",
        "--source",
        _captions(tmp_path),
        "--encoder",
        "hashing:8",
        "--shard-size",
        "10",
        *graph,
    )
    assert [_run(*embed, "--part", part)["open"] for part in ("1/2", "2/2")] == [1, 0]
    assert _run(*embed)["built"] == ["embed", "index"]
    assert [_run("knn", "--k", "3", *graph, "--part", part)["written"] for part in ("2/2", "1/2")] == [1, 2]
    assert _run("knn", "--k", "3", *graph)["reused_shards"] == 3
    with pytest.raises(OptionError, match="parts of 2 run from 1/2 to 2/2"):
        _run("knn", *graph, "--part", "3/2")


def test_prompt_and_width_reach_the_encoder(tmp_path: Path) -> None:
    asked = ("--prompt", "query: ", "--truncate-dim", "32", "--precision", "float32")
    _run("embed", "--dataset", "parquet", "--source", _captions(tmp_path), *asked, "--graph-dir", tmp_path / "g")
    encoder = Manifest.load(tmp_path / "g").encoder
    assert (encoder["prompt"], encoder["truncate_dim"], encoder["dim"]) == ("query: ", 32, 32)


def test_graphs_are_fused_with_the_weights_given(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        columns = ("--vector-column", "emb", "--id-column", "key")
        _run("embed", "--dataset", "vectors", "--source", _vectors(tmp_path, name, seed), *columns, "--graph-dir", tmp_path / name)
    fuse = ("fuse", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "f")
    assert _run(*fuse, "--weights", "3,1")["weights"] == [0.75, 0.25]
    refused = CliRunner().invoke(cli, [*map(str, fuse), "--weights", "3,one"])
    assert (refused.exit_code, "are no numbers, separated by commas" in refused.stderr) == (2, True)
