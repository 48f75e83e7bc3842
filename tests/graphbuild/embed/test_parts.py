"""Parts of embed and knn: every N-th shard without a scheduler, entered by a last call."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
from PIL import Image
from safetensors.torch import save_file

from graphbuild.datasets.formats import vector_files
from graphbuild.embed.build import build_embeddings
from graphbuild.embed.config import EmbedConfig
from graphbuild.embed.part import build_embeddings_part
from graphbuild.errors import OptionError, SourceError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.part import build_knn_part
from graphbuild.knn.stage import build_knn
from graphbuild.store.locks import LockedError
from graphbuild.store.manifest import Manifest
from graphbuild.store.parts import Part, working_at
from graphbuild.store.stage import writing

KNN = KnnConfig(k=5, sketch_dim=4)


def _config(tmp_path: Path) -> EmbedConfig:
    source = tmp_path / "captions.parquet"
    pq.write_table(pa.table({"caption": [f"word{i} of {i % 7}" for i in range(50)]}), source)
    return EmbedConfig(dataset="parquet", sources=(str(source),), encoder="hashing:16", shard_size=10)


def _vectors(tmp_path: Path, *, collapse: bool = False) -> EmbedConfig:
    """Vectors in Parquet of small row groups and in a matrix; some equal ones, and shards that cross the files."""
    vectors = np.random.default_rng(0).standard_normal((53, 8)).astype(np.float32)
    vectors[[4, 30, 51]] = vectors[3]
    table = pa.table({"emb": list(vectors[:37]), "key": [f"k{i}" for i in range(37)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    np.save(tmp_path / "b.npy", vectors[37:])
    pq.write_table(pa.table({"key": [f"k{i}" for i in range(37, 53)]}), tmp_path / "b.parquet")
    sources = (str(tmp_path / "a.parquet"), str(tmp_path / "b.npy"))
    return EmbedConfig(dataset="vectors", sources=sources, id_column="key", shard_size=10, collapse=collapse)


def _pictures(tmp_path: Path) -> EmbedConfig:
    """Pictures of which one cannot be decoded, for a network with random weights."""
    pictures = []
    for i in range(13):
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)).save(buffer, format="PNG")
        pictures.append(buffer.getvalue()[: 20 if i == 4 else None])
    pq.write_table(pa.table({"image": pa.array(pictures, pa.binary())}), tmp_path / "pictures.parquet", row_group_size=4)
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), tmp_path / "net.safetensors")
    encoder = f"timm:test_vit:{tmp_path / 'net.safetensors'}"
    sources = (str(tmp_path / "pictures.parquet"),)
    return EmbedConfig(dataset="parquet", sources=sources, encoder=encoder, embedded="images", shard_size=3)


KINDS = {
    "captions": _config,
    "vectors": _vectors,
    "vectors collapsed": lambda tmp_path: _vectors(tmp_path, collapse=True),
    "pictures": _pictures,
}


def _bytes(graph_dir: Path) -> dict[str, bytes]:
    files = [path for folder in ("texts", "samples", "embeddings", "knn") for path in sorted((graph_dir / folder).glob("part-*"))]
    return {path.relative_to(graph_dir).as_posix(): path.read_bytes() for path in files}


def test_all_parts_and_a_last_call_give_the_bytes_of_one_call(tmp_path: Path) -> None:
    config, parts, whole = _config(tmp_path), tmp_path / "parts", tmp_path / "whole"
    done = [build_embeddings_part(parts, config, Part(number, 3)) for number in (2, 1, 3)]
    assert [(result.written, result.open) for result in done] == [(2, 3), (2, 1), (1, 0)]
    assert "embed" not in Manifest.load(parts).stages
    assert build_embeddings(parts, config).built == ("embed", "index")
    found = [build_knn_part(parts, KNN, Part(number, 2)) for number in (2, 1)]
    assert [(result.written, result.open) for result in found] == [(2, 3), (3, 0)]
    assert "knn" not in Manifest.load(parts).stages
    assert build_knn(parts, KNN).reused_shards == 5
    build_embeddings(whole, config)
    build_knn(whole, KNN)
    assert _bytes(parts) == _bytes(whole)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_parts_of_embed_in_any_order_give_the_bytes_of_one_call(tmp_path: Path, kind: str, order: tuple[int, ...]) -> None:
    config, shards = KINDS[kind](tmp_path), {"pictures": 4, "captions": 5, "vectors": 6, "vectors collapsed": 5}[kind]
    done = [build_embeddings_part(tmp_path / "g", config, Part(number, 3)) for number in order]
    assert sum(result.written for result in done) == shards
    assert done[-1].open == 0
    assert "embed" not in Manifest.load(tmp_path / "g").stages
    assert build_embeddings(tmp_path / "g", config).built == ("embed", "index")
    build_embeddings(tmp_path / "whole", config)
    for graph_dir in (tmp_path / "g", tmp_path / "whole"):
        build_knn(graph_dir, KNN)
    assert _bytes(tmp_path / "g") == _bytes(tmp_path / "whole")
    ours, theirs = (Manifest.load(tmp_path / name) for name in ("g", "whole"))
    assert (ours.counts, ours.encoder, ours.dataset) == (theirs.counts, theirs.encoder, theirs.dataset)


@pytest.mark.parametrize("kind", list(KINDS))
def test_part_again_writes_nothing_and_the_last_call_makes_what_a_killed_part_left_open(tmp_path: Path, kind: str) -> None:
    config = KINDS[kind](tmp_path)
    assert build_embeddings_part(tmp_path / "g", config, Part(1, 2)).written > 1
    assert build_embeddings_part(tmp_path / "g", config, Part(1, 2)).written == 0
    # As a part leaves it that dies before its second shard.
    lost = sorted((tmp_path / "g" / "embeddings").glob("part-*"))[1]
    lost.unlink()
    build_embeddings(tmp_path / "whole", config)
    assert build_embeddings_part(tmp_path / "g", config, Part(1, 2)).written == 1
    lost.unlink()
    build_embeddings(tmp_path / "g", config)
    embeddings = [{path.name: path.read_bytes() for path in (tmp_path / name / "embeddings").iterdir()} for name in ("g", "whole")]
    assert embeddings[0] == embeddings[1]


def test_a_part_of_vectors_reads_the_rows_of_its_own_shards_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, read = _vectors(tmp_path), list[int]()

    def normalise(vectors_nD: np.ndarray, where: str, first_row: int) -> np.ndarray:
        read.append(len(vectors_nD))
        return real(vectors_nD, where, first_row)

    real = vector_files.unit_vectors
    monkeypatch.setattr(vector_files, "unit_vectors", normalise)
    build_embeddings_part(tmp_path / "g", config, Part(2, 3))
    assert sum(read) == 20


def test_vector_without_a_direction_stops_its_part_alone_and_is_named(tmp_path: Path) -> None:
    config = _vectors(tmp_path)
    vectors = np.load(tmp_path / "b.npy")
    vectors[-1] = 0
    np.save(tmp_path / "b.npy", vectors)
    assert build_embeddings_part(tmp_path / "g", config, Part(2, 3)).written == 2
    for failing in (
        lambda: build_embeddings_part(tmp_path / "g", config, Part(3, 3)),
        lambda: build_embeddings(tmp_path / "g", config),
    ):
        with pytest.raises(SourceError, match=r"b\.npy: the vector of row 15 is zero"):
            failing()


@pytest.mark.parametrize("text", ["3/2", "0/2", "1/0", "2", "a/b", "-1/2"])
def test_part_beyond_n_or_no_part_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match=f"--part {text}"):
        Part.parse(text)


@pytest.mark.parametrize("kind", list(KINDS))
def test_second_machine_at_one_part_is_refused_and_so_is_the_last_call(tmp_path: Path, kind: str) -> None:
    config = KINDS[kind](tmp_path)
    build_embeddings_part(tmp_path / "g", config, Part(1, 2))
    with working_at(tmp_path / "g", "embed", Part(1, 2)):
        with pytest.raises(LockedError, match="Part 1/2 of embed is taken"):
            build_embeddings_part(tmp_path / "g", config, Part(1, 2))
        with pytest.raises(LockedError, match="Wait until all parts of embed have ended"):
            build_embeddings(tmp_path / "g", config)
    assert build_embeddings(tmp_path / "g", config).built


def test_part_during_a_whole_call_is_refused_and_names_it(tmp_path: Path) -> None:
    config = _config(tmp_path)
    build_embeddings_part(tmp_path / "g", config, Part(1, 2))
    with writing(tmp_path / "g"), pytest.raises(LockedError, match=r"is at work here\. Wait until it has ended"):
        build_embeddings_part(tmp_path / "g", config, Part(2, 2))
    build_embeddings(tmp_path / "g", config)
    with writing(tmp_path / "g"), pytest.raises(LockedError, match=r"is at work here\. Wait until it has ended"):
        build_knn_part(tmp_path / "g", KNN, Part(1, 2))
    assert build_knn_part(tmp_path / "g", KNN, Part(1, 2)).written == 3


@pytest.mark.parametrize("kind", list(KINDS))
def test_part_with_other_options_than_the_texts_is_refused(tmp_path: Path, kind: str) -> None:
    config = KINDS[kind](tmp_path)
    build_embeddings_part(tmp_path / "g", config, Part(1, 2))
    with pytest.raises(OptionError, match="shard_size"):
        build_embeddings_part(tmp_path / "g", replace(config, shard_size=20), Part(2, 2))


def test_options_that_do_not_go_with_parts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="Leave out --overwrite"):
        build_embeddings_part(tmp_path / "g", EmbedConfig(dataset="scenes", overwrite=True), Part(1, 2))
    with pytest.raises(OptionError, match="--vector-column is for --dataset vectors"):
        build_embeddings_part(tmp_path / "g", EmbedConfig(dataset="scenes", vector_column="emb"), Part(1, 2))
    with pytest.raises(OptionError, match="in one process"):
        build_knn_part(tmp_path / "g", KnnConfig(method="ivf"), Part(1, 2))
