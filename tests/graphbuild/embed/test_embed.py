"""The embed command as a whole: stages, resuming, refusals, and failures of the machine."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers_embed import column, embed, graphbuild, numbered_captions, shard_digests, write_captions
from helpers_forked import running
from helpers_graph import file_times

from graphbuild.embed.build import default_graph_dir
from graphbuild.embed.config import EmbedConfig
from graphbuild.embed.hashing import HashingEncoder
from graphbuild.errors import ArtifactMismatch, OptionError, SourceError
from graphbuild.store.embeddings import load_embeddings
from graphbuild.store.manifest import Manifest, Stage


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_captions(tmp_path / "captions.parquet", {"caption": numbered_captions(100)})


def test_embeddings_are_unit_vectors_of_their_texts_in_float16(tmp_path: Path, source: Path) -> None:
    embed(tmp_path / "g", source, shard_size=30)
    encoder = HashingEncoder(16)
    expected = encoder.encode(encoder.tokenize(numbered_captions(100))[0]).astype(np.float16)
    assert np.array_equal(load_embeddings(tmp_path / "g"), expected)
    assert column(tmp_path / "g", "embeddings", "text_hash") == column(tmp_path / "g", "texts", "text_hash")


def test_several_templates_are_averaged_then_normalised(tmp_path: Path) -> None:
    path = write_captions(tmp_path / "a.parquet", {"name": ["dog", "cat"]})
    embed(tmp_path / "g", path, templates=("a photo of a {}", "a drawing of a {}"))
    encoder = HashingEncoder(16)
    vectors = [
        encoder.encode(encoder.tokenize([f"a {kind} of a {name}" for kind in ("photo", "drawing")])[0]) for name in ("dog", "cat")
    ]
    mean = np.stack([pair.astype(np.float64).mean(axis=0) for pair in vectors])
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    assert np.allclose(load_embeddings(tmp_path / "g").astype(np.float64), mean, atol=1e-3)
    assert column(tmp_path / "g", "texts", "text") == ["a photo of a dog", "a photo of a cat"]


def test_second_run_with_equal_options_does_nothing(tmp_path: Path, source: Path) -> None:
    embed(tmp_path / "g", source)
    before = file_times(tmp_path / "g")
    result = embed(tmp_path / "g", source)
    assert result.built == ()
    assert file_times(tmp_path / "g") == before


def test_other_options_are_refused_with_the_difference(tmp_path: Path, source: Path) -> None:
    embed(tmp_path / "g", source)
    with pytest.raises(OptionError, match="shard_size: 65536 -> 10"):
        embed(tmp_path / "g", source, shard_size=10)
    with pytest.raises(OptionError, match="hashing:16 -> hashing:8"):
        embed(tmp_path / "g", source, encoder="hashing:8")


def test_changed_source_is_refused_by_name(tmp_path: Path, source: Path) -> None:
    embed(tmp_path / "g", source)
    write_captions(source, {"caption": ["something else"]})
    with pytest.raises(ArtifactMismatch, match=r"captions\.parquet"):
        embed(tmp_path / "g", source)


def test_other_data_set_is_refused(tmp_path: Path, source: Path) -> None:
    embed(tmp_path / "g", source)
    with pytest.raises(OptionError, match="'parquet', not 'imagenet'"):
        embed(tmp_path / "g", None, "imagenet")


def test_overwrite_replaces_everything_and_leaves_no_old_shard(tmp_path: Path, source: Path) -> None:
    embed(tmp_path / "g", source, shard_size=10)
    smaller = write_captions(tmp_path / "captions.parquet", {"caption": numbered_captions(15)})
    embed(tmp_path / "g", smaller, shard_size=10, encoder="hashing:8", overwrite=True)
    embed(tmp_path / "h", smaller, shard_size=10, encoder="hashing:8")
    assert shard_digests(tmp_path / "g") == shard_digests(tmp_path / "h")


def test_overwrite_drops_neighbours_of_older_embeddings(tmp_path: Path, source: Path) -> None:
    embed(tmp_path / "g", source)
    manifest = Manifest.load(tmp_path / "g")
    manifest.stages["knn"] = Stage(config={}, inputs={}, seconds=0, files={})
    manifest.save(tmp_path / "g")
    embed(tmp_path / "g", source)
    assert "knn" in Manifest.load(tmp_path / "g").stages
    embed(tmp_path / "g", source, encoder="hashing:8", overwrite=True)
    assert "knn" not in Manifest.load(tmp_path / "g").stages


@pytest.mark.parametrize("name", ["embeddings/part-00001.parquet", "texts/part-00002.parquet", "samples/part-00000.parquet"])
@pytest.mark.parametrize("harm", ["truncated", "missing", "altered"])
def test_harmed_shard_is_rebuilt_alone_to_the_same_bytes(tmp_path: Path, source: Path, name: str, harm: str) -> None:
    graph_dir = tmp_path / "g"
    embed(graph_dir, source, shard_size=30)
    before = shard_digests(graph_dir)
    times = {path: (graph_dir / path).stat().st_mtime_ns for path in before}
    content = (graph_dir / name).read_bytes()
    (graph_dir / name).unlink()
    if harm == "truncated":
        (graph_dir / name).write_bytes(content[:100])
    elif harm == "altered":
        (graph_dir / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    embed(graph_dir, source, shard_size=30)
    assert shard_digests(graph_dir) == before
    assert [path for path in before if (graph_dir / path).stat().st_mtime_ns != times[path]] == [name]


def test_same_bytes_for_any_number_of_workers_and_shards_come_from_two_processes(tmp_path: Path, source: Path) -> None:
    embed(tmp_path / "one", source, shard_size=10)
    embed(tmp_path / "two", source, shard_size=10, workers=2)
    assert shard_digests(tmp_path / "one") == shard_digests(tmp_path / "two")
    pids = {receipt.facts["pid"] for receipt in Manifest.load(tmp_path / "two").stages["embed"].files.values()}
    assert len(pids) == 2
    assert os.getpid() not in pids


SLOW_MAIN = """
import time
from graphbuild.embed import hashing
encode = hashing.HashingEncoder.encode
def slow(self, tokens, report=lambda _: None):
    time.sleep(0.3)
    return encode(self, tokens, report)
