"""Forms of files: compression and encodings, files without a header, JSON, types across Parquet files, broken rows."""

from __future__ import annotations

import bz2
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers_embed import column, embed, write_captions

from graphbuild.embed.build import default_graph_dir
from graphbuild.embed.config import EmbedConfig, EmbedResult
from graphbuild.embed.text.table import Prompts, TextTable
from graphbuild.errors import OptionError, SourceError
from graphbuild.exchange.subset import SubsetConfig, subset_graph
from graphbuild.store.manifest import Manifest

TEXTS = {
    "csv": 'caption,n\n"one, ""a"" kite",1\ntwo é kites,2\n',
    "tsv": 'caption\tn\none, "a" kite\t1\ntwo é kites\t2\n',
    "jsonl": '{"caption": "one, \\"a\\" kite", "n": 1}\n{"caption": "two é kites", "n": 2}\n',
    "json": '[{"caption": "one, \\"a\\" kite"}, {"caption": "two é kites"}]',
    "lines": 'one, "a" kite\ntwo é kites\n',
}


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


PACKED = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": zstd,
    ".bz2": bz2.compress,
}


@pytest.mark.parametrize("dataset", TEXTS)
@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_is_read_whatever_its_compression_and_encoding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dataset: str, packed: str, encoding: str
) -> None:
    suffix = {"lines": "txt"}.get(dataset, dataset)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / f"a.{suffix}{packed}").write_bytes(PACKED[packed](TEXTS[dataset].encode(encoding)))
    embed(tmp_path / "g", tmp_path / "in", dataset)
    assert column(tmp_path / "g", "texts", "text") == ['one, "a" kite', "two é kites"]
    told = capsys.readouterr().err
    assert ("UTF-16 by its byte-order mark, with 0 encoding errors" in told) == (encoding == "utf-16")
    assert ("compressed" in told) == bool(packed)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gzip.compress(b"caption\n" + b"one kite\n" * 9999)[:-100], "damaged or cut short"),
        (b"PAR1 and so on", "a Parquet file, not text"),
        ("one kite\n".encode("utf-16-le"), "holds zero bytes"),
    ],
)
@pytest.mark.parametrize("dataset", ["lines", "csv", "tsv", "jsonl", "json"])
def test_what_is_no_text_is_told_as_such_without_its_bytes(tmp_path: Path, dataset: str, content: bytes, words: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(SourceError, match=rf"a\.txt: .*{words}") as error:
        embed(tmp_path / "g", tmp_path / "a.txt", dataset, caption_column={"lines": "text"}.get(dataset, "caption"))
    assert str(error.value).isprintable()


def test_names_from_a_file_are_shown_so_that_they_can_be_printed(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\x1b[31mred,b\nx,y\n")
    with pytest.raises(SourceError, match=r"the columns are: '\\x1b\[31mred', b"):
        embed(tmp_path / "g", tmp_path / "a.csv", "csv")


def test_byte_order_mark_is_no_part_of_the_first_id_of_a_subset(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("caption\none\ntwo\n")
    embed(tmp_path / "g", tmp_path / "a.csv", "csv")
    (tmp_path / "ids.txt").write_bytes("\ufeffa.csv:0\n".encode())
    subset_graph(tmp_path / "g", tmp_path / "s", SubsetConfig(keep=tmp_path / "ids.txt"))
    assert column(tmp_path / "s", "samples", "sample_id") == ["a.csv:0"]


@pytest.mark.parametrize(("dataset", "sign"), [("csv", ","), ("tsv", "\t")])
def test_files_without_a_header_take_the_names_of_their_columns(tmp_path: Path, dataset: str, sign: str) -> None:
    (tmp_path / f"a.{dataset}").write_text(f"7{sign}one\n8{sign}two\n")
    embed(tmp_path / "g", tmp_path / f"a.{dataset}", dataset, columns=("key", "caption"), id_column="key")
    assert column(tmp_path / "g", "samples", "sample_id") == ["7", "8"]
    with pytest.raises(OptionError, match="--columns names the columns of csv and tsv files"):
        embed(tmp_path / "h", tmp_path / "a.jsonl", "jsonl", columns=("a",))


def test_karpathy_splits_are_read_with_all_their_sentences(tmp_path: Path) -> None:
    images = [
        {"filename": f"{i}.jpg", "split": "test", "sentences": [{"raw": f"first {i}", "tokens": []}, {"raw": f"second {i}"}]}
        for i in (1, 2)
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"dataset": "coco", "images": images}))
    embed(tmp_path / "g", tmp_path / "dataset_coco.json", "karpathy", keep_columns=("split",))
    assert column(tmp_path / "g", "texts", "text") == ["first 1", "second 1", "first 2", "second 2"]
    assert column(tmp_path / "g", "samples", "sample_id") == ["1.jpg", "1.jpg", "2.jpg", "2.jpg"]
    cells = [image["sentences"] for image in images]
    kind = pa.list_(pa.struct([("raw", pa.string()), ("tokens", pa.list_(pa.string()))]))
    pq.write_table(pa.table({"sentences": pa.array([*cells, None, []], kind)}), tmp_path / "a.parquet")
    embed(tmp_path / "h", tmp_path / "a.parquet")
    assert column(tmp_path / "h", "texts", "text") == column(tmp_path / "g", "texts", "text")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"a": 1}', "holds no list of objects"),
        ("[1]", "'the list' holds int, not objects"),
        ("nonsense", "no JSON"),
        ('[{"a": "x"}', "ends too early"),
        ('[{"a": "x"}, nonsense]', "no JSON"),
    ],
)
def test_broken_json_file_is_one_clear_error(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(SourceError, match=rf"a\.json: .*{words}"):
        embed(tmp_path / "g", tmp_path / "a.json", "json", caption_column="a")


def two_files(folder: Path, first: pa.Array, second: pa.Array) -> Path:
    folder.mkdir()
    for name, values in (("a", first), ("b", second)):
        captions = [f"caption {name} {i}" for i in range(len(values))]
        pq.write_table(pa.table({"caption": captions, "k": values}), folder / f"{name}.parquet")
    return folder


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (pa.nulls(1), pa.array([7]), [None, 7]),
        (pa.array([7]), pa.array([0.5]), [7.0, 0.5]),
        (pa.array([7], pa.int32()), pa.array([2**40]), [7, 2**40]),
        (pa.array(["x"], pa.string_view()), pa.array(["y"]).dictionary_encode(), ["x", "y"]),
        (pa.array([{"a": 1}]), pa.array([{"a": 2, "b": 3}]), [{"a": 1, "b": None}, {"a": 2, "b": 3}]),
        (pa.nulls(1), pa.nulls(1), [None, None]),
    ],
)
def test_kept_columns_have_the_widest_type_of_all_files_in_any_order(
    tmp_path: Path, first: pa.Array, second: pa.Array, expected: list[Any]
) -> None:
    for name, one, other, values in (("g", first, second, expected), ("h", second, first, expected[::-1])):
        embed(tmp_path / name, two_files(tmp_path / f"{name}-in", one, other), keep_columns=("k",))
        assert column(tmp_path / name, "samples", "k") == values


