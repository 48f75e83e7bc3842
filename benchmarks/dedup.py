"""Near-duplicates beside semhash: time and agreement, `python -m benchmarks.dedup GRAPH_DIR [--threshold 0.95]`.

Both get the graph's texts and its stored vectors, so that neither time has embedding in it, and the same threshold. semhash
searches its index (usearch, approximate) and chooses among what it finds; `graphbuild dedup` reads stored neighbours, so that
the exact search stands in a line of its own. What either kept is held against all stored pairs.

Shape letters: N texts, E stored pairs at or above the threshold, K neighbours stored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from benchmarks.__main__ import conditions
from graphbuild.knn.engines.choose import make_engine, required_memory
from graphbuild.quality.curate.dedup import duplicate_keepers, find_duplicates
from graphbuild.store import schemas
from graphbuild.store.arrays import Bool
from graphbuild.store.files import ShardRange
from graphbuild.store.frames import Frames
from graphbuild.system.memory import resolve_limit

_WARM_UP_TEXTS = 8192


def measure(graph_dir: Path, threshold: float) -> Iterator[str]:
    """Yield the lines of the table for a graph, each when it is known."""
    tables = Frames(graph_dir)
    texts = tables.texts.select(schemas.TEXT).collect().to_series().to_list()
    vectors_ND = tables.graph.embeddings()
    pairs_E2 = _pairs(tables, threshold)
    yield f"{conditions()}; {len(texts):,} texts, threshold {threshold:g}, semhash {metadata.version('semhash')}, vectors given"
    yield f"{'':40} {'seconds':>8} {'of CPU':>8} {'dropped':>8} {'kept pairs at the threshold':>28}"
    # The first call of a process compiles, or reads what was compiled.
    find_duplicates(graph_dir, None, threshold=threshold)
    spent, _ = _timed(lambda: find_duplicates(graph_dir, None, threshold=threshold))
    ours_N = duplicate_keepers(tables, threshold)[0] < 0
    yield f"{'graphbuild dedup, on stored neighbours':40} {spent} {(~ours_N).sum():8,} {_left(pairs_E2, ours_N):28,}"
    spent, peer_N = _timed(lambda: _semhash(texts, vectors_ND.astype(np.float32), threshold))
    yield f"{'semhash, index and self_deduplicate':40} {spent} {(~peer_N).sum():8,} {_left(pairs_E2, peer_N):28,}"
    yield (
        f"dropped by both {(~ours_N & ~peer_N).sum():,}, by graphbuild alone {(~ours_N & peer_N).sum():,}, "
        f"by semhash alone {(ours_N & ~peer_N).sum():,}"
    )
    few_nD = np.ascontiguousarray(vectors_ND[:_WARM_UP_TEXTS])
    _search(few_nD, min(tables.graph.k, len(few_nD) - 1))
    spent, _ = _timed(lambda: _search(np.ascontiguousarray(vectors_ND), tables.graph.k))
    yield f"{f'exact search, k = {tables.graph.k}':40} {spent}"


def _timed(work: Callable[[], Any]) -> tuple[str, Any]:
    """Seconds by the clock and of CPU, as the table has them; and what was found."""
    start, before = time.perf_counter(), time.process_time()
    found = work()
    return f"{time.perf_counter() - start:8.1f} {time.process_time() - before:8.1f}", found


def _search(vectors_ND: npt.NDArray[np.float16], k: int) -> int:
    count, dim = vectors_ND.shape
    limit = max(resolve_limit(None), required_memory(count, dim, k))
    engine = make_engine(vectors_ND, k=k, memory_limit=limit)
    return sum(len(found.ids_nK) for found in engine.search([ShardRange(0, 0, count)]))


def _semhash(texts: list[str], vectors_ND: npt.NDArray[np.float32], threshold: float) -> Bool:
    from semhash import SemHash

    class GivenVectors:
        """An encoder that is never asked: every vector was given."""

        def encode(self, inputs: Any, **options: Any) -> npt.NDArray[np.float32]:
            raise AssertionError(f"{len(inputs)} texts were to be embedded again, {options}")

    made = SemHash.from_embeddings(vectors_ND, texts, GivenVectors())
    selected = set(made.self_deduplicate(threshold=threshold).selected)
    return np.fromiter((text in selected for text in texts), np.bool_, len(texts))


def _pairs(tables: Frames, threshold: float) -> npt.NDArray[np.int32]:
    """Return all stored pairs at or above a similarity, each once; (E, 2)."""
    found = []
    for first, rows in tables.graph.shard_rows():
        at, rank = np.nonzero(rows.similarities.astype(np.float32) >= np.float32(threshold))
        ends = np.stack([at + first, rows.neighbor_ids[at, rank]], axis=1)
        found.append(np.sort(ends, axis=1))
    return np.unique(np.concatenate(found), axis=0).astype(np.int32)


def _left(pairs_E2: npt.NDArray[np.int32], kept_N: Bool) -> int:
    """Return how many of the pairs were kept whole."""
    return int(kept_N[pairs_E2].all(axis=1).sum())


@click.command()
@click.argument("graph_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--threshold", type=float, default=0.95, show_default=True)
def main(graph_dir: Path, threshold: float) -> None:
    """Print the table for a graph with neighbours."""
    try:
        metadata.version("semhash")
    except metadata.PackageNotFoundError:
        raise click.ClickException("semhash is missing. Install it: `uv pip install semhash`.") from None
    for line in measure(graph_dir, threshold):
        click.echo(line)


if __name__ == "__main__":
    main()