hashing.HashingEncoder.encode = slow
from graphbuild.cli import main
main()
"""


def test_killed_embed_resumes_to_the_same_bytes(tmp_path: Path, source: Path) -> None:
    embed(tmp_path / "whole", source, shard_size=10)
    graph_dir = tmp_path / "killed"
    options = ["--dataset", "parquet", "--source", source, "--encoder", "hashing:16", "--shard-size", "10", "--workers", "0"]
    with running(SLOW_MAIN, "embed", *options, "--graph-dir", graph_dir, said=tmp_path / "said") as process:
        deadline = time.monotonic() + 60
        while len(list(graph_dir.glob("embeddings/*.parquet"))) < 3:
            assert process.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.01)
    kept = {path: path.stat().st_mtime_ns for path in graph_dir.glob("embeddings/part-*.parquet")}
    assert 3 <= len(kept) < 10
    assert "embed" not in Manifest.load(graph_dir).stages
    embed(graph_dir, source, shard_size=10)
    assert shard_digests(graph_dir) == shard_digests(tmp_path / "whole")
    assert sum(path.stat().st_mtime_ns == stamp for path, stamp in kept.items()) >= 3
    assert not list(graph_dir.rglob("*.tmp"))


FULL_DISK_MAIN = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
from graphbuild.cli import main
main()
"""


def test_full_disk_is_one_line_and_the_next_run_goes_on(tmp_path: Path) -> None:
    source = write_captions(tmp_path / "captions.parquet", {"caption": numbered_captions(2_000)})
    options = [
        "--dataset",
        "parquet",
        "--source",
        source,
        "--encoder",
        "hashing:64",
        "--workers",
        "0",
        "--graph-dir",
        tmp_path / "g",
    ]
    full = graphbuild("embed", *options, code=FULL_DISK_MAIN)
    assert full.returncode == 1
    assert full.stderr.count("\n") == 1
    assert "file-size limit" in full.stderr
    assert graphbuild("embed", *options).returncode == 0
    assert len(load_embeddings(tmp_path / "g")) == 2_000


@pytest.mark.faults
def test_full_disk_in_a_worker_is_one_line(tmp_path: Path) -> None:
    source = write_captions(tmp_path / "captions.parquet", {"caption": numbered_captions(2_000)})
    options = ["--dataset", "parquet", "--source", source, "--encoder", "hashing:64", "--shard-size", "1000"]
    full = graphbuild("embed", *options, "--graph-dir", tmp_path / "g", code=FULL_DISK_MAIN)
    assert (full.returncode, full.stderr.count("\n")) == (1, 1)
    assert "file-size limit" in full.stderr


