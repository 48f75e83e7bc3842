"""What stages share: one writer, folders of others left alone, the old layout taken over, and nothing lost between two commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from helpers_embed import embed, numbered_captions, shard_digests, write_captions
from helpers_graph import clustered_vectors, file_times, to_old_layout, write_graph

from graphbuild.errors import ArtifactMismatch, OptionError, SourceError
from graphbuild.exchange.imported import ImportConfig, import_graph
from graphbuild.exchange.subset import SubsetConfig, subset_graph
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.quality.verify import verify_graph
from graphbuild.store.files import RECORDS, receipt_path, write_parquet
from graphbuild.store.locks import LockedError
from graphbuild.store.manifest import Manifest, Stage
from graphbuild.store.stage import run_stage, writing
from graphbuild.targets.chunks import PartitionConfig
from graphbuild.targets.partition import build_partition

HOLD = """
import sys; from pathlib import Path; from graphbuild.store.stage import writing
with writing(Path(sys.argv[1])):
    print("held", flush=True); sys.stdin.read()
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_captions(tmp_path / "a.parquet", {"caption": numbered_captions(25)})


def test_second_writer_is_refused_and_told_who_is_at_work(tmp_path: Path, source: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "g")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LockedError, match=rf"\(process {holder.pid} on .*since .*\) is at work here\. Wait"):
            embed(tmp_path / "g", source)
        holder.kill()
    embed(tmp_path / "g", source)


def test_save_onto_a_newer_generation_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(20, 8))
    one, other = Manifest.load(tmp_path), Manifest.load(tmp_path)
    one.counts["mine"] = 1
    one.save(tmp_path)
    with pytest.raises(ArtifactMismatch, match=r"another command changed it meanwhile.*run this command again"):
        other.save(tmp_path)
    assert Manifest.load(tmp_path).counts["mine"] == 1


@pytest.mark.parametrize("command", ["embed", "import", "subset"])
def test_folder_of_others_is_refused_and_keeps_every_file(tmp_path: Path, source: Path, command: str) -> None:
    theirs = tmp_path / "data"
    for name in ("texts/part-00000.parquet", "tokenizer/vocab.txt", "knn/notes.txt"):
        (theirs / name).parent.mkdir(parents=True)
        (theirs / name).write_text("mine")
    before = file_times(theirs)
    (tmp_path / "keep.txt").write_text("a.parquet:1\n")
    if command == "subset":
        embed(tmp_path / "g", source)
    calls = {
        "embed": lambda: embed(theirs, source),
        "import": lambda: import_graph(theirs, ImportConfig(texts=source, edges=source)),
        "subset": lambda: subset_graph(tmp_path / "g", theirs, SubsetConfig(keep=tmp_path / "keep.txt")),
    }
    with pytest.raises(OptionError, match=r"data: is neither a graph nor empty \(it holds knn and 2 more\)"):
        calls[command]()
    assert file_times(theirs) == before
    assert not (theirs / RECORDS).exists()


def test_files_that_no_receipt_lists_outlive_every_command(tmp_path: Path, source: Path) -> None:
    graph_dir = tmp_path / "g"
    embed(graph_dir, source, shard_size=5)
    build_knn(graph_dir, KnnConfig(k=3))
    names = (
        "texts/part-00009.parquet",
        "knn/notes.txt",
        "knn/mine/x.arrow",
        "embeddings/.cache.tmp",
        "tokenizer/mine.txt",
        "README.md",
    )
    for name in names:
        (graph_dir / name).parent.mkdir(exist_ok=True)
        (graph_dir / name).write_text("mine")
    embed(graph_dir, source, shard_size=20, overwrite=True)
    build_knn(graph_dir, KnnConfig(k=2, overwrite=True))
    assert {name: (graph_dir / name).read_text() for name in names} == dict.fromkeys(names, "mine")
    assert sorted(path.name for path in (graph_dir / "knn").glob("part-*")) == ["part-00000.arrow", "part-00001.arrow"]


def test_file_of_others_in_the_way_of_a_shard_is_not_replaced(tmp_path: Path, source: Path) -> None:
    embed(tmp_path / "g", source)
    (tmp_path / "g/knn").mkdir()
    (tmp_path / "g/knn/part-00000.arrow").write_text("mine")
    with pytest.raises(OptionError, match=r"part-00000\.arrow: is in the way"):
        build_knn(tmp_path / "g", KnnConfig(k=3))
    assert (tmp_path / "g/knn/part-00000.arrow").read_text() == "mine"


def test_links_are_not_followed_when_strays_are_removed(tmp_path: Path, source: Path) -> None:
    graph_dir, elsewhere = tmp_path / "g", tmp_path / "elsewhere"
    embed(graph_dir, source, shard_size=5)
    elsewhere.mkdir()
    (elsewhere / "part-00004.arrow").write_text("theirs")
    build_knn(graph_dir, KnnConfig(k=3))
    shutil.rmtree(graph_dir / "knn")
    (graph_dir / "knn").symlink_to(elsewhere)
    embed(graph_dir, source, shard_size=20, overwrite=True)
    build_knn(graph_dir, KnnConfig(k=2, overwrite=True))
    assert (elsewhere / "part-00004.arrow").read_text() == "theirs"


def test_failed_first_command_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        embed(tmp_path / "g/deep", tmp_path / "nothing.parquet")
    assert not (tmp_path / "g/deep").exists()


