"""The exact search on one GPU, beside torch's product and `topk` and faiss's brute force: `python -m benchmarks.gpu`.

Shape letters: N texts, D vector width, K neighbours kept, R rows and C columns of a tile.

Vectors are made on the device: clusters whose spectrum falls as that of captions does (`spectral_clusters`). In one run of at most
`--minutes`: products alone and with the filter, for each shape of tile; then for each N the engine (twice: the first run compiles),
the same product with `topk`, and `faiss.knn_gpu`; some rows of the engine are compared with float64. Each figure is a line of the
file at once, so that a run that is cut off loses nothing; what fails is a line, too, and the others go on.

With `--device cpu` it runs small sizes anywhere, to see that it works; these times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphbuild.knn.engines.gpu import triton_steps
from graphbuild.knn.engines.gpu.choice import timed
from graphbuild.knn.engines.gpu.engine import DeviceEngine
from graphbuild.knn.engines.gpu.limits import room
from graphbuild.knn.engines.gpu.lists import Columns, Lists, Steps
from graphbuild.knn.engines.gpu.settle import settle
from graphbuild.knn.engines.gpu.tiles import WIDEST, Buffers
from graphbuild.knn.engines.gpu.torch_steps import TorchSteps
from graphbuild.knn.engines.gpu.vectors import Vectors
from graphbuild.store.files import shard_ranges

_SIZES = (200_000, 1_000_000, 12_400_000)
_SMALL = (24_000,)
_PLENTY = 2_000_000
"""Above so many texts, peers are timed on a part of the rows and scaled up."""
_PART = 65_536
_CHECKED = 300
_MEDIAN_OF = 5
_TEXTS_A_CLUSTER = 50
_SAMPLE = 8192


class Report:
    """Figures as lines of JSON, written as they are found."""

    def __init__(self, path: Path, minutes: float) -> None:
        self._path, self._end = path, time.perf_counter() + 60 * minutes
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("", encoding="utf-8")

    def left(self) -> float:
        """Return the seconds that are left."""
        return self._end - time.perf_counter()

    def say(self, what: str, **facts: Any) -> None:
        """Write a line."""
        line = json.dumps({"what": what, **facts})
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(f"{line}\n")
        print(line, flush=True)

    def attempt(self, what: str, work: Callable[[], dict[str, Any]], *, seconds: float = 0.0) -> dict[str, Any] | None:
        """Do it, if so many seconds are left, and write what came of it."""
        if self.left() < seconds:
            self.say(what, skipped=f"{self.left():.0f} s are left")
            return None
        try:
            facts = work()
        # What libraries and drivers raise cannot be listed, and the others are still to be measured.
        except Exception as problem:
            self.say(what, failed=f"{type(problem).__name__}: {str(problem)[:300]}")
            return None
        self.say(what, **facts)
        return facts


def spectral_clusters(count: int, dim: int, device: torch.device, *, seed: int = 0) -> Tensor:
    """Return unit vectors in clusters of about 50, in random order, whose k-th direction has a variance of about 1 / (k + 8)."""
    generator = torch.Generator(device=device).manual_seed(seed)
    scale_D = (torch.arange(dim, device=device) + 8.0).rsqrt()
    # No direction is an axis: coordinates alike in size, as an encoder's are.
    turn_DD = torch.linalg.qr(torch.randn(dim, dim, generator=generator, device=device)).Q
    centres = torch.randn(max(2, count // _TEXTS_A_CLUSTER), dim, generator=generator, device=device) * scale_D
    out = torch.empty((count, dim), dtype=torch.float16, device=device)
    for top in range(0, count, 262_144):
        rows = min(262_144, count - top)
        chosen = torch.randint(len(centres), (rows,), generator=generator, device=device)
        noise = torch.randn(rows, dim, generator=generator, device=device) * scale_D
        out[top : top + rows] = torch.nn.functional.normalize((centres[chosen] + 0.8 * noise) @ turn_DD).half()
    return out


def median_seconds(work: Callable[[], None], device: torch.device) -> float:
    """Measure the median of some runs, after one that is not counted."""
    work()
    return sorted(timed(work, device) for _ in range(_MEDIAN_OF))[_MEDIAN_OF // 2]


def tile_rates(vectors_ND: Tensor, k: int, rows: int, columns: int, steps: Steps) -> dict[str, Any]:
    """Time the product alone and the filter alone, for one shape of tile: picoseconds a pair that is scored."""
    device, count = vectors_ND.device, len(vectors_ND)
    buffers = Buffers(max(rows, columns // WIDEST), device, wide=False)
    own_RD, others_CD = vectors_ND[:rows], vectors_ND[count - columns :]
    scores_RC = buffers.product(own_RD, others_CD)
    lists = Lists.empty(rows + columns, room(k, deviations=8.5), device)
    # As after the last checkpoint: about twice K texts of all exceed a limit.
    rank = max(1, 2 * k * min(rows, columns) // count)
    lists.limits_n[:rows] = steps.first_limits(scores_RC[:, :_SAMPLE].contiguous(), rank)
    lists.limits_n[rows : rows + columns] = steps.first_limits(scores_RC[:_SAMPLE].T.contiguous(), rank)
    places = torch.arange(rows + columns, dtype=torch.int32, device=device)
    block = Columns(others_CD, places[rows:], rows)

    def enter() -> None:
        lists.counts_n.zero_()
        steps.enter(scores_RC, lists, 0, places[:rows], block)

    product = median_seconds(lambda: void(buffers.product(own_RD, others_CD)), device)
    return {
        "product_ps": product / scores_RC.numel() * 1e12,
        "tflops": 2 * vectors_ND.shape[1] * scores_RC.numel() / product / 1e12,
        "filter_ps": median_seconds(enter, device) / scores_RC.numel() * 1e12,
        "hits": int(lists.counts_n.sum()),
    }


def sweep_tiles(report: Report, vectors_ND: Tensor, k: int, tile: int) -> None:
    """Measure `tile_rates` for some shapes."""
    steps: Steps = triton_steps.TritonSteps() if triton_steps.usable(vectors_ND.device) else TorchSteps()
    for rows, columns in ((tile, tile), (tile, tile // 2), (tile, 2 * tile), (tile // 2, tile // 2)):
        report.attempt(f"tile {rows} x {columns}, {steps.name}", partial(tile_rates, vectors_ND, k, rows, columns, steps))


def engine_run(source_ND: NDArray[np.float16], k: int, device: str, way: str | None) -> dict[str, Any]:
    """Time one search, by the clock on the wall, the vectors' way to the device and the results' to the host included."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    engine = DeviceEngine(source_ND, k=k, memory_limit=2**34, device=device, way=way)
    opened, first, facts = 0, None, {}
    for found in engine.search(shard_ranges(len(source_ND), 65_536)):
        opened += found.recomputed
        if first is None:
            first, facts = found, dict(found.facts)
    seconds = time.perf_counter() - started
    assert first is not None
    return {
        "seconds": seconds,
        "gigapairs_per_second": len(source_ND) ** 2 / seconds / 1e9,
        "open_rows": opened,
        "wrong_rows": wrong_rows(source_ND, first.ids_nK[:_CHECKED], first.similarities_nK[:_CHECKED], device),
        "checked_rows": min(_CHECKED, len(first.ids_nK)),
        "device_gigabytes": torch.cuda.max_memory_allocated() / 1e9 if device != "cpu" else None,
        **facts,
    }


