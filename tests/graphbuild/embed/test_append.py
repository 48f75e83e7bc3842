"""`embed --append`: only new texts are embedded, ids and shards stay, and any interruption ends in the same bytes."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow as pa
import pytest
from helpers_embed import column, embed, graphbuild, numbered_captions, shard_digests, write_captions
from helpers_forked import running
from helpers_graph import file_times

from graphbuild.embed.config import EmbedResult
from graphbuild.errors import ArtifactError, ArtifactMismatch, OptionError, SourceError
from graphbuild.quality.verify import verify_graph
from graphbuild.store.files import damage
from graphbuild.store.lookup import SampleLookup
from graphbuild.store.manifest import Manifest

OLD, NEW = numbered_captions(47), numbered_captions(80)[30:]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return write_captions(tmp_path / "old.parquet", {"caption": OLD})


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return write_captions(tmp_path / "new.parquet", {"caption": NEW})


@pytest.fixture
def graph_dir(tmp_path: Path, old: Path) -> Path:
    embed(tmp_path / "g", old, shard_size=10)
    return tmp_path / "g"


def append(graph_dir: Path, source: Path, **options: object) -> EmbedResult:
    return embed(graph_dir, source, append=True, shard_size=10, **options)


def test_ids_stay_and_new_texts_come_after_them(graph_dir: Path, new: Path) -> None:
    append(graph_dir, new)
    assert column(graph_dir, "texts", "text") == numbered_captions(80)
    assert column(graph_dir, "samples", "text_id") == [*range(47), *range(30, 80)]
    assert column(graph_dir, "counts", "sample_count") == [1] * 30 + [2] * 17 + [1] * 33
    counts = Manifest.load(graph_dir).counts
    assert (counts["samples"], counts["captions"], counts["texts"], counts["duplicate_captions"]) == (97, 97, 80, 17)
    assert verify_graph(graph_dir).texts == 80


def test_new_texts_open_new_shards_and_old_ones_are_not_touched(graph_dir: Path, new: Path) -> None:
    stay = [path for folder in ("texts", "embeddings", "samples") for path in (graph_dir / folder).glob("*.parquet")]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in stay}
    append(graph_dir, new)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in stay} == before
    ranges = Manifest.load(graph_dir).ranges("embed", "embeddings")
    assert [len(shard) for shard in ranges] == [10, 10, 10, 10, 7, 10, 10, 10, 3]


def test_samples_of_both_sources_are_found_by_id(graph_dir: Path, new: Path) -> None:
    append(graph_dir, new)
    found = SampleLookup(graph_dir, Manifest.load(graph_dir)).find(["new.parquet:49", "old.parquet:3", "new.parquet:0"])
    assert found.text_ids.tolist() == [79, 3, 30]


def test_second_append_of_a_source_does_nothing_under_whatever_name(graph_dir: Path, tmp_path: Path, new: Path) -> None:
    append(graph_dir, new)
    before = file_times(graph_dir)
    copy = tmp_path / "copy.parquet"
    copy.write_bytes(new.read_bytes())
    for source in (new, copy):
        assert append(graph_dir, source).built == ()
    assert file_times(graph_dir) == before


def test_known_files_of_a_folder_are_left_out(graph_dir: Path, tmp_path: Path, old: Path, new: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in (old, new):
        (folder / path.name).write_bytes(path.read_bytes())
    append(graph_dir, folder)
    append_alone = tmp_path / "alone"
    embed(append_alone, old, shard_size=10)
    append(append_alone, new)
    assert shard_digests(graph_dir) == shard_digests(append_alone)


def test_appending_equals_reading_all_sources_cut_at_the_same_files(graph_dir: Path, tmp_path: Path, old: Path, new: Path) -> None:
    more = write_captions(tmp_path / "more.parquet", {"caption": [*numbered_captions(95)[70:], None, "  "]})
    append(graph_dir, new)
    append(graph_dir, more)
    before = shard_digests(graph_dir)
    for name in (
        "texts/part-00006.parquet",
        "samples/part-00002.parquet",
        "embeddings/part-00008.parquet",
        "counts/part-00000.parquet",
    ):
        (graph_dir / name).unlink()
    embed(graph_dir, None, sources=(str(old), str(new), str(more)), shard_size=10)
    assert shard_digests(graph_dir) == before
    assert Manifest.load(graph_dir).counts["blank_captions"] == 1
    (graph_dir / "texts/part-00006.parquet").unlink()
    with pytest.raises(
        SourceError, match=r"in the order in which they came to the graph: old\.parquet, new\.parquet, more\.parquet"
    ):
        embed(graph_dir, None, sources=(str(new), str(old), str(more)), shard_size=10)


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"encoder": "hashing:8"}, "encoder: hashing:16 -> hashing:8"),
        ({"replacements": ("dog=cat",)}, "replacements"),
        ({"multi_caption": True}, "multi_caption: False -> True"),
        ({"id_column": "caption"}, "id_column: none -> caption"),
    ],
)
def test_other_options_are_refused_with_the_difference(
    graph_dir: Path, new: Path, options: dict[str, object], difference: str
) -> None:
    with pytest.raises(OptionError, match=difference):
        append(graph_dir, new, **options)


def test_other_content_under_a_known_name_is_refused(graph_dir: Path, old: Path) -> None:
    write_captions(old, {"caption": NEW})
    with pytest.raises(SourceError, match=r"old\.parquet: the graph has a file of this name already, with other content"):
        append(graph_dir, old)


def test_kept_column_of_another_type_is_refused(tmp_path: Path) -> None:
    one = write_captions(tmp_path / "one.parquet", {"caption": ["a"], "label": [1]})
    two = write_captions(tmp_path / "two.parquet", {"caption": ["b"], "label": pa.array(["x"])})
    embed(tmp_path / "g", one, keep_columns=("label",))
    with pytest.raises(SourceError, match="--keep-columns label: holds string here, but int64 in the graph"):
        embed(tmp_path / "g", two, keep_columns=("label",), append=True)


def test_sample_id_that_the_graph_has_is_refused_with_its_place(tmp_path: Path) -> None:
    one = write_captions(tmp_path / "one.parquet", {"caption": ["a", "b"], "file": ["1", "2"]})
    two = write_captions(tmp_path / "two.parquet", {"caption": ["c", "d"], "file": ["3", "2"]})
    embed(tmp_path / "g", one, id_column="file")
    with pytest.raises(SourceError, match=r"sample id '2', at two\.parquet:1, is in the graph already"):
        embed(tmp_path / "g", two, id_column="file", append=True)


def test_class_of_a_name_that_the_graph_has_is_refused(tmp_path: Path) -> None:
    one = write_captions(tmp_path / "one.parquet", {"caption": ["crane"], "wnid": ["n1"]})
    two = write_captions(tmp_path / "two.parquet", {"caption": ["Crane"], "wnid": ["n2"]})
    options = {"keep_columns": ("wnid",), "templates": ("a photo of a {}",)}
    embed(tmp_path / "g", one, **options)
    with pytest.raises(SourceError, match="two classes of one name: wnid n1 is 'crane', and wnid n2 is 'Crane'"):
        embed(tmp_path / "g", two, append=True, **options)


def test_text_that_its_hash_is_not_of_stops_with_file_and_row(graph_dir: Path, new: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphbuild.embed.hashing import HashingEncoder

    honest = HashingEncoder.tokenize
    monkeypatch.setattr(HashingEncoder, "tokenize", lambda self, texts: honest(self, [t.replace("number 23", "x") for t in texts]))
    with pytest.raises(ArtifactMismatch, match=r"texts/part-00002\.parquet: row 3 \(text_id 23\) is not the text"):
        append(graph_dir, new)


def test_nothing_to_append_to_and_contradictions_are_one_line(tmp_path: Path, graph_dir: Path, new: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no graph to append to\. Leave out --append"):
        append(tmp_path / "none", new)
    arguments = ["--dataset", "parquet", "--source", new, "--encoder", "hashing:16", "--graph-dir", graph_dir, "--append"]
    answer = graphbuild("embed", *arguments, "--overwrite")
    assert (answer.returncode, answer.stderr.count("\n")) == (1, 1)
    assert "give one of them" in answer.stderr


SLOW_MAIN = """
import time
from graphbuild.embed import hashing; from graphbuild.store import files as shards
write = shards.write_json
def slow(path, value):
    time.sleep(0.05)
    write(path, value)
