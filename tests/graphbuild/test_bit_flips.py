"""Single bits flipped anywhere in a graph: named, harmless (the same answers) or repaired; never another answer, never a crash.

What reads runs in a process of its own for many flips at once; it writes down each outcome, so that a crash is seen, too.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_embed import embed, numbered_captions, write_captions
from helpers_forked import run_program

import graphbuild
from graphbuild.embed.nearest import NearestTexts
from graphbuild.errors import UserError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.store.graph import Graph
from graphbuild.targets.chunks import PartitionConfig
from graphbuild.targets.partition import build_partition, load_partition

CAPTIONS = numbered_captions(60)


@pytest.fixture(scope="module")
def graph_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flips")
    embed(folder / "g", write_captions(folder / "a.parquet", {"caption": CAPTIONS}), shard_size=25)
    build_knn(folder / "g", KnnConfig(k=5, sketch_dim=4))
    build_partition(folder / "g", PartitionConfig(chunk=8))
    return folder / "g"


def answers(graph_dir: Path) -> list[Any]:
    """What every kind of reader gives."""
    view, graph = graphbuild.open(graph_dir), Graph.open(graph_dir)
    near = NearestTexts.open(graph_dir)
    partition = load_partition(graph, PartitionConfig(chunk=8))
    rows = graph.rows(np.arange(graph.n_texts))
    return [
        rows.neighbor_ids.tolist(),
        rows.similarities.tolist(),
        rows.sketch.tolist(),
        rows.sketch_scale.tolist(),
        graph.sample_texts(["a.parquet:7", "a.parquet:59", "nobody"]).text_ids.tolist(),
        graph.sample_texts(["a.parquet:7", "a.parquet:59", "nobody"]).offsets.tolist(),
        graph.texts().to_pylist(),
        graph.embeddings().tolist(),
        [column.tolist() for column in graph.sample_rows()],
        partition.chunks.tolist(),
        partition.sample_rows.tolist(),
        view.texts.collect().rows(),
        view.samples.collect().rows(),
        near.find(CAPTIONS[3], count=4).to_json(),
        near.find("a dog that nobody has seen", count=4).to_json(),
        graph.manifest.counts,
        graph.manifest.encoder,
        graph.manifest.dataset,
    ]


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def try_flips(graph_dir: Path, places: list[tuple[str, int]], outcomes: Path) -> None:
    """Write a line for each flip: what was said, or `same` or `OTHER`; the file is put back afterwards."""
    expected = json.dumps(answers(graph_dir))
    with outcomes.open("a") as stream:
        for name, bit in places:
            content = (graph_dir / name).read_bytes()
            flip(graph_dir / name, bit)
            try:
                outcome = "same" if json.dumps(answers(graph_dir)) == expected else "OTHER"
            except UserError as error:
                outcome = f"said: {error}"
            except Exception as error:
                outcome = f"BUG: {type(error).__name__}: {error}"
            (graph_dir / name).write_bytes(content)
            # A partition that was damaged is made again; then the old one need not be put back, but may be.
            print(json.dumps([name, bit, outcome]), file=stream, flush=True)


def draw_places(graph_dir: Path, count: int, seed: int) -> list[tuple[str, int]]:
    """Files in turn, so that small ones are as likely as large ones, and a bit of each."""
    rng = np.random.default_rng(seed)
    files = [path for path in sorted(graph_dir.rglob("*")) if path.is_file() and path.stat().st_size]
    names = [path.relative_to(graph_dir).as_posix() for path in files]
    return [
        (names[i % len(files)], int(rng.integers(8 * files[i % len(files)].stat().st_size)))
        for i in rng.permutation(max(count, len(files)))[:count]
    ]


TRY_FLIPS = f"""
import json, os, sys; from pathlib import Path
sys.path.insert(0, os.environ["PLACE"])
from {Path(__file__).stem} import try_flips
try_flips(Path(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3]))
"""


def outcomes_of(graph_dir: Path, tmp_path: Path, count: int, seed: int) -> list[tuple[str, int, str]]:
    """The outcomes of flips in a copy of a graph, read by a process that may crash; it is started again after one that does."""
    copy = shutil.copytree(graph_dir, tmp_path / "g")
    places = draw_places(copy, count, seed)
    file = tmp_path / "outcomes"
    file.touch()
    done: list[tuple[str, int, str]] = []
    while len(done) < count:
        process = run_program(TRY_FLIPS, copy, json.dumps(places[len(done) :]), file, PLACE=str(Path(__file__).parent))
        done = [tuple(json.loads(line)) for line in file.read_text().splitlines()]
        if process.returncode:
            if not process.stderr.strip() or process.returncode < 0:
                done.append((*places[len(done)], f"CRASH: {process.returncode}"))
                shutil.copyfile(graph_dir / done[-1][0], copy / done[-1][0])
                file.write_text("".join(json.dumps(one) + "\n" for one in done))
            else:
                raise AssertionError(process.stderr)
    return done


def require_nothing_silent(outcomes: list[tuple[str, int, str]]) -> None:
    bad = [one for one in outcomes if not (one[2] == "same" or one[2].startswith("said: "))]
    assert not bad, "\n".join(map(str, bad))
    unnamed = [one for one in outcomes if one[2].startswith("said: ") and one[0].split("/")[-1] not in one[2]]
    assert not unnamed, "\n".join(map(str, unnamed))


def test_forty_flips_are_named_harmless_or_repaired(graph_dir: Path, tmp_path: Path) -> None:
    outcomes = outcomes_of(graph_dir, tmp_path, 40, seed=0)
    require_nothing_silent(outcomes)
    assert sum(one[2].startswith("said: ") for one in outcomes) > 10


@pytest.mark.faults
def test_a_thousand_flips_are_named_harmless_or_repaired(graph_dir: Path, tmp_path: Path) -> None:
    require_nothing_silent(outcomes_of(graph_dir, tmp_path, 1_000, seed=np.random.SeedSequence().entropy % 2**32))  # type: ignore[operator]