def wrong_rows(source_ND: NDArray[np.float16], ids: NDArray[np.int32], similarities: NDArray[np.float16], device: str) -> int:
    """Count how many of the first rows differ from float64."""
    vectors = Vectors(source_ND, torch.device(device), resident=False)
    wanted_N = np.zeros(len(source_ND), np.bool_)
    wanted_N[: len(ids)] = True
    places = vectors.places(wanted_N)
    rows = vectors.texts(places)
    true_ids, true_similarities = settle(vectors, places.host, ids.shape[1], 2**31)
    differs = (true_ids != ids[rows]) | (true_similarities != similarities[rows])
    return int(differs.any(axis=1).sum())


def product_and_topk(vectors_ND: Tensor, k: int) -> dict[str, Any]:
    """Time the same product and its best K + 1, which is not exact; a part of the rows, scaled up."""
    rows, columns = min(4096, len(vectors_ND)), min(_PART, len(vectors_ND))
    part, some = vectors_ND[:rows], vectors_ND[:columns]
    seconds = median_seconds(lambda: void((part @ some.T).topk(k + 1, dim=1)), vectors_ND.device)
    each = seconds / (rows * columns)
    return {"seconds": each * len(vectors_ND) ** 2, "ps": each * 1e12}


def faiss_on_gpu(vectors_ND: Tensor, k: int) -> dict[str, Any]:
    """Time `faiss.knn_gpu` with float16 vectors, by inner product; a part of the queries where there are many texts."""
    import faiss
    import faiss.contrib.torch_utils

    resources = faiss.StandardGpuResources()
    queries = vectors_ND if len(vectors_ND) <= _PLENTY else vectors_ND[:_PART]

    def search() -> None:
        faiss.knn_gpu(resources, queries, vectors_ND, k + 1, metric=faiss.METRIC_INNER_PRODUCT)

    search()
    seconds = timed(search, vectors_ND.device)
    return {"seconds": seconds * len(vectors_ND) / len(queries), "queries": len(queries), "faiss": faiss.__version__}


