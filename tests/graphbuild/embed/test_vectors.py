"""Graphs of vectors that exist: Parquet, .npy beside metadata, safetensors; against brute force, and with bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from safetensors.numpy import save_file

from graphbuild.cli import cli
from graphbuild.datasets.formats.vector_files import read_vector
from graphbuild.embed.build import build_embeddings
from graphbuild.embed.config import EmbedConfig, EmbedResult
from graphbuild.embed.hashing import HashingEncoder
from graphbuild.embed.nearest import nearest_texts, nearest_to_vector
from graphbuild.errors import ArtifactMismatch, OptionError, SourceError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.quality.report.write import write_report
from graphbuild.quality.verify import verify_graph
from graphbuild.store.embeddings import load_embeddings
from graphbuild.store.graph import Graph
from graphbuild.store.manifest import Manifest
from graphbuild.torch import SoftTargets

WIDTH = 8


def _vectors(count: int = 40, width: int = WIDTH, seed: int = 0) -> NDArray[np.float32]:
    return 3 * np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def _column(vectors_ND: NDArray[Any], kind: str = "list") -> pa.Array:
    flat, (count, width) = pa.array(vectors_ND.reshape(-1)), vectors_ND.shape
    if kind == "list":
        return pa.ListArray.from_arrays(pa.array(np.arange(0, count * width + 1, width, dtype=np.int32)), flat)
    if kind == "fixed":
        return pa.FixedSizeListArray.from_arrays(flat, width)
    return pa.FixedShapeTensorArray.from_numpy_ndarray(vectors_ND)


def _parquet(path: Path, vectors_ND: NDArray[Any], kind: str = "list", first: int = 0, **columns: Any) -> Path:
    ids = [f"item-{first + i}" for i in range(len(vectors_ND))]
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"key": ids, "emb": _column(vectors_ND, kind), **columns}), path)
    return path


def _embed(graph_dir: Path, *sources: Path, **options: Any) -> EmbedResult:
    return build_embeddings(graph_dir, EmbedConfig(dataset="vectors", sources=tuple(map(str, sources)), **options))


def _unit(vectors_ND: NDArray[Any]) -> NDArray[np.float16]:
    wide_ND = vectors_ND.astype(np.float64)
    return (wide_ND / np.linalg.norm(wide_ND, axis=1, keepdims=True)).astype(np.float16)


@pytest.mark.parametrize("kind", ["list", "fixed", "tensor"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_parquet_columns_of_every_kind_give_the_normalised_vectors(tmp_path: Path, kind: str, dtype: Any) -> None:
    vectors = _vectors().astype(dtype)
    _embed(tmp_path / "g", _parquet(tmp_path / "v.parquet", vectors, kind), vector_column="emb", id_column="key", shard_size=16)
    assert np.array_equal(load_embeddings(tmp_path / "g"), _unit(vectors))


def test_folder_of_clip_retrieval_takes_image_vectors_and_their_metadata(tmp_path: Path) -> None:
    data = tmp_path / "laion"
    for folder in ("img_emb", "text_emb", "metadata"):
        (data / folder).mkdir(parents=True)
    for number in range(2):
        np.save(data / "img_emb" / f"img_emb_{number}.npy", _vectors(seed=number).astype(np.float16))
        np.save(data / "text_emb" / f"text_emb_{number}.npy", _vectors(seed=9))
        table = {
            "key": [f"{number}-{i}" for i in range(40)],
            "caption": [f"picture {i}" for i in range(40)],
            "width": list(range(40)),
        }
        pq.write_table(pa.table(table), data / "metadata" / f"metadata_{number}.parquet")
    _embed(tmp_path / "g", data, id_column="key", caption_column="caption", keep_columns=("width",))
    assert np.array_equal(
        load_embeddings(tmp_path / "g"), _unit(np.concatenate([_vectors(seed=s).astype(np.float16) for s in (0, 1)]))
    )
    samples = pq.read_table(tmp_path / "g" / "samples" / "part-00000.parquet")
    assert samples["sample_id"].to_pylist() == [f"{n}-{i}" for n in range(2) for i in range(40)]
    assert samples["width"].to_pylist() == [*range(40), *range(40)]
    texts = pq.read_table(tmp_path / "g" / "texts" / "part-00000.parquet")["text"].to_pylist()
    assert texts == [f"picture {i}" for i in range(40)] * 2


def test_metadata_of_one_name_in_two_folders_are_two_files(tmp_path: Path) -> None:
    for number, folder in enumerate(("a", "b")):
        for name in ("img_emb", "metadata"):
            (tmp_path / folder / name).mkdir(parents=True)
        np.save(tmp_path / folder / "img_emb" / "img_emb_0.npy", _vectors(seed=number))
        keys = pa.table({"key": [f"{folder}-{i}" for i in range(40)]})
        pq.write_table(keys, tmp_path / folder / "metadata" / "metadata_0.parquet")
    _embed(tmp_path / "g", tmp_path / "a", tmp_path / "b", id_column="key")
    files = [file["name"] for file in Manifest.load(tmp_path / "g").dataset["files"]]
    assert sorted(files) == sorted(f"{f}/{name}" for f in "ab" for name in ("img_emb/img_emb_0.npy", "metadata/metadata_0.parquet"))
    # The one that a digest by base name alone would leave out.
    pq.write_table(pa.table({"key": [f"other-{i}" for i in range(40)]}), tmp_path / "a" / "metadata" / "metadata_0.parquet")
    with pytest.raises(ArtifactMismatch, match="--overwrite"):
        _embed(tmp_path / "g", tmp_path / "a", tmp_path / "b", id_column="key")


def test_npy_and_safetensors_without_ids_are_named_by_file_and_row(tmp_path: Path) -> None:
    vectors = _vectors(5)
    np.save(tmp_path / "a.npy", vectors)
    save_file({"image": vectors, "scale": np.ones(3, np.float32)}, tmp_path / "b.safetensors")
    _embed(tmp_path / "g", tmp_path / "a.npy", tmp_path / "b.safetensors")
    texts = pq.read_table(tmp_path / "g" / "texts" / "part-00000.parquet")["text"].to_pylist()
    assert texts == [f"a.npy:{i}" for i in range(5)] + [f"b.safetensors:{i}" for i in range(5)]
    assert np.array_equal(load_embeddings(tmp_path / "g"), np.tile(_unit(vectors), (2, 1)))


def test_neighbours_of_given_vectors_match_brute_force_and_verify(tmp_path: Path) -> None:
    vectors = _vectors(60)
    _embed(tmp_path / "g", _parquet(tmp_path / "v.parquet", vectors), id_column="key", shard_size=25)
    build_knn(tmp_path / "g", KnnConfig(k=7, sketch_dim=4))
    assert verify_graph(tmp_path / "g").k == 7
    exact = _unit(vectors).astype(np.float64) @ _unit(vectors).astype(np.float64).T
    np.fill_diagonal(exact, -2)
    rows = Graph.open(tmp_path / "g").rows(np.arange(60))
    assert np.array_equal(np.sort(rows.neighbor_ids), np.sort(np.argsort(-exact, axis=1)[:, :7]))
    near = nearest_texts(tmp_path / "g", "item-3", count=4)
    assert near.found[0].text == "item-3"
    assert near.found[1].text_id == int(np.argmax(exact[3]))
    with pytest.raises(OptionError, match="no encoder for other texts"):
        nearest_texts(tmp_path / "g", "a dog")


def test_neighbours_of_a_vector_file_are_those_of_brute_force_and_other_widths_are_refused(tmp_path: Path) -> None:
    vectors = _vectors(60)
    _embed(tmp_path / "g", _parquet(tmp_path / "v.parquet", vectors), id_column="key")
    query = _vectors(1, seed=5)
    np.save(tmp_path / "q.npy", 100 * query[0])
    done = CliRunner().invoke(
        cli, ["neighbors", "--graph-dir", str(tmp_path / "g"), "--vector", str(tmp_path / "q.npy"), "-n", "5", "--json"]
    )
    exact = _unit(vectors).astype(np.float64) @ _unit(query)[0].astype(np.float64)
    found = json.loads(done.output)["found"]
    assert [one["text_id"] for one in found] == np.argsort(-exact)[:5].tolist()
    np.testing.assert_allclose([one["similarity"] for one in found], np.sort(exact)[::-1][:5], atol=1e-12)
    np.save(tmp_path / "matrix.npy", query)
    assert [one.text_id for one in nearest_to_vector(tmp_path / "g", tmp_path / "matrix.npy", count=5).found] == [
        one["text_id"] for one in found
    ]
    np.save(tmp_path / "wide.npy", _vectors(1, width=9))
    with pytest.raises(OptionError, match=r"wide\.npy: vectors are 9 wide, but those of .*g 8"):
        nearest_to_vector(tmp_path / "g", tmp_path / "wide.npy")
    np.save(tmp_path / "two.npy", _vectors(2))
    with pytest.raises(OptionError, match="holds 2 vectors"):
        nearest_to_vector(tmp_path / "g", tmp_path / "two.npy")


def test_a_text_is_asked_of_given_vectors_where_its_encoder_is_named_and_fits(tmp_path: Path) -> None:
    encoder = HashingEncoder(WIDTH)
    words = [f"item-{i}" for i in range(40)]
    vectors = encoder.encode(encoder.tokenize(words)[0])
    _embed(tmp_path / "g", _parquet(tmp_path / "v.parquet", vectors), id_column="key")
    near = nearest_texts(tmp_path / "g", "item-3 item-3", count=1, encoder=f"hashing:{WIDTH}")
    assert near.found[0].text == "item-3"
    with pytest.raises(OptionError, match="hashing:16: vectors are 16 wide"):
        nearest_texts(tmp_path / "g", "a dog", encoder="hashing:16")


def test_same_vectors_again_do_nothing_and_other_files_are_refused(tmp_path: Path) -> None:
    source = _parquet(tmp_path / "v.parquet", _vectors())
    assert _embed(tmp_path / "g", source).built == ("text", "lookup", "embed", "index")
    assert _embed(tmp_path / "g", source).built == ()
    _parquet(tmp_path / "v.parquet", _vectors(seed=1))
    with pytest.raises(Exception, match="--overwrite"):
        _embed(tmp_path / "g", source)
    _embed(tmp_path / "g", source, overwrite=True)
    assert np.array_equal(load_embeddings(tmp_path / "g"), _unit(_vectors(seed=1)))


def test_very_large_and_very_small_vectors_are_normalised(tmp_path: Path) -> None:
    vectors = _vectors().astype(np.float64)
    vectors[0] *= 1e250
    vectors[1] *= 1e-250
    _embed(tmp_path / "g", _parquet(tmp_path / "v.parquet", vectors))
    assert np.array_equal(load_embeddings(tmp_path / "g"), _unit(_vectors().astype(np.float64)))


@pytest.mark.parametrize(("value", "words"), [(0.0, "is zero"), (np.nan, "NaN or infinity"), (np.inf, "NaN or infinity")])
def test_vector_without_a_direction_is_named_by_file_and_row(tmp_path: Path, value: float, words: str) -> None:
    vectors = _vectors()
    vectors[23] = value
    np.save(tmp_path / "v.npy", vectors)
    with pytest.raises(SourceError, match=rf"v\.npy: the vector of row 23 .*{words}"):
        _embed(tmp_path / "g", tmp_path / "v.npy")


def test_files_of_two_widths_are_both_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", _vectors())
    np.save(tmp_path / "b.npy", _vectors(width=5))
    with pytest.raises(SourceError, match=r"b\.npy: vectors are 5 wide, but those of .*a\.npy 8"):
        _embed(tmp_path / "g", tmp_path)


def test_lists_of_unequal_length_are_named_by_row(tmp_path: Path) -> None:
    pq.write_table(pa.table({"emb": [[1.0, 2.0], [1.0, 2.0], [1.0]]}), tmp_path / "v.parquet")
    with pytest.raises(SourceError, match=r"v\.parquet: the vector of row 2 in column 'emb' is 1 wide, not 2"):
        _embed(tmp_path / "g", tmp_path / "v.parquet")


@pytest.mark.parametrize(("rows", "words"), [([[1.0], None], "row 1 has no vector"), ([[1.0], [None]], "row 1 .*empty place")])
def test_missing_vectors_and_places_are_named_by_row(tmp_path: Path, rows: Any, words: str) -> None:
    pq.write_table(pa.table({"emb": pa.array(rows, pa.list_(pa.float32()))}), tmp_path / "v.parquet")
    with pytest.raises(SourceError, match=words):
        _embed(tmp_path / "g", tmp_path / "v.parquet")


def test_metadata_of_another_length_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", _vectors())
    pq.write_table(pa.table({"key": ["a", "b"]}), tmp_path / "v.parquet")
    with pytest.raises(SourceError, match=r"v\.npy: holds 40 vectors, but .*v\.parquet has 2 rows"):
        _embed(tmp_path / "g", tmp_path, id_column="key")


def test_an_archive_of_arrays_under_the_name_of_one_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "v.npy").open("wb") as stream:
        np.savez(stream, v=np.ones(4, np.float32))
    with pytest.raises(SourceError, match="is an archive of arrays, not one"):
        read_vector(tmp_path / "v.npy")


def test_object_arrays_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.array([[1.0], "a"], dtype=object), allow_pickle=True)
    with pytest.raises(SourceError, match="Python objects, which are never unpickled"):
        _embed(tmp_path / "g", tmp_path / "v.npy")


def test_id_that_comes_twice_is_named_with_both_places(tmp_path: Path) -> None:
    _parquet(tmp_path / "a.parquet", _vectors())
    _parquet(tmp_path / "b.parquet", _vectors(), first=39)
    with pytest.raises(SourceError, match=r"'item-39' comes twice, at a\.parquet:39 and b\.parquet:0"):
        _embed(tmp_path / "g", tmp_path / "a.parquet", tmp_path / "b.parquet", id_column="key")


def test_options_of_encoders_are_refused_for_vectors(tmp_path: Path) -> None:
    source = _parquet(tmp_path / "v.parquet", _vectors())
    with pytest.raises(OptionError, match="--template does not apply"):
        _embed(tmp_path / "g", source, templates=("a photo of a {}",))
    with pytest.raises(OptionError, match="--vector-column is for --dataset vectors"):
        build_embeddings(tmp_path / "g", EmbedConfig(dataset="scenes", vector_column="emb"))


def test_column_that_is_missing_or_holds_no_vectors_is_an_error(tmp_path: Path) -> None:
    source = _parquet(tmp_path / "v.parquet", _vectors())
    with pytest.raises(SourceError, match="no column 'vec'; the columns are: key, emb"):
        _embed(tmp_path / "g", source, vector_column="vec")
    with pytest.raises(SourceError, match="holds string, not lists"):
        _embed(tmp_path / "g", source, vector_column="key")


def test_data_sets_that_were_saved_to_disk_give_their_vectors_and_ids(tmp_path: Path) -> None:
    vectors = _vectors()
    columns = {"key": [f"item-{i}" for i in range(40)], "emb": vectors.tolist(), "caption": [f"picture {i}" for i in range(40)]}
    kinds = datasets.Features(
        {"key": datasets.Value("string"), "emb": datasets.List(datasets.Value("float32")), "caption": datasets.Value("string")}
    )
    made = datasets.Dataset.from_dict(columns, features=kinds)
    made.save_to_disk(tmp_path / "alone", num_shards=2)
    datasets.DatasetDict({"train": made, "test": made.select(range(3)).flatten_indices()}).save_to_disk(tmp_path / "split")
    for name, source in (("one", tmp_path / "alone"), ("two", f"{tmp_path / 'split'}:train")):
        _embed(tmp_path / name, Path(source), id_column="key", caption_column="caption", shard_size=16)
        assert np.array_equal(load_embeddings(tmp_path / name), _unit(vectors))
        parts = sorted((tmp_path / name).glob("samples/part-*.parquet"))
        assert pa.concat_tables(map(pq.read_table, parts))["sample_id"].to_pylist() == columns["key"]
    with pytest.raises(SourceError, match=r"train, test|test, train"):
        _embed(tmp_path / "g", tmp_path / "split")
    broken = made.to_dict() | {"emb": [[1.0, math.nan]] * 40}
    datasets.Dataset.from_dict(broken).save_to_disk(tmp_path / "bad")
    with pytest.raises(SourceError, match=r"data-00000-of-00001\.arrow: the vector of row 0 holds NaN or infinity"):
        _embed(tmp_path / "h", tmp_path / "bad", id_column="key")


def test_samples_of_equal_vectors_are_one_text_where_it_is_asked(tmp_path: Path) -> None:
    vectors = _vectors(30)
    # Twice as long, across files and shards, and once with minus zero.
    vectors[3, 0] = 0.0
    again = np.concatenate([2 * vectors[[3, 7, 7]], vectors[[3]], _vectors(6, seed=4)])
    again[3, 0] = -0.0
    files = [_parquet(tmp_path / "a.parquet", vectors), _parquet(tmp_path / "b.parquet", again, first=30)]
    result = _embed(tmp_path / "g", *files, id_column="key", shard_size=16, collapse=True)
    assert (result.counts["samples"], result.counts["texts"], result.counts["duplicate_captions"]) == (40, 36, 4)
    whole = np.concatenate([_unit(vectors), _unit(again)])
    first = [*range(30), *range(34, 40)]
    assert np.array_equal(load_embeddings(tmp_path / "g"), whole[first])
    build_knn(tmp_path / "g", KnnConfig(k=5))
    graph = Graph.open(tmp_path / "g")
    texts = graph.sample_texts([f"item-{i}" for i in range(40)]).text_ids
    assert texts.tolist() == [*range(30), 3, 7, 7, 3, *range(30, 36)]
    assert graph.texts()[33].as_py() == "item-37"
    assert verify_graph(tmp_path / "g").samples == 40
    assert not _embed(tmp_path / "g", *files, id_column="key", shard_size=16, collapse=True).built
    with pytest.raises(OptionError, match="collapse: True -> none"):
        _embed(tmp_path / "g", *files, id_column="key", shard_size=16)
    with pytest.raises(OptionError, match="--collapse is for --dataset vectors"):
        build_embeddings(tmp_path / "h", EmbedConfig(dataset="parquet", sources=(str(files[0]),), collapse=True))


def test_targets_and_report_take_a_graph_of_given_vectors(tmp_path: Path) -> None:
    vectors = _vectors(60)
    _embed(tmp_path / "g", _parquet(tmp_path / "v.parquet", vectors), id_column="key")
    build_knn(tmp_path / "g", KnnConfig(k=59, sketch_dim=4))
    picked = [3, 40, 7, 3]
    similarity = SoftTargets(tmp_path / "g")([f"item-{i}" for i in picked])
    unit = _unit(vectors)[picked].astype(np.float64)
    np.testing.assert_allclose(similarity, unit @ unit.T, atol=1e-3)
    page = write_report(tmp_path / "g", chart=False, batch_size=16).out.read_text(encoding="utf-8")
    assert "every pair stored" in page
    assert "item-" in page
