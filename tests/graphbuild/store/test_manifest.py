"""The manifest: what is done, from what, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from graphbuild.errors import ArtifactError, ArtifactMismatch, OptionError, UserError
from graphbuild.store import files as shards
from graphbuild.store.manifest import Manifest, Stage, find_graph_dir, up_to_date

CONFIG = {"k": 256, "templates": ("a photo of a {}",)}
INPUTS = {"a": "1"}


@pytest.fixture
def built(tmp_path: Path) -> Manifest:
    table = pa.table({"text_id": pa.array([0], pa.int32())})
    receipt = shards.write_parquet(tmp_path, "texts/part-00000.parquet", table, key="k")
    manifest = Manifest(counts={"texts": 1})
    for name in ("text", "embed", "knn"):
        manifest.stages[name] = Stage(config=dict(CONFIG), inputs=dict(INPUTS), seconds=0.5, files={receipt.path: receipt})
    manifest.save(tmp_path)
    return Manifest.load(tmp_path)


def test_saved_manifest_loads_as_it_was(built: Manifest, tmp_path: Path) -> None:
    built.save(tmp_path)
    assert Manifest.load(tmp_path) == built


def test_a_manifest_that_claims_other_than_was_written_is_refused(built: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    path.write_text(path.read_text().replace('"texts": 1', '"texts": 3'))
    with pytest.raises(ArtifactError, match=r"graph\.json: has other content than was written"):
        Manifest.load(tmp_path)


def test_equal_options_are_up_to_date_and_tuples_equal_lists(built: Manifest, tmp_path: Path) -> None:
    assert up_to_date(built, tmp_path, "knn", CONFIG, INPUTS, overwrite=False)


def test_other_options_are_refused_with_the_difference_named(built: Manifest, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"k: 256 -> 128.*--overwrite"):
        up_to_date(built, tmp_path, "knn", {**CONFIG, "k": 128}, INPUTS, overwrite=False)
    assert not up_to_date(built, tmp_path, "knn", {**CONFIG, "k": 128}, INPUTS, overwrite=True)


def test_other_inputs_are_refused_with_the_difference_named(built: Manifest, tmp_path: Path) -> None:
    with pytest.raises(ArtifactMismatch, match=r"a: 1 -> 2"):
        up_to_date(built, tmp_path, "knn", CONFIG, {"a": "2"}, overwrite=False)


def test_missing_file_means_not_up_to_date(built: Manifest, tmp_path: Path) -> None:
    (tmp_path / "texts/part-00000.parquet").unlink()
    assert not up_to_date(built, tmp_path, "knn", CONFIG, INPUTS, overwrite=False)


def test_dropping_a_stage_drops_the_later_ones(built: Manifest) -> None:
    built.drop("embed")
    assert set(built.stages) == {"text"}


def test_column_digests_cover_only_the_columns_asked_for(built: Manifest) -> None:
    assert set(built.column_digests("text", ["text_id"])) == {"texts/part-00000.parquet:text_id"}
    assert built.column_digests("text", ["url"]) == {}


def test_unfinished_stage_names_its_command(built: Manifest, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="graphbuild embed"):
        built.require("index", tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', '{"format": 1, "stages": 3}', "[" * 100_000])
def test_broken_manifest_is_one_clear_error(content: str, tmp_path: Path) -> None:
    (tmp_path / "graph.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"graph\.json"):
        Manifest.load(tmp_path)


def test_manifest_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "graph.json").write_text('{"format": 99, "stages": {}}')
    with pytest.raises(ArtifactMismatch, match="format 99"):
        Manifest.load(tmp_path)


def test_graph_dir_is_the_given_one_then_the_variable_then_the_only_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRAPHBUILD_DIR", raising=False)
    with pytest.raises(UserError, match="no graph under graphs/"):
        find_graph_dir(None)
    Manifest().save(tmp_path / "graphs/a")
    assert find_graph_dir(None) == Path("graphs/a")
    Manifest().save(tmp_path / "graphs/b")
    with pytest.raises(UserError, match="graphs/a, graphs/b"):
        find_graph_dir(None)
    monkeypatch.setenv("GRAPHBUILD_DIR", "elsewhere")
    assert find_graph_dir(None) == Path("elsewhere")
    assert find_graph_dir(Path("given")) == Path("given")


def test_files_and_column_digests_of_a_folder_leave_out_folders_that_only_begin_alike() -> None:
    def receipt(path: str) -> shards.Receipt:
        return shards.Receipt(path=path, digest="d", rows=1, bytes=1, key="k", columns={"a": path, "b": "other"})

    names = ("texts/part-00001.parquet", "texts/part-00000.parquet", "texts-old/part-00000.parquet", "samples/part-00000.parquet")
    manifest = Manifest(stages={"text": Stage(config={}, inputs={}, seconds=0, files={name: receipt(name) for name in names})})
    assert [one.path for one in manifest.files("text", "texts")] == [names[1], names[0]]
    assert manifest.column_digests("text", ["a"], folder="samples") == {f"{names[3]}:a": names[3]}
    assert len(manifest.column_digests("text", ["a"])) == len(names)
