"""The knn command beyond its result: estimates, memory limits, worker processes, kills."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers_embed import COMMAND, graphbuild
from helpers_forked import run_program, running
from helpers_graph import clustered_vectors, receipt_of, write_graph
from numpy.typing import NDArray

from graphbuild.errors import ArtifactError, ResourceError
from graphbuild.knn import calibrate, search
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.engines.base import Neighbors
from graphbuild.knn.engines.rowblocks import RowBlockEngine
from graphbuild.knn.engines.tiles import TileEngine
from graphbuild.knn.output import ShardWriter, no_neighbors
from graphbuild.knn.plan import Layout, plan_memory
from graphbuild.knn.scratch import all_vectors
from graphbuild.knn.stage import build_knn, estimate_knn
from graphbuild.store import schemas
from graphbuild.store.files import RECORDS, ShardRange, shard_ranges
from graphbuild.store.manifest import Manifest


def all_bytes(graph_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((graph_dir / "knn").glob("*.arrow"))}


def leftovers(graph_dir: Path) -> list[str]:
    return [path.name for path in (graph_dir / "knn").iterdir() if path.name.endswith(".tmp")]


def test_part_of_a_manifest_that_a_killed_client_left_is_removed(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(50, 8))
    (tmp_path / ".graph.json.99999999-0a1b2c3d.tmp").write_text("{")
    build_knn(tmp_path, KnnConfig(k=5))
    assert [path.name for path in tmp_path.glob(".*")] == [RECORDS]


def test_shards_are_written_in_order_each_while_the_next_is_searched_for(tmp_path: Path) -> None:
    vectors, ranges, begun = clustered_vectors(9, 8), shard_ranges(9, 3), []

    def results() -> Iterator[tuple[ShardRange, NDArray[np.float16], Neighbors, str]]:
        for shard in ranges:
            begun.append(shard.index)
            yield shard, vectors[shard.start : shard.stop], no_neighbors(shard), "none"

    for index, receipt in enumerate(ShardWriter(tmp_path, 0, None, "key").write_behind(results())):
        assert receipt.path == schemas.part_name(schemas.KNN, index)
        assert (tmp_path / receipt.path).is_file()
        assert len(begun) == min(index + 2, 3)


def test_shard_that_cannot_be_written_ends_the_search(tmp_path: Path) -> None:
    (tmp_path / schemas.KNN).write_text("in the way")
    shard = shard_ranges(3, 3)[0]
    with pytest.raises(OSError, match="knn"):
        list(ShardWriter(tmp_path, 0, None, "key").write_behind([(shard, clustered_vectors(3, 8), no_neighbors(shard), "none")]))


@pytest.mark.parametrize("engine", [TileEngine, RowBlockEngine])
def test_progress_of_a_search_adds_up_to_the_work_it_announced(engine: type[TileEngine] | type[RowBlockEngine]) -> None:
    made = engine(clustered_vectors(5_300, 16), k=10, memory_limit=10**9)
    told: list[int] = []
    ranges = shard_ranges(5_300, 900)[1:]
    for _ in made.search(ranges, told.append):
        pass
    assert sum(told) == made.work(ranges)


def test_dry_run_tells_pairs_time_memory_and_disk_and_changes_nothing(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(2_000, 16), shard_size=600)
    before = sorted(tmp_path.rglob("*"))
    answer = json.loads(graphbuild("knn", "--dry-run", "--json", "--k", "7", "--graph-dir", tmp_path).stdout)
    assert (answer["pairs"], answer["missing_shards"], answer["shards"]) == (2_000**2, 4, 4)
    assert answer["seconds"] == pytest.approx(answer["pairs"] / answer["pairs_per_second"])
    assert answer["problem"] is None
    assert sorted(tmp_path.rglob("*")) == before


def test_dry_run_announces_the_bytes_that_the_run_then_writes(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(3_000, 16), shard_size=1_000)
    expected = estimate_knn(tmp_path, KnnConfig(k=50)).output_bytes
    build_knn(tmp_path, KnnConfig(k=50))
    written = sum(len(content) for content in all_bytes(tmp_path).values())
    # Arrow's own headers come on top.
    assert expected <= written < 1.02 * expected + 3 * 4096


def test_dry_run_of_a_finished_stage_has_nothing_to_do(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(300, 8))
    build_knn(tmp_path, KnnConfig(k=5))
    estimate = estimate_knn(tmp_path, KnnConfig(k=5))
    assert (estimate.missing_shards, estimate.output_bytes, estimate.seconds) == (0, 0, 0)


def test_calibration_of_the_tile_engine_tells_both_of_its_costs() -> None:
    rates = calibrate.calibrate(clustered_vectors(13_000, 16), count=13_000, k=64, memory_limit=10**9, seconds=0)
    assert rates.pairs_per_second > 1e6
    assert rates.row_seconds >= 0


def test_run_that_takes_a_while_says_beforehand_what_it_will_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(search, "QUIET_PAIRS", 0)
    write_graph(tmp_path, clustered_vectors(400, 8))
    build_knn(tmp_path, KnnConfig(k=5))
    assert re.search(r"estimate: 400 texts, k 5, 1 of 1 shard\(s\) to do; 0.00 G pairs at .* free", capsys.readouterr().err)


def test_run_without_room_on_the_disk_is_refused_before_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "QUIET_PAIRS", 0)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    write_graph(tmp_path, clustered_vectors(400, 8))
    with pytest.raises(ResourceError, match=r"need .* of disk, and 0.00 MB are free. Free some space"):
        build_knn(tmp_path, KnnConfig(k=5))
    assert not list((tmp_path / "knn").glob("part-*"))


@pytest.mark.parametrize(("count", "k"), [(3_000, 40), (13_000, 20)])
def test_memory_limit_that_the_message_asks_for_is_enough(tmp_path: Path, count: int, k: int) -> None:
    write_graph(tmp_path, clustered_vectors(count, 16), shard_size=5_000)
    with pytest.raises(ResourceError, match=r"the memory limit is 1.0 MB") as caught:
        build_knn(tmp_path, KnnConfig(k=k, memory_limit="1MB"))
    enough = re.search(r"--memory-limit (\d+MB)", str(caught.value))
    assert enough is not None
    assert build_knn(tmp_path, KnnConfig(k=k, memory_limit=enough[1])).k == k


def test_refused_memory_limit_leaves_the_finished_stage_alone(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(300, 8))
    build_knn(tmp_path, KnnConfig(k=5))
    with pytest.raises(ResourceError):
        build_knn(tmp_path, KnnConfig(k=6, overwrite=True, memory_limit="1kB"))
    assert Manifest.load(tmp_path).stages["knn"].config["k"] == 5


def test_embeddings_are_mapped_where_they_take_over_half_of_the_limit() -> None:
    layout = Layout(texts=1_000_000, dim=384, k=256, sketch_dim=64, shard_texts=65_536)
    assert plan_memory(layout, 1_000_000_000).mapped
    assert not plan_memory(layout, 4_000_000_000).mapped
    assert plan_memory(layout, 4_000_000_000, workers=2).mapped


def test_mapped_embeddings_give_the_same_bytes_and_leave_no_scratch_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = clustered_vectors(13_000, 32)
    for name in ("held", "mapped"):
        write_graph(tmp_path / name, vectors, shard_size=3_000)
    build_knn(tmp_path / "held", KnnConfig(k=20))
    used = []
    opened = search.all_vectors
    monkeypatch.setattr(search, "all_vectors", lambda *a, mapped: used.append(mapped) or opened(*a, mapped=True))
    build_knn(tmp_path / "mapped", KnnConfig(k=20, memory_limit="70MB"))
    assert used
    assert all_bytes(tmp_path / "mapped") == all_bytes(tmp_path / "held")
    assert not leftovers(tmp_path / "mapped")


def test_embedding_ids_that_do_not_run_on_are_refused_by_file(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(60, 8), shard_size=20)
    manifest = Manifest.load(tmp_path)
    files = manifest.stages["embed"].files
    first, second = (schemas.part_name(schemas.EMBEDDINGS, index) for index in (0, 1))
    (tmp_path / second).write_bytes((tmp_path / first).read_bytes())
    files[second] = replace(files[first], path=second)
    manifest.save(tmp_path)
    with pytest.raises(ArtifactError, match=r"part-00001.parquet: ids do not run from 20 to 39"):
        build_knn(tmp_path, KnnConfig(k=5))


_MEASURE = """
import resource, sys, threading
from pathlib import Path
from graphbuild.knn.config import KnnConfig; from graphbuild.knn.stage import build_knn
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
build_knn(Path(sys.argv[1]), KnnConfig(k=8))
before = peak()
build_knn(Path(sys.argv[2]), KnnConfig(k=64, memory_limit=sys.argv[3]))
print(peak() - before)
"""


@pytest.mark.slow
def test_peak_memory_stays_within_the_limit_beyond_the_mapped_embeddings(tmp_path: Path) -> None:
    # A search of the same kind first, small, so that libraries, kernels and allocator pools are not counted.
    write_graph(tmp_path / "small", clustered_vectors(12_400, 16), shard_size=12_400)
    vectors = clustered_vectors(40_000, 256, clusters=500)
    write_graph(tmp_path / "large", vectors, shard_size=4_000)
    limit = 200_000_000
    done = run_program(_MEASURE, tmp_path / "small", tmp_path / "large", limit)
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout)
    assert grown < limit + vectors.nbytes


@pytest.mark.slow
def test_killed_worker_costs_its_shard_and_the_bytes_are_the_same(tmp_path: Path) -> None:
    vectors = clustered_vectors(6_000, 32)
    for name in ("killed", "whole"):
        write_graph(tmp_path / name, vectors, shard_size=500)
    build_knn(tmp_path / "whole", KnnConfig(k=100))
    folder = tmp_path / "killed/knn"
    command = ["knn", "--k", "100", "--workers", "2", "--graph-dir", tmp_path / "killed"]
    with running(COMMAND, *command, said=tmp_path / "said") as process:
        victim = None
        while process.is_alive() and victim is None:
            receipt = next((receipt for path in folder.glob("part-*.arrow") if (receipt := receipt_of(path))), None)
            victim = receipt.facts["pid"] if receipt else None
            time.sleep(0.01)
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        process.join(120)
        assert process.exitcode == 0
    assert all_bytes(tmp_path / "killed") == all_bytes(tmp_path / "whole")


LONE = f"""
import os, time
from graphbuild.knn.engines import choose; from graphbuild.store import files
os.setsid()
choose.FEW_TEXTS = 0
write = files.write_json
def slow(path, value):
    time.sleep(0.05)
    write(path, value)
