"""The exact neighbour graph against other ways to get one: `python -m benchmarks.knn [--graph-dir DIR] [--growth | --texts N]`.

Shape letters: N texts, K neighbours, D vector width.

Every contender joins the set with itself; `knn_peers` says how the others are timed. Rounds alternate; a round in which
`faiss.knn` is over 20 % off its median is void and made again, up to twice as many rounds. Recall is by similarity, on the
first texts: a neighbour counts if its exact similarity reaches the exact K-th, less 1e-6. Memory is the most that a search
held beyond what the process held before it (the vectors, in float16 and float32, among it).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import memory
from benchmarks.knn_ours import FIRST, as_command, on_cpu, on_gpu
from benchmarks.knn_peers import Contender, Ids, Recall, approximate_peers, exact_peers
from graphbuild.store import schemas
from graphbuild.store.embeddings import load_embeddings

_K = 256
_ROUNDS = 3
_VOID = 0.2
_GROWTH = (25_000, 50_000, 100_000, 180_000)
_GROWTH_K = (16, 64, 1024)


def run(*, small: bool = False, graph_dir: Path | None = None) -> str:
    """Measure every contender and return a table with the conditions.

    Args:
        small: Few synthetic vectors and one round: to see that it works, not how fast it is.
        graph_dir: Whose embeddings to search; synthetic clusters if None.
    """
    return _table(measure(small=small, graph_dir=graph_dir))


def measure(*, small: bool = False, graph_dir: Path | None = None) -> dict[str, Any]:
    """Measure the figures behind `run`'s table."""
    vectors_ND, what = _vectors(small, graph_dir)
    truth = _exact_similarities(vectors_ND, min(FIRST, len(vectors_ND)))
    contenders, absent = _contenders(vectors_ND, lambda ids: _recall(truth, ids))
    if graph_dir is not None:
        contenders.insert(2, Contender("graphbuild knn, whole command", as_command(graph_dir, _K)))
    wanted = 1 if small else _ROUNDS
    rounds = 0
    while rounds < wanted or (sum(_sound(contenders[0].seconds)) < wanted and rounds < 2 * wanted):
        rounds += 1
        for one in contenders:
            before = memory.reset_peak()
            seconds, ids = one.search()
            one.seconds.append(seconds)
            one.memory = max(one.memory, memory.status("VmHWM") - before)
            one.recall = _recall(truth, ids)
    rows = _rows(contenders, len(vectors_ND))
    return {"conditions": _conditions(vectors_ND, what), "rows": rows, "absent": absent, "rounds": rounds}


def growth(*, small: bool = False, graph_dir: Path | None = None) -> str:
    """Measure how the time grows with N and with K: ours and `faiss.knn`, in turn, the medians of three."""
    vectors_ND, what = _vectors(small, graph_dir)
    # A random order, so that the first n are a sample.
    vectors_ND = np.ascontiguousarray(vectors_ND[np.random.default_rng(0).permutation(len(vectors_ND))])
    sizes = [count for count in _GROWTH if count < len(vectors_ND)] + [len(vectors_ND)]
    lines = [
        f"growth, {what}; median of {_ROUNDS} in turn",
        "| N | K | seconds | Gpairs/s | times faiss.knn |",
        "|---:|---:|---:|---:|---:|",
    ]
    for count, k in [(count, _K) for count in sizes] + [(sizes[-1], k) for k in _GROWTH_K]:
        some_nD = vectors_ND[:count]
        ours, (reference, *_) = on_cpu(some_nD, k, "auto"), exact_peers(some_nD.astype(np.float32), k)
        pairs = [(ours()[0], reference.search()[0]) for _ in range(_ROUNDS)]
        seconds = statistics.median(own for own, _ in pairs)
        ratio = statistics.median(theirs / own for own, theirs in pairs)
        lines.append(f"| {count:,} | {k} | {seconds:.2f} | {count**2 / seconds / 1e9:.2f} | {ratio:.2f} |")
    return "\n".join(lines)


