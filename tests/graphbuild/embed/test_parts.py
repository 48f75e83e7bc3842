"""Parts of embed and knn: every N-th shard without a scheduler, entered by a last call."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from graphbuild.embed.build import build_embeddings
from graphbuild.embed.config import EmbedConfig
from graphbuild.embed.part import build_embeddings_part
from graphbuild.errors import OptionError
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


def _bytes(graph_dir: Path) -> dict[str, bytes]:
    files = [path for folder in ("texts", "embeddings", "knn") for path in sorted((graph_dir / folder).iterdir())]
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


def test_part_again_writes_nothing(tmp_path: Path) -> None:
    config = _config(tmp_path)
    build_embeddings_part(tmp_path / "g", config, Part(1, 2))
    assert build_embeddings_part(tmp_path / "g", config, Part(1, 2)).written == 0


@pytest.mark.parametrize("text", ["3/2", "0/2", "1/0", "2", "a/b", "-1/2"])
def test_part_beyond_n_or_no_part_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match=f"--part {text}"):
        Part.parse(text)


def test_second_machine_at_one_part_is_refused_and_so_is_the_last_call(tmp_path: Path) -> None:
    config = _config(tmp_path)
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


def test_part_with_other_options_than_the_texts_is_refused(tmp_path: Path) -> None:
    config = _config(tmp_path)
    build_embeddings_part(tmp_path / "g", config, Part(1, 2))
    other = EmbedConfig(dataset="parquet", sources=config.sources, encoder="hashing:16", shard_size=20)
    with pytest.raises(OptionError, match="shard_size"):
        build_embeddings_part(tmp_path / "g", other, Part(2, 2))


def test_options_that_do_not_go_with_parts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="Leave out --overwrite"):
        build_embeddings_part(tmp_path / "g", EmbedConfig(dataset="scenes", overwrite=True), Part(1, 2))
    with pytest.raises(OptionError, match="--dataset vectors has none"):
        build_embeddings_part(tmp_path / "g", EmbedConfig(dataset="vectors"), Part(1, 2))
    with pytest.raises(OptionError, match="in one process"):
        build_knn_part(tmp_path / "g", KnnConfig(method="ivf"), Part(1, 2))