def test_bad_source_is_one_line_on_stderr_with_exit_code_1(tmp_path: Path) -> None:
    answer = graphbuild("embed", "--dataset", "parquet", "--source", "no.parquet", cwd=tmp_path)
    assert (answer.returncode, answer.stdout, answer.stderr.count("\n")) == (1, "", 1)
    assert answer.stderr.startswith("error: no.parquet: no such file")


def test_json_answer_holds_counts_and_encoder(tmp_path: Path, source: Path) -> None:
    answer = graphbuild(
        "embed", "--dataset", "parquet", "--source", source, "--encoder", "hashing:16", "--workers", "0", "--json", cwd=tmp_path
    )
    assert answer.returncode == 0, answer.stderr
    result = json.loads(answer.stdout)
    assert result["graph_dir"] == "graphs/captions"
    assert result["counts"]["texts"] == 100


@pytest.mark.parametrize(
    ("dataset", "source", "expected"),
    [
        ("imagenet", "folder/train", "graphs/imagenet"),
        ("parquet", "x/flickr8k_96.parquet", "graphs/flickr8k_96"),
        ("parquet", "x/tiny/train-*.parquet", "graphs/tiny"),
        ("tsv", "Train_GCC.tsv", "graphs/Train_GCC"),
    ],
)
def test_graph_directory_defaults_to_data_set_or_stem(dataset: str, source: str, expected: str) -> None:
    assert default_graph_dir(EmbedConfig(dataset=dataset, sources=(source,))) == Path(expected)


def test_manifest_records_what_the_graph_was_made_from(tmp_path: Path, source: Path) -> None:
    embed(tmp_path / "g", source, keep_columns=("caption",))
    dataset = Manifest.load(tmp_path / "g").dataset
    assert dataset["files"][0]["name"] == "captions.parquet"
    assert dataset["files"][0]["bytes"] == source.stat().st_size
    assert (dataset["caption_column"], dataset["id_column"], dataset["keep_columns"]) == ("caption", None, ["caption"])


def test_flickr8k_captions_all_find_their_text(tmp_path: Path, shared_data: Path) -> None:
    source = shared_data / "flickr8k" / "flickr8k_96.parquet"
    embed(tmp_path / "g", source, caption_column="captions", id_column="file")
    texts = column(tmp_path / "g", "texts", "text")
    rows = zip(column(tmp_path / "g", "samples", "sample_id"), column(tmp_path / "g", "samples", "text_id"), strict=True)
    stored = [(sample_id, texts[text_id].lower()) for sample_id, text_id in rows]
    table = pq.read_table(source, columns=["file", "captions"]).to_pylist()
    assert stored == [(row["file"], " ".join(caption.split()).lower()) for row in table for caption in row["captions"]]


@pytest.mark.parametrize("bad", ["caption\none\ntwo,three,four\n", "caption\n\n"])
def test_overwriting_by_a_source_that_fails_leaves_the_graph_as_it_was(tmp_path: Path, bad: str) -> None:
    good = write_captions(tmp_path / "a.parquet", {"caption": numbered_captions(30)})
    embed(tmp_path / "g", good, shard_size=10)
    before = {path: path.read_bytes() for path in (tmp_path / "g").rglob("*") if path.is_file()}
    (tmp_path / "bad.csv").write_text(bad)
    with pytest.raises(SourceError):
        embed(tmp_path / "g", tmp_path / "bad.csv", "csv", overwrite=True)
    assert {path: path.read_bytes() for path in (tmp_path / "g").rglob("*") if path.is_file()} == before


def test_a_lost_tokenizer_is_written_again_without_a_look_at_the_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_captions(tmp_path / "a.parquet", {"caption": numbered_captions(30)})
    embed(tmp_path / "g", source, shard_size=10)
    files = {path: path.read_bytes() for path in (tmp_path / "g/tokenizer").iterdir()}
    next(iter(files)).unlink()
    monkeypatch.setattr("graphbuild.embed.stages.write_texts", None)
    assert embed(tmp_path / "g", source, shard_size=10).built == ("text",)
    assert {path: path.read_bytes() for path in (tmp_path / "g/tokenizer").iterdir()} == files
    assert embed(tmp_path / "g", source, shard_size=10).built == ()