def void(_result: object) -> None:
    """Do nothing with it."""


def measure(report: Report, sizes: list[int], k: int, dim: int, device: str, way: str | None) -> None:
    """Measure all of it, for each N in turn."""
    place = torch.device(device)
    where = torch.cuda.get_device_name(place) if place.type == "cuda" else "CPU"
    report.say("conditions", device=where, torch=torch.__version__, k=k, dim=dim)
    for turn, count in enumerate(sizes):
        vectors_ND = spectral_clusters(count, dim, place)
        if turn == 0:
            sweep_tiles(report, vectors_ND, k, min(8192, 1 << (count // (2 * WIDEST)).bit_length() - 1))
        report.attempt(f"product and topk {count}", partial(product_and_topk, vectors_ND, k))
        if place.type == "cuda":
            report.attempt(f"faiss knn_gpu {count}", partial(faiss_on_gpu, vectors_ND, k), seconds=60)
        source_ND = vectors_ND.cpu().numpy()
        del vectors_ND
        expected = 20 + 3e-12 * count**2
        for run in range(2 if count <= _PLENTY else 1):
            report.attempt(f"engine {count}, run {run}", partial(engine_run, source_ND, k, device, way), seconds=expected)


def main() -> None:
    """Run `python -m benchmarks.gpu`."""
    parser = argparse.ArgumentParser(description="The exact search on a GPU, beside its peers.")
    parser.add_argument("--texts", type=int, action="append", help=f"sizes (default: {_SIZES} on a GPU, else {_SMALL})")
    parser.add_argument("--k", type=int, default=256, help="neighbours (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=384, help="vector width (default: %(default)s)")
    parser.add_argument("--device", default="cuda", help="as torch names it (default: %(default)s)")
    parser.add_argument("--way", choices=["sweep", "topk"], default=None, help="this one, instead of the faster one")
    parser.add_argument("--minutes", type=float, default=9.0, help="begin nothing that would take longer (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"), help="lines of JSON (default: %(default)s)")
    given = parser.parse_args()
    if given.device != "cpu" and not torch.cuda.is_available():
        parser.error("torch finds no GPU here; --device cpu runs small sizes")
    sizes = given.texts or list(_SMALL if given.device == "cpu" else _SIZES)
    measure(Report(given.out, given.minutes), sizes, given.k, given.dim, given.device, given.way)


if __name__ == "__main__":
    main()