shards.write_json = slow
from graphbuild.cli import main
main()
"""


@pytest.mark.parametrize(
    "after",
    [
        "counts/part-00003.parquet",
        pytest.param("texts/part-00006.parquet", marks=pytest.mark.faults),
        pytest.param("embeddings/part-00006.parquet", marks=pytest.mark.faults),
    ],
)
def test_killed_append_ends_in_the_same_bytes(tmp_path: Path, graph_dir: Path, old: Path, new: Path, after: str) -> None:
    embed(tmp_path / "whole", old, shard_size=10)
    append(tmp_path / "whole", new)
    options = ["--dataset", "parquet", "--source", new, "--encoder", "hashing:16", "--shard-size", "10", "--workers", "0"]
    command = ["embed", *options, "--append", "--graph-dir", graph_dir]
    seen = (graph_dir / after).stat().st_mtime_ns if (graph_dir / after).exists() else None
    with running(SLOW_MAIN, *command, said=tmp_path / "said") as process:
        deadline = time.monotonic() + 60
        while not (graph_dir / after).exists() or (graph_dir / after).stat().st_mtime_ns == seen:
            assert process.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.002)
    append(graph_dir, new)
    assert shard_digests(graph_dir) == shard_digests(tmp_path / "whole")
    manifest = Manifest.load(graph_dir)
    assert not [name for stage in manifest.stages.values() for name in stage.files if damage(graph_dir, stage.files[name])]