def test_folders_of_data_hold_only_data(tmp_path: Path, source: Path) -> None:
    embed(tmp_path / "g", source, shard_size=10)
    assert pq.read_table(tmp_path / "g/texts").num_rows == 25
    assert pl.scan_parquet(tmp_path / "g/embeddings").collect().height == 25
    assert {path.suffix for path in (tmp_path / "g").glob("*/part-*")} == {".parquet"}


def test_graph_of_the_old_layout_opens_is_taken_over_and_goes_on(tmp_path: Path, source: Path) -> None:
    graph_dir = tmp_path / "g"
    embed(graph_dir, source, shard_size=10)
    build_knn(graph_dir, KnnConfig(k=3))
    build_partition(graph_dir, PartitionConfig(chunk=4))
    digests = shard_digests(graph_dir)
    to_old_layout(graph_dir)
    verify_graph(graph_dir)
    # As if an old program had been killed: the last shard is not there, and its receipt neither.
    for name in ("embeddings/part-00002.parquet", "embeddings/part-00002.parquet.json"):
        (graph_dir / name).unlink()
    stamps = file_times(graph_dir)
    assert embed(graph_dir, source, shard_size=10).built == ("embed",)
    assert shard_digests(graph_dir) == digests
    changed = [name for name in digests if (graph_dir / name).stat().st_mtime_ns != stamps.get(graph_dir / name)]
    assert changed == ["embeddings/part-00002.parquet"]
    assert build_knn(graph_dir, KnnConfig(k=3)).already_done
    assert build_partition(graph_dir, PartitionConfig(chunk=4)).already_done
    assert not [path for path in graph_dir.glob("*/*.json") if path.parent.name not in ("tokenizer", RECORDS)]
    assert json.loads((graph_dir / "graph.json").read_text())["format"] == 2
    verify_graph(graph_dir)


def test_first_stage_that_an_old_program_left_half_done_is_recognised(tmp_path: Path, source: Path) -> None:
    graph_dir = tmp_path / "g"
    embed(graph_dir, source, shard_size=10)
    digests = shard_digests(graph_dir)
    to_old_layout(graph_dir)
    (graph_dir / "graph.json").unlink()
    stamp = (graph_dir / "texts/part-00000.parquet").stat().st_mtime_ns
    embed(graph_dir, source, shard_size=10)
    assert shard_digests(graph_dir) == digests
    assert (graph_dir / "texts/part-00000.parquet").stat().st_mtime_ns == stamp


def test_lost_records_are_written_again_from_the_manifest(tmp_path: Path, source: Path) -> None:
    embed(tmp_path / "g", source, shard_size=10)
    shutil.rmtree(tmp_path / "g" / RECORDS)
    (tmp_path / "g/embeddings/part-00001.parquet").unlink()
    before = file_times(tmp_path / "g")
    embed(tmp_path / "g", source, shard_size=10)
    assert (
        before[tmp_path / "g/embeddings/part-00000.parquet"]
        == file_times(tmp_path / "g")[tmp_path / "g/embeddings/part-00000.parquet"]
    )


def test_missing_tokenizer_is_made_again(tmp_path: Path, source: Path) -> None:
    embed(tmp_path / "g", source)
    shutil.rmtree(tmp_path / "g/tokenizer")
    embed(tmp_path / "g", source)
    assert (tmp_path / "g/tokenizer/hashing.json").exists()


def test_partition_that_was_finished_but_not_entered_is_entered(tmp_path: Path, source: Path) -> None:
    graph_dir = tmp_path / "g"
    embed(graph_dir, source)
    build_knn(graph_dir, KnnConfig(k=5))
    build_partition(graph_dir, PartitionConfig(chunk=4))
    manifest = Manifest.load(graph_dir)
    del manifest.stages["partition"]
    manifest.save(graph_dir)
    assert build_partition(graph_dir, PartitionConfig(chunk=4)).already_done
    assert len(Manifest.load(graph_dir).stages["partition"].files) == 1


def test_knn_after_an_append_in_between_keeps_the_append(tmp_path: Path, source: Path) -> None:
    more = write_captions(tmp_path / "b.parquet", {"caption": ["one more kite"]})
    embed(tmp_path / "g", source)
    stale = Manifest.load(tmp_path / "g")
    embed(tmp_path / "g", more, append=True)
    stale.stages["knn"] = Stage(config={}, inputs={}, seconds=0, files={})
    with pytest.raises(ArtifactMismatch):
        stale.save(tmp_path / "g")
    assert Manifest.load(tmp_path / "g").counts["captions"] == 26


def test_seconds_of_a_stage_are_those_of_its_own_work(tmp_path: Path) -> None:
    manifest = write_graph(tmp_path, clustered_vectors(20, 8))
    assert manifest.stages["lookup"].seconds < 60
    with writing(tmp_path) as held:
        assert not run_stage(tmp_path, held, "lookup", {}, held.stages["lookup"].inputs, pytest.fail, overwrite=False)


def test_receipt_stands_before_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa

    def killed(self: Path, target: Path) -> Path:
        if target.suffix == ".parquet":
            raise InterruptedError
        os.replace(self, target)  # noqa: PTH105 - this is Path.replace
        return target

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(InterruptedError):
        write_parquet(tmp_path, "texts/part-00000.parquet", pa.table({"a": [1]}), key="k")
    assert receipt_path(tmp_path, "texts/part-00000.parquet").exists()
    assert not (tmp_path / "texts/part-00000.parquet").exists()
