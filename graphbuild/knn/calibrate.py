"""How fast the search is on this machine, measured on some of the vectors in a few seconds.

Shape letters: N texts, n texts of a trial, K neighbours kept, D vector width.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from graphbuild.knn.engines.base import Engine
from graphbuild.knn.engines.choose import in_row_blocks
from graphbuild.knn.engines.coding import Coding
from graphbuild.knn.engines.gpu.engine import DeviceEngine
from graphbuild.knn.engines.group import RERANKING_PAIRS
from graphbuild.knn.engines.rowblocks import RowBlockEngine
from graphbuild.knn.engines.tiles import TileEngine
from graphbuild.knn.engines.widths import choose_coding
from graphbuild.store.files import shard_ranges

_WARM_TEXTS = 2048
"""Texts of the trial that is not timed: it loads the kernels."""
_TRIAL_TEXTS = 8192
_MOST_TEXTS = 65_536
_TRIAL_ROWS = 256


@dataclass(frozen=True, slots=True)
class Rates:
    """What a search costs here."""

    precision: str
    pairs_per_second: float
    """Pairs of texts scored, with next to no candidates among them."""
    row_seconds: float
    """What keeping and re-ranking the candidates adds for each text."""
    coding: Coding | None = None
    """How the tile engine is to shorten the vectors."""

    def seconds(self, pairs: int, rows: int) -> float:
        """Return the expected time of a search that scores so many pairs for so many texts."""
        return pairs / self.pairs_per_second + rows * self.row_seconds


def calibrate(
    sample_nD: NDArray[np.float16],
    *,
    count: int,
    k: int,
    memory_limit: int,
    seconds: float,
    device: str = "cpu",
    coding: Coding | None = None,
) -> Rates:
    """Measure the engine that `make_engine` would choose for `count` texts.

    The rate of scoring comes from a search for one neighbour, among as many random texts as fit the time; what a row costs
    comes from a search for all K, less its scoring. Fewer texts make K neighbours a larger share of them, and the first
    limits coarser, so the second figure is rather too high than too low.

    Args:
        sample_nD: Some of the vectors; the more, the better.
        count: N.
        k: Neighbours a text, at least 1.
        memory_limit: Of the engine.
        seconds: About how long to measure by searching; 0 for what the choice of a coding tells of the tile engine.
        device: As for `make_engine`.
        coding: Of the tile engine, where an earlier calibration chose it.
    """
    if device != "cpu":
        return _calibrate_device(sample_nD, min(k, len(sample_nD) - 1), memory_limit, device)
    if in_row_blocks(count, k):
        engine = RowBlockEngine(sample_nD, k=min(k, len(sample_nD) - 1), memory_limit=memory_limit)
        return _calibrate_rows(engine, len(sample_nD), seconds)
    if coding is None:
        choice = choose_coding(sample_nD, k, count=count)
        coding = choice.coding
        if not seconds:
            pair_seconds = choice.pair_seconds / torch.get_num_threads()
            return Rates(coding.name(sample_nD.shape[1]), 1 / pair_seconds, RERANKING_PAIRS * pair_seconds, coding)
    trial_nD = _some(sample_nD, _TRIAL_TEXTS)
    _timed(_tile_engine(trial_nD[:_WARM_TEXTS], 1, memory_limit, coding), _WARM_TEXTS)
    spent = _timed(_tile_engine(trial_nD, 1, memory_limit, coding), len(trial_nD))
    # Half of the time for each of two trials; that of this one grows with the square of the texts.
    most = min(_MOST_TEXTS, memory_limit // (8 * sample_nD.shape[1]))
    large_nD = _some(sample_nD, min(most, int(_TRIAL_TEXTS * np.sqrt(max(1.0, seconds / 2 / spent)))))
    scoring = _tile_engine(large_nD, 1, memory_limit, coding)
    rate = scoring.pairs(shard_ranges(len(large_nD), len(large_nD))) / _timed(scoring, len(large_nD))
    rows_nD = trial_nD[: _WARM_TEXTS if seconds < 1 else _TRIAL_TEXTS]
    keeping = _tile_engine(rows_nD, min(k, len(rows_nD) // 4), memory_limit, coding)
    pairs = keeping.pairs(shard_ranges(len(rows_nD), len(rows_nD)))
    row_seconds = max(0.0, _timed(keeping, len(rows_nD)) - pairs / rate) / len(rows_nD)
    return Rates(scoring.precision, rate, row_seconds, coding)


def _tile_engine(vectors_nD: NDArray[np.float16], k: int, memory_limit: int, coding: Coding) -> TileEngine:
    count, dim = vectors_nD.shape
    limit = max(memory_limit - vectors_nD.nbytes, TileEngine.required_memory(count, dim, k))
    return TileEngine(vectors_nD, k=k, memory_limit=limit, precision=coding)


def _timed(engine: Engine, count: int) -> float:
    started = time.perf_counter()
    for _ in engine.search(shard_ranges(count, count)):
        pass
    return time.perf_counter() - started


def _calibrate_device(sample_nD: NDArray[np.float16], k: int, memory_limit: int, device: str) -> Rates:
    """By a search of the whole sample, made twice: the engine tells what a pair took by the way that it chose."""
    count = len(sample_nD)
    engine = DeviceEngine(sample_nD, k=k, memory_limit=memory_limit, device=device)
    for _ in range(2):
        started = time.perf_counter()
        (found,) = engine.search(shard_ranges(count, count))
        spent = time.perf_counter() - started
    told = found.facts.get("picoseconds", {}).get(found.facts["way"])
    rate = 1e12 / told if told else count**2 / spent
    return Rates(engine.precision, rate, max(0.0, spent - count**2 / rate) / count)


def _calibrate_rows(engine: Engine, count: int, seconds: float) -> Rates:
    """For engines that score each row against all texts, re-ranking included."""
    rows = min(_TRIAL_ROWS, count)
    _timed(engine, min(rows, 2))
    while True:
        spent = _timed(engine, rows)
        if spent > seconds / 4 or rows == count:
            return Rates(engine.precision, rows * count / spent, 0.0)
        rows = min(count, 4 * rows)


def _some(vectors_ND: NDArray[np.float16], count: int) -> NDArray[np.float16]:
    """A random part of the vectors, in memory, in order of text id."""
    chosen = np.sort(np.random.default_rng(0).choice(len(vectors_ND), min(count, len(vectors_ND)), replace=False))
    return np.ascontiguousarray(vectors_ND[chosen])