def test_types_that_have_none_in_common_name_both_files(tmp_path: Path) -> None:
    folder = two_files(tmp_path / "in", pa.array([1]), pa.array(["x"]))
    with pytest.raises(SourceError, match=r"column 'k' holds string in .*b\.parquet, but int64 in .*a\.parquet"):
        embed(tmp_path / "g", folder, keep_columns=("k",))


def test_captions_of_type_null_are_null_captions(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_captions(tmp_path / "in" / "a.parquet", {"caption": ["one"]})
    pq.write_table(pa.table({"caption": pa.nulls(2)}), tmp_path / "in" / "b.parquet")
    embed(tmp_path / "g", tmp_path / "in")
    assert Manifest.load(tmp_path / "g").counts["null_captions"] == 2


def test_column_that_comes_twice_is_refused_only_if_it_is_used(tmp_path: Path) -> None:
    arrays = [pa.array(["x"]), pa.array(["y"]), pa.array(["z"])]
    pq.write_table(pa.Table.from_arrays(arrays, names=["a", "a", "b"]), tmp_path / "x.parquet")
    with pytest.raises(SourceError, match="there are 2 columns called 'a'"):
        embed(tmp_path / "g", tmp_path / "x.parquet", caption_column="a")
    embed(tmp_path / "g", tmp_path / "x.parquet", caption_column="b")


def test_labels_of_hugging_face_are_classes_by_their_names(tmp_path: Path) -> None:
    names = {"info": {"features": {"label": {"names": ["maple_tree", "dog"], "_type": "ClassLabel"}}}}
    table = pa.table({"label": [1, 0, -1], "image": [b"x"] * 3}).replace_schema_metadata({"huggingface": json.dumps(names)})
    pq.write_table(table, tmp_path / "a.parquet")
    embed(tmp_path / "g", tmp_path / "a.parquet", keep_columns=("label",))
    assert column(tmp_path / "g", "texts", "text") == ["a photo of a dog", "a photo of a maple tree"]
    pq.write_table(table.set_column(0, "label", pa.array([1, 2, 0])), tmp_path / "b.parquet")
    with pytest.raises(SourceError, match="row 1 has the label 2, but the file names 2 classes"):
        embed(tmp_path / "h", tmp_path / "b.parquet")


def test_columns_of_laion_are_found(tmp_path: Path) -> None:
    embed(tmp_path / "g", write_captions(tmp_path / "a.parquet", {"URL": ["u"], "TEXT": ["t"]}), id_column="URL")
    assert column(tmp_path / "g", "texts", "text") == ["t"]


def test_folders_of_a_partitioned_data_set_are_columns(tmp_path: Path) -> None:
    for language in ("de", "en"):
        (tmp_path / "in" / f"lang={language}").mkdir(parents=True)
        write_captions(tmp_path / "in" / f"lang={language}" / "part-0.parquet", {"caption": [f"a {language}"]})
    embed(tmp_path / "g", tmp_path / "in", keep_columns=("lang",))
    assert column(tmp_path / "g", "samples", "lang") == ["de", "en"]
    assert column(tmp_path / "g", "samples", "sample_id") == ["lang=de/part-0.parquet:0", "lang=en/part-0.parquet:0"]


def test_repeated_long_captions_are_held_once_and_cut(tmp_path: Path) -> None:
    long = "x" * 1_000_000
    table = pa.table({"caption": pa.array([long] * 100 + ["short"]).dictionary_encode()})
    pq.write_table(table.cast(pa.schema([("caption", pa.string())])), tmp_path / "a.parquet", compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 100_000
    embed(tmp_path / "g", tmp_path / "a.parquet")
    assert [len(text) for text in column(tmp_path / "g", "texts", "text")] == [100_000, 5]
    assert Manifest.load(tmp_path / "g").counts["cut_captions"] == 100


BROKEN = {
    "jsonl": '{"caption": "one"}\n{bad\n{"caption": 7}\n'
    + '{"caption": "x", "y": '
    + "[" * 100_000
    + "]" * 100_000
    + '}\n{"caption": "two"}\n',
    "csv": "caption,k\none,1\nbad\nmore,than,two\n3,4,5\ntwo,2\n",
    "tsv": "caption\tk\none\t1\nbad\nmore\tthan\ttwo\n3\t4\t5\ntwo\t2\n",
}


@pytest.mark.parametrize("dataset", BROKEN)
def test_broken_rows_are_an_error_or_counted_and_listed(tmp_path: Path, dataset: str) -> None:
    path = tmp_path / f"a.{dataset}"
    path.write_text(BROKEN[dataset])
    with pytest.raises(SourceError, match=r"line \d.*--skip-broken"):
        embed(tmp_path / "g", path, dataset)
    assert not (tmp_path / "g").exists()
    embed(tmp_path / "g", path, dataset, skip_broken=True)
    manifest = Manifest.load(tmp_path / "g")
    assert column(tmp_path / "g", "texts", "text") == ["one", "two"]
    assert column(tmp_path / "g", "samples", "sample_id") == [f"a.{dataset}:0", f"a.{dataset}:4"]
    assert manifest.counts["broken_rows"] == 3
    assert len(manifest.stages["text"].facts["broken_rows"]) == 3


def test_default_names_of_graphs_say_which_data_they_are() -> None:
    named = {
        ("imagefolder", "data/pets/train"): "pets-train",
        ("parquet", "data/flickr8k.parquet"): "flickr8k",
        ("parquet", "crawl/part-*.parquet"): "crawl",
        ("csv", "https://e.org/d/words.csv.gz?sig=x"): "words",
        ("coco", "captions_train2017.json"): "coco",
    }
    for (dataset, source), name in named.items():
        assert default_graph_dir(EmbedConfig(dataset=dataset, sources=(source,))) == Path("graphs") / name


def test_captions_that_the_encoder_does_not_know_are_counted(tmp_path: Path) -> None:
    known, unknown = ["a dog in the snow", "a red kite"], ["\U0001f436", "\U0001f431", "\u732b \u732b"]
    policy = TextTable(Half({*["a", "dog", "in", "the", "snow", "red", "kite"]}), Prompts())
    assert policy.add([*known, *unknown, "a dog \U0001f436 x", "a dog \U0001f436"]).tolist() == [0, 1, 2, 2, 3, 4, 5]
    assert (policy.unknown_captions(), policy.unknown_ids().tolist()) == (4, [2, 3, 4])


def test_captions_that_the_encoder_does_not_know_are_the_last_thing_that_embed_says(tmp_path: Path) -> None:
    counts = {"samples": 5, "captions": 5, "texts": 2, "unknown_captions": 4}
    encoder = {"name": "one", "dim": 8, "precision": "float32", "max_tokens": 16}
    told = EmbedResult(graph_dir=tmp_path, built=("text",), counts=counts, encoder=encoder, seconds={}).summary().splitlines()
    assert told[-1].startswith("4 captions of which half the tokens or more are unknown")
    assert told[-2] == f"next: graphbuild knn --graph-dir {tmp_path}"


class Half:
    """A tokenizer of a few words; 0 stands for all others, and 1 begins every text."""

    unknown_token = 0
    special_tokens = frozenset({1})

    def __init__(self, words: set[str]) -> None:
        self._words = {word: number for number, word in enumerate(sorted(words), 2)}

    def tokenize(self, texts: Sequence[str]) -> tuple[list[Any], list[bool]]:
        tokens = [np.array([1, *(self._words.get(word, 0) for word in text.split())], np.int32) for text in texts]
        return tokens, [False] * len(texts)