def scale(texts: int, memory_limit: int, *, only: int | None = None) -> str:
    """Time one search of many synthetic texts, mapped from a file, under a memory limit; then a part of `faiss.knn`'s, scaled up.

    Args:
        texts: N.
        memory_limit: Bytes; what does not fit is searched in groups of rows.
        only: Search for the neighbours of so many of the first texts, among all.
    """
    from graphbuild.knn.engines.tiles import TileEngine
    from graphbuild.store.files import shard_ranges

    with tempfile.TemporaryDirectory(prefix="bench-knn-") as folder:
        path = Path(folder) / "vectors.npy"
        np.save(path, clustered_vectors(texts, 384))
        vectors_ND: NDArray[np.float16] = np.load(path, mmap_mode="r")
        before = memory.reset_peak()
        started, cpu = time.perf_counter(), time.process_time()
        engine = TileEngine(vectors_ND, k=_K, memory_limit=memory_limit)
        ranges = shard_ranges(only or texts, 65_536)
        again = sum(found.recomputed for found in engine.search(ranges))
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        held = memory.status("VmHWM") - before - vectors_ND.nbytes
        print(f"{seconds:,.0f} s, {held / 1e9:.2f} GB; and now a part of faiss.knn", file=sys.stderr)
        # It answers query by query: as long for each of few as for each of all.
        reference = exact_peers(vectors_ND.astype(np.float32), _K)[0].search()[0] * (only or texts) / texts
    pairs = texts * (only or texts)
    return (
        f"{only or texts:,} of {texts:,} x {vectors_ND.shape[1]} synthetic clusters, k {_K}, {engine.precision}, limit "
        f"{memory_limit / 1e9:.1f} GB: {seconds:,.0f} s ({cpu:,.0f} s of CPU), {pairs / seconds / 1e9:.2f} G pairs/s, "
        f"{reference / seconds:.2f} times faiss.knn; {engine.pairs(ranges) / pairs:.2f} of them scored, {again:,} rows again; "
        f"{held / 1e9:.2f} GB beyond the mapped vectors"
    )


def _vectors(small: bool, graph_dir: Path | None) -> tuple[NDArray[np.float16], str]:
    """Unit vectors (N, D), and what they are."""
    if graph_dir is not None:
        return load_embeddings(graph_dir), f"embeddings of {graph_dir.name}"
    return clustered_vectors(16_384 if small else 1_000_000, 384), "synthetic clusters"