files.write_json = slow
{COMMAND}
"""
"""The command in a session of its own, with tiles for few texts, and slow enough to be killed between two shards."""


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.faults)])
def test_killed_client_resumes_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    # In tiles, pairs are scored once for both of their texts.
    monkeypatch.setattr("graphbuild.knn.engines.choose.FEW_TEXTS", 0)
    vectors = clustered_vectors(5_200, 32)
    for name in ("killed", "whole"):
        write_graph(tmp_path / name, vectors, shard_size=200)
    build_knn(tmp_path / "whole", KnnConfig(k=100))
    command = ["knn", "--k", "100", "--workers", workers, "--graph-dir", tmp_path / "killed"]
    with running(LONE, *command, said=tmp_path / "said") as process:
        while process.is_alive() and not (tmp_path / "killed/knn/part-00002.arrow").exists():
            time.sleep(0.01)
        assert process.pid is not None
        os.killpg(process.pid, signal.SIGKILL)
    assert "knn" not in Manifest.load(tmp_path / "killed").stages
    result = build_knn(tmp_path / "killed", KnnConfig(k=100))
    assert 1 <= result.reused_shards < 26
    assert all_bytes(tmp_path / "killed") == all_bytes(tmp_path / "whole")
    assert not leftovers(tmp_path / "killed")


def test_scratch_file_holds_the_embeddings_and_is_gone_afterwards(tmp_path: Path) -> None:
    vectors = clustered_vectors(90, 8)
    write_graph(tmp_path, vectors, shard_size=40)
    with all_vectors(tmp_path, vectors.shape, mapped=True) as (mapped, path):
        assert path is not None
        assert path.exists()
        np.testing.assert_array_equal(mapped, vectors)
    assert not path.exists()
