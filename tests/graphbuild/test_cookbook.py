"""Every snippet of the cookbook runs, in order, in one session, on a small graph with labels; and answers are checked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers_graph import clustered_vectors, write_graph

from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.store.files import write_parquet
from graphbuild.store.graph import Graph
from graphbuild.store.manifest import Manifest

COOKBOOK = (Path(__file__).resolve().parents[2] / "docs/cookbook.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```", COOKBOOK, flags=re.MULTILINE | re.DOTALL)
N, K = 120, 12


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Names that are there after the last snippet, and what each printed."""
    root = tmp_path_factory.mktemp("cookbook")
    folder = root / "graphs/captions"
    vectors = clustered_vectors(N, 16, clusters=5)
    vectors[1] = vectors[0]
    texts = ["a dog on a beach", *(f"caption {i}" for i in range(1, N))]
    write_graph(folder, vectors, texts=texts, samples=[(f"picture-{i // 3}", i) for i in range(N)] + [("again", 5)])
    manifest, name = Manifest.load(folder), "samples/part-00000.parquet"
    labels = pa.array([["cat", "dog", "cow"][i % 3] for i in range(N + 1)])
    table = pq.read_table(folder / name).append_column("label", labels)
    manifest.stages["text"].files[name] = write_parquet(folder, name, table, key="test")
    manifest.save(folder)
    build_knn(folder, KnnConfig(k=K))
    names: dict[str, Any] = {"folder": folder}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setitem(names, "print", lambda *values: names.setdefault("printed", []).append(values))
        for number, snippet in enumerate(SNIPPETS):
            exec(compile(snippet, f"cookbook snippet {number}", "exec"), names)
    return names


def answers(session: dict[str, Any]) -> list[Any]:
    return [values[0] for values in session["printed"]]


def test_there_are_a_dozen_questions_and_each_has_a_snippet() -> None:
    assert len(SNIPPETS) == COOKBOOK.count("\n## ") + 1 >= 13


def test_every_snippet_runs_and_prints_an_answer(session: dict[str, Any]) -> None:
    assert len(session["printed"]) >= len(SNIPPETS) - 2


def test_hubs_and_mutual_edges_equal_a_count_by_numpy(session: dict[str, Any]) -> None:
    ids = Graph.open(session["folder"]).rows(np.arange(N)).neighbor_ids
    degrees = np.bincount(ids.reshape(-1), minlength=N)
    assert answers(session)[1]["in_degree"].to_list() == sorted(degrees.tolist(), reverse=True)[:10]
    pairs = {(i, int(j)) for i in range(N) for j in ids[i]}
    assert session["mutual"] == sum((j, i) in pairs for i, j in pairs)


def test_the_twins_are_the_nearest_pair(session: dict[str, Any]) -> None:
    table = next(answer for answer in answers(session) if isinstance(answer, pl.DataFrame) and "text_b" in answer.columns)
    assert table.row(0)[:2] == (0, 1)


def test_no_line_of_the_cookbook_reads_a_whole_table_of_edges_into_memory() -> None:
    for snippet in SNIPPETS:
        for line in snippet.splitlines():
            assert not re.search(r"\bedges\.collect\(", line), line


def test_similarity_by_rank_falls(session: dict[str, Any]) -> None:
    table = next(
        answer for answer in answers(session) if isinstance(answer, pl.DataFrame) and answer.columns == ["rank", "similarity"]
    )
    assert table["rank"].to_list() == list(range(1, K + 1))
    assert table["similarity"].is_sorted(descending=True)
