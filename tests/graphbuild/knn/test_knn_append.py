"""`knn` after `embed --append`: old rows are compared with new texts only, and the bytes are those of a full rebuild."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from helpers_embed import COMMAND, embed, numbered_captions, write_captions
from helpers_forked import running
from helpers_graph import clustered_vectors

from graphbuild.knn.config import KnnConfig, KnnResult
from graphbuild.knn.engines.coding import FORMATS
from graphbuild.knn.engines.rowblocks import RowBlockEngine
from graphbuild.knn.engines.tiles import TileEngine
from graphbuild.knn.stage import build_knn
from graphbuild.quality.verify import verify_graph
from graphbuild.store.files import ShardRange, shard_ranges
from graphbuild.store.manifest import Manifest

OLD, ALL = 4_000, 4_300
TILES = "from graphbuild.knn.engines import choose; choose.FEW_TEXTS = 0"


@pytest.fixture(autouse=True)
def tiles_for_few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphbuild.knn.engines.choose.FEW_TEXTS", 0)


def all_bytes(graph_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((graph_dir / "knn").glob("*.arrow"))}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A graph with neighbours that was appended to, and the same without neighbours."""
    folder = tmp_path_factory.mktemp("appended")
    captions = numbered_captions(ALL)
    old = write_captions(folder / "old.parquet", {"caption": captions[:OLD]})
    new = write_captions(folder / "new.parquet", {"caption": captions[OLD - 50 :]})
    embed(folder / "g", old, shard_size=2_000)
    shutil.copytree(folder / "g", folder / "bare")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("graphbuild.knn.engines.choose.FEW_TEXTS", 0)
        build_knn(folder / "g", KnnConfig(k=20))
    for name in ("g", "bare"):
        embed(folder / name, new, shard_size=2_000, append=True)
    return folder / "g", folder / "bare"


@pytest.fixture
def graphs(made: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    return tuple(Path(shutil.copytree(path, tmp_path / path.name)) for path in made)  # type: ignore[return-value]


def knn(graph_dir: Path, **options: object) -> KnnResult:
    return build_knn(graph_dir, KnnConfig(**{"k": 20, **options}))


def test_extended_graph_has_the_bytes_of_a_full_rebuild(graphs: tuple[Path, Path]) -> None:
    grown, bare = graphs
    assert (knn(grown).extended_shards, knn(bare).extended_shards) == (2, 0)
    assert len(all_bytes(grown)) == 3
    assert all_bytes(grown) == all_bytes(bare)
    assert not Manifest.load(grown).superseded
    assert verify_graph(grown, exact_sample=1_000).quality.recall == 1
    assert knn(grown).already_done


def test_two_appends_are_caught_up_with_at_once(graphs: tuple[Path, Path], tmp_path: Path) -> None:
    more = write_captions(tmp_path / "more.parquet", {"caption": numbered_captions(ALL + 40)[ALL:]})
    for graph_dir in graphs:
        embed(graph_dir, more, shard_size=2_000, append=True)
    assert knn(graphs[0]).extended_shards == 2
    knn(graphs[1])
    assert all_bytes(graphs[0]) == all_bytes(graphs[1])


@pytest.mark.parametrize("options", [{"k": 30}, {"sketch_dim": 0}])
def test_other_options_give_the_bytes_of_a_full_rebuild_too(graphs: tuple[Path, Path], options: dict[str, object]) -> None:
    for graph_dir in graphs:
        knn(graph_dir, **options)
    assert all_bytes(graphs[0]) == all_bytes(graphs[1])


def test_complete_graph_that_grows_stays_complete(tmp_path: Path) -> None:
    captions = numbered_captions(60)
    embed(tmp_path / "g", write_captions(tmp_path / "old.parquet", {"caption": captions[:40]}), shard_size=30)
    build_knn(tmp_path / "g", KnnConfig())
    embed(tmp_path / "g", write_captions(tmp_path / "new.parquet", {"caption": captions}), shard_size=30, append=True)
    result = build_knn(tmp_path / "g", KnnConfig())
    assert (result.k, result.complete) == (59, True)
    assert verify_graph(tmp_path / "g").quality.recall == 1


def test_damaged_old_shard_is_searched_anew(graphs: tuple[Path, Path]) -> None:
    grown, bare = graphs
    (grown / "knn/part-00000.arrow").write_bytes(b"x")
    assert knn(grown).extended_shards == 1
    knn(bare)
    assert all_bytes(grown) == all_bytes(bare)


@pytest.mark.parametrize("after", ["part-00000.arrow", pytest.param("part-00001.arrow", marks=pytest.mark.faults)])
def test_killed_extension_ends_in_the_same_bytes(graphs: tuple[Path, Path], tmp_path: Path, after: str) -> None:
    grown, bare = graphs
    path = grown / "knn" / after
    before = path.stat().st_mtime_ns
    with running(f"{TILES}\n{COMMAND}", "knn", "--k", "20", "--graph-dir", grown, said=tmp_path / "said") as process:
        deadline = time.monotonic() + 60
        while path.stat().st_mtime_ns == before:
            assert process.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.0005)
    knn(grown)
    knn(bare)
    assert all_bytes(grown) == all_bytes(bare)


@pytest.mark.faults
def test_extension_by_worker_processes_has_the_same_bytes(graphs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    # Workers do not inherit the patch: there they would search few texts in row blocks, with the same result.
    grown, bare = graphs
    knn(grown, workers=2)
    knn(bare)
    assert all_bytes(grown) == all_bytes(bare)


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("first_new", [1, 40, 1_000, 1_290])
def test_extended_rows_equal_a_search_with_duplicates_and_ties(precision: str, first_new: int) -> None:
    vectors = clustered_vectors(1_300, 16, clusters=5)
    vectors[::3] = vectors[0]
    vectors[1::7] = -vectors[1]
    k = min(30, first_new - 1) or 1
    if first_new <= k:
        vectors, first_new = vectors[:9], 2
    old = RowBlockEngine(np.ascontiguousarray(vectors[:first_new]), k=k, memory_limit=10**9)
    engine = TileEngine(vectors, k=k, memory_limit=10**9, precision=precision)
    for one in shard_ranges(first_new, 700):
        stored = next(iter(old.search([one])))
        found = engine.extend(one, stored, first_new)
        expected = next(iter(RowBlockEngine(vectors, k=k, memory_limit=10**9).search([ShardRange(0, one.start, one.stop)])))
        np.testing.assert_array_equal(found.ids_nK, expected.ids_nK)
        np.testing.assert_array_equal(found.similarities_nK.view(np.int16), expected.similarities_nK.view(np.int16))