def clustered_vectors(count: int, dim: int, *, seed: int = 0) -> NDArray[np.float16]:
    """Draw unit vectors around 1,000 random centres."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((1000, dim), np.float32)
    vectors_ND = np.empty((count, dim), np.float16)
    for start in range(0, count, 65_536):
        part = centres[rng.integers(1000, size=min(65_536, count - start))]
        part = part + rng.standard_normal(part.shape, np.float32)
        vectors_ND[start : start + len(part)] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return vectors_ND


def _contenders(vectors_ND: NDArray[np.float16], recall: Recall) -> tuple[list[Contender], list[str]]:
    """`faiss.knn` first, and a line for each peer that is not installed."""
    import torch

    wide_ND = vectors_ND.astype(np.float32)
    names = {"graphbuild": "auto", "graphbuild float32": "float32"}
    ours = [Contender(name, on_cpu(vectors_ND, _K, precision)) for name, precision in names.items()]
    absent = []
    if torch.cuda.is_available():
        ours.append(Contender("graphbuild cuda", on_gpu(vectors_ND, _K)))
    else:
        absent.append("graphbuild cuda: not measured, for there is no GPU here")
    peers, missing = approximate_peers(wide_ND, _K, recall)
    reference, *others = exact_peers(wide_ND, _K)
    return [reference, *ours, *others, *peers], absent + missing


def _exact_similarities(vectors_ND: NDArray[np.float16], rows: int) -> NDArray[np.float64]:
    wide_rD = vectors_ND[:rows].astype(np.float64)
    parts = [wide_rD @ vectors_ND[start : start + 65_536].astype(np.float64).T for start in range(0, len(vectors_ND), 65_536)]
    return np.concatenate(parts, axis=1)


def _recall(exact_rN: NDArray[np.float64], ids: Ids) -> float:
    hits = []
    for row, (exact_N, found) in enumerate(zip(exact_rN, ids, strict=False)):
        others = np.delete(exact_N, row)
        kth = np.partition(others, len(others) - _K)[len(others) - _K]
        kept = found[(found != row) & (found >= 0)][:_K]
        hits.append((exact_N[kept] >= kth - schemas.EXCHANGEABLE).sum() / _K)
    return float(np.mean(hits))


def _sound(reference: list[float]) -> list[bool]:
    """Which rounds count: the machine was about as fast as in most."""
    # One of the rounds, so that at least that one counts.
    middle = statistics.median_low(reference)
    return [abs(seconds - middle) <= _VOID * middle for seconds in reference]


def _rows(contenders: list[Contender], count: int) -> list[dict[str, Any]]:
    """Medians over the rounds that are not void."""
    reference = contenders[0].seconds
    valid = _sound(reference)
    rows = []
    for one in contenders:
        kept = [seconds for seconds, sound in zip(one.seconds, valid, strict=True) if sound]
        ratios = [theirs / ours for theirs, ours, sound in zip(reference, one.seconds, valid, strict=True) if sound]
        rows.append(
            {
                "name": one.name,
                "seconds": statistics.median(kept),
                "range": [min(kept), max(kept)],
                "gigapairs_per_second": count**2 / statistics.median(kept) / 1e9,
                "times_faiss": statistics.median(ratios),
                "recall": one.recall,
                "memory_bytes": one.memory,
                "rounds": len(kept),
            }
        )
    return rows


def _conditions(vectors_ND: NDArray[np.float16], what: str) -> dict[str, Any]:
    import faiss
    import torch

    from graphbuild.knn.engines.widths import choose_coding

    return {
        "vectors": what,
        "texts": len(vectors_ND),
        "dim": vectors_ND.shape[1],
        "k": _K,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "precision": choose_coding(vectors_ND, _K).coding.name(vectors_ND.shape[1]),
        "machine": platform.machine(),
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "faiss": faiss.__version__,
    }


def _table(result: dict[str, Any]) -> str:
    lines = ["exact neighbours: " + ", ".join(f"{key} {value}" for key, value in result["conditions"].items())]
    void = result["rounds"] - result["rows"][0]["rounds"]
    lines[0] += f"; {result['rounds']} rounds, {void} void"
    lines.append(f"{'':26}{'seconds':>10}{'range':>20}{'Gpairs/s':>10}{'x faiss':>9}{'recall':>9}{'MB':>9}{'rounds':>8}")
    for row in result["rows"]:
        low, high = row["range"]
        held = f"{row['memory_bytes'] / 1e6:,.0f}" if row["memory_bytes"] else ""
        lines.append(
            f"{row['name']:26}{row['seconds']:10.2f}{f'{low:.2f} to {high:.2f}':>20}{row['gigapairs_per_second']:10.2f}"
            f"{row['times_faiss']:9.2f}{row['recall']:9.5f}{held:>9}{row['rounds']:8}"
        )
    return "\n".join(lines + result["absent"])


def main() -> None:
    """Run `python -m benchmarks.knn`."""
    parser = argparse.ArgumentParser(description="The exact neighbour graph against its peers.")
    parser.add_argument("--small", action="store_true", help="few vectors, one round")
    parser.add_argument("--graph-dir", type=Path, default=None, help="embeddings to search (default: 1 M synthetic vectors)")
    parser.add_argument("--growth", action="store_true", help="how the time grows with N and K, in place of the peers")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--texts", type=int, default=None, help="one search of so many synthetic texts, in place of the peers")
    parser.add_argument("--only", type=int, default=None, help="with --texts: neighbours of the first so many alone")
    parser.add_argument("--memory-limit", type=float, default=8.0, help="with --texts: GB (default: %(default)s)")
    options = parser.parse_args()
    if options.texts and (options.small or options.graph_dir or options.growth or options.json):
        parser.error("--texts goes with --only and --memory-limit alone")
    if options.texts:
        print(scale(options.texts, round(options.memory_limit * 1e9), only=options.only))
        return
    if options.growth:
        print(growth(small=options.small, graph_dir=options.graph_dir))
        return
    result = measure(small=options.small, graph_dir=options.graph_dir)
    print(json.dumps(result) if options.json else _table(result))


if __name__ == "__main__":
    main()
