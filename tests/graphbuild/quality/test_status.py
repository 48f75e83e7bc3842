"""`graphbuild status` and `graphbuild doctor`: what is there, what is not, and what comes next."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers_graph import clustered_vectors, write_graph

from graphbuild.cli import cli
from graphbuild.errors import ArtifactError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.quality.doctor import diagnose
from graphbuild.quality.status import graph_status


def states(graph_dir: Path) -> dict[str, str]:
    return {one.stage: one.state for one in graph_status(graph_dir).stages}


def test_missing_stages_are_named_with_the_command_that_builds_the_first_of_them(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(50, 8))
    assert states(tmp_path) == {"text": "done", "lookup": "done", "embed": "done", "index": "missing", "knn": "missing"}
    assert graph_status(tmp_path).next[0].startswith(f"graphbuild embed --graph-dir {tmp_path}")


def test_a_damaged_file_is_named_and_a_changed_input_makes_a_stage_out_of_date(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(50, 8))
    build_knn(tmp_path, KnnConfig(k=5))
    shard = tmp_path / "knn/part-00000.arrow"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    found = {one.stage: one for one in graph_status(tmp_path).stages}["knn"]
    assert (found.state, found.rows) == ("damaged", 50)
    assert f"has {len(content) - 1:,} bytes, not {len(content):,}" in found.detail
    shard.write_bytes(content)
    assert states(tmp_path)["knn"] == "done"
    manifest = json.loads((tmp_path / "graph.json").read_text())
    del manifest["digest"]
    file = next(iter(manifest["stages"]["embed"]["files"].values()))
    file["columns"]["embedding"] = "0" * 64
    knn = manifest["stages"]["knn"]["inputs"]
    assert any(key.endswith(":embedding") for key in knn)
    (tmp_path / "graph.json").write_text(json.dumps(manifest))
    assert states(tmp_path)["knn"] == "out of date"


def test_status_answers_in_json_and_a_folder_without_a_graph_is_one_line(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(20, 8))
    answer = CliRunner().invoke(cli, ["status", "--graph-dir", str(tmp_path), "--json"])
    assert json.loads(answer.output)["stages"][0]["files"] == 3
    with pytest.raises(ArtifactError, match="no graph here"):
        graph_status(tmp_path / "nowhere")


def test_doctor_names_versions_and_tries_the_folder(tmp_path: Path) -> None:
    found = diagnose(tmp_path)
    assert found.problems == ()
    assert found.sections["packages"]["torch"]
    assert found.sections[f"folder {tmp_path}"]["writing, renaming, mapping"] == "works"
    assert not list(tmp_path.iterdir())
    assert "python" in found.summary()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that nobody can write to")
def test_doctor_says_that_a_folder_cannot_be_written() -> None:
    found = diagnose(Path("/proc"))
    assert len(found.problems) == 1
    assert "choose another folder" in found.problems[0]
    assert os.sep in found.problems[0]
