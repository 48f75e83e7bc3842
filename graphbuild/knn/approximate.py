"""Approximate search through the FAISS index: candidates from the lists nearest to each text, re-ranked exactly.

Shape letters: N texts, n rows of a block, s rows of the sample, M candidates a row, K neighbours kept, D vector width.
How many lists are probed is settled on a random sample of texts, against an exact search.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphbuild.errors import ResourceError
from graphbuild.knn.engines.base import Advance, Neighbors, ignore_progress
from graphbuild.knn.engines.rowblocks import RowBlockEngine
from graphbuild.knn.engines.threads import threads
from graphbuild.knn.kernels import exact
from graphbuild.store import schemas
from graphbuild.store.files import ShardRange
from graphbuild.system.progress import progress

_MARGIN = 32
"""Candidates beyond K: FAISS orders by float32 sums, and each text is among its own."""
_SAMPLE = 2000
_BLOCK = 4096
_CHUNK = 256
_NORMAL_95 = 1.959964
_ESTIMATE_PAIRS = 400_000_000
"""Pairs that an estimate may score to know the truth: a second or two."""
_ESTIMATE_ROWS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Recall:
    """What a number of probed lists was measured to find, on a random sample of texts."""

    nprobe: int
    lists: int
    target: float
    rows: int
    by_similarity: float
    """Share of the neighbours found whose exact similarity reaches the exact K-th, less `schemas.EXCHANGEABLE`."""
    by_id: float
    """Share of the exact neighbours that were found."""
    interval: tuple[float, float]
    """95 % confidence interval of `by_similarity`."""

    @property
    def reached(self) -> bool:
        """Whether the target is met: by the lower end of the interval, or simply where every list is probed."""
        return self.interval[0] >= self.target or (self.nprobe == self.lists and self.by_similarity >= self.target)

    def summary(self) -> str:
        """Return a line for people."""
        low, high = self.interval
        return (
            f"ivf: {self.nprobe} of {self.lists} lists probed; recall on {self.rows:,} random texts {self.by_similarity:.4f} by "
            f"similarity (95 % interval {low:.4f} to {high:.4f}), {self.by_id:.4f} by id; target {self.target}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return what the manifest records of it."""
        return {**asdict(self), "interval": list(self.interval)}


def wilson_interval(share: float, trials: float) -> tuple[float, float]:
    """Return the 95 % score interval of a binomial share (Wilson 1927, Journal of the American Statistical Association 22:209).

    `scipy.stats.binomtest` takes whole numbers of trials; those of a cluster sample are not.
    """
    z2 = _NORMAL_95**2
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _NORMAL_95 / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def recall_interval(shares_s: NDArray[np.float64]) -> tuple[float, float]:
    """Return Wilson's interval of a mean of shares of rows.

    The neighbours of one row are found or missed together, so they do not count as so many trials: the number of trials is
    p(1-p) over the variance of the mean, as in cluster samples (Kish 1965, Survey Sampling, section 8.2).
    """
    mean, rows = float(shares_s.mean()), len(shares_s)
    variance = float(shares_s.var(ddof=1)) / rows if rows > 1 else 0.0
    trials = mean * (1 - mean) / variance if variance > 0 else rows
    return wilson_interval(mean, max(1.0, trials))


class IvfEngine:
    """Search among the texts of the lists nearest to each text."""

    precision = "float32"

    def __init__(
        self, vectors_ND: NDArray[np.float16], index_file: Path, *, k: int, memory_limit: int, recall: float, sample: int = _SAMPLE
    ) -> None:
        """Open the index and settle how many lists to probe.

        Args:
            vectors_ND: Unit vectors, C order; may be a memory map.
            index_file: An inverted-file index over them, by text id.
            k: Neighbours a text, 1 to N-1.
            memory_limit: Bytes for the exact search of the sample, and of rows whose lists hold too few texts.
            recall: Share of the neighbours to be found.
            sample: Texts to measure on.

        Raises:
            ResourceError: If the target is not reached though every list is probed.
        """
        self._vectors_ND, self._bits_ND, self._k = vectors_ND, vectors_ND.view(np.int16), k
        self._index: Any = _open_index(index_file)
        self._wanted = min(k + 1 + _MARGIN, len(vectors_ND))
        self._exact = RowBlockEngine(vectors_ND, k=k, memory_limit=memory_limit)
        self.recall = self._choose(recall, min(sample, len(vectors_ND)))

    def pairs(self, ranges: Sequence[ShardRange]) -> int:
        """Return the number of pairs of texts that a search scores, about: probed lists are taken to be of average length."""
        return sum(map(len, ranges)) * self._row_pairs()

    def work(self, ranges: Sequence[ShardRange]) -> int:
        """Return all that a search tells `advance`; re-ranking is a part of each row."""
        return self.pairs(ranges)

    def search(self, ranges: Sequence[ShardRange], advance: Advance = ignore_progress) -> Iterator[Neighbors]:
        """Yield the neighbours of each range of texts, in turn."""
        for one in ranges:
            found = Neighbors(np.empty((len(one), self._k), np.int32), np.empty((len(one), self._k), np.float16), 0)
            recomputed = 0
            for first in range(0, len(one), _BLOCK):
                rows_n = np.arange(one.start + first, min(one.start + first + _BLOCK, one.stop))
                recomputed += self._search_block(rows_n, found, slice(first, first + len(rows_n)))
                advance(len(rows_n) * self._row_pairs())
            yield Neighbors(found.ids_nK, found.similarities_nK, recomputed)

    def _search_block(self, rows_n: NDArray[np.int64], found: Neighbors, at: slice) -> int:
        """Enter the neighbours of some rows; returns how many of them were searched exactly, for their lists hold too few."""
        found_nM = self._candidates(rows_n, self.recall.nprobe)
        # Rows leave themselves out, so their own ids may stand where nothing was found.
        ids_nM: NDArray[np.int32] = np.where(found_nM < 0, rows_n[:, None], found_nM).astype(np.int32)
        short_n = (ids_nM != rows_n[:, None]).sum(axis=1) < self._k
        kept = np.flatnonzero(~short_n)
        ids_nK, bits_nK = np.empty((len(kept), self._k), np.int32), np.empty((len(kept), self._k), np.int16)
        kth_n = np.empty(len(kept))

        def finish(_thread: int, part: slice) -> None:
            rows = kept[part]
            exact.finish_rows(self._bits_ND, rows_n[rows], ids_nM[rows], ids_nK[part], bits_nK[part], kth_n[part])

        with threads() as pool:
            pool.run([slice(first, first + _CHUNK) for first in range(0, len(kept), _CHUNK)], finish)
        found.ids_nK[at][kept], found.similarities_nK[at][kept] = ids_nK, bits_nK.view(np.float16)
        short = np.flatnonzero(short_n)
        if len(short):
            again = self._exact.search_rows(rows_n[short])
            found.ids_nK[at][short], found.similarities_nK[at][short] = again.ids_nK, again.similarities_nK
        return len(short)

    def _row_pairs(self) -> int:
        return int(self._index.nlist) + len(self._vectors_ND) * self.recall.nprobe // int(self._index.nlist)

    def _candidates(self, rows_n: NDArray[np.int64], nprobe: int) -> NDArray[np.int64]:
        self._index.nprobe = nprobe
        ids_nM: NDArray[np.int64] = self._index.search(self._vectors_ND[rows_n].astype(np.float32), self._wanted)[1]
        return ids_nM

    def _choose(self, target: float, sample: int) -> Recall:
        """The fewest lists, by doubling, that reach the target on a sample."""
        rows_s = np.sort(np.random.default_rng(0).choice(len(self._vectors_ND), sample, replace=False))
        lists = int(self._index.nlist)
        with progress("choosing lists", sample * len(self._vectors_ND), unit="pairs") as meter:
            truth_sK = self._exact.search_rows(rows_s, meter.advance).ids_nK
        nprobe = 1
        while True:
            measured = self._measure(rows_s, truth_sK, nprobe, target)
            if measured.reached:
                return measured
            if nprobe == lists:
                raise ResourceError(
                    f"the index reaches a recall of {measured.by_similarity:.4f} with all {lists} lists probed, less than --recall "
                    f"{target}. Use --method exact, or build the index again with `graphbuild embed`."
                )
            nprobe = min(2 * nprobe, lists)

    def _measure(self, rows_s: NDArray[np.int64], truth_sK: NDArray[np.int32], nprobe: int, target: float) -> Recall:
        by_similarity, by_id = np.empty(len(rows_s)), np.empty(len(rows_s))
        for i, (row, candidates_M) in enumerate(zip(rows_s, self._candidates(rows_s, nprobe), strict=True)):
            own_D = self._vectors_ND[row].astype(np.float64)
            kth = (self._vectors_ND[truth_sK[i]].astype(np.float64) @ own_D).min()
            ids_M = candidates_M[(candidates_M >= 0) & (candidates_M != row)]
            similarities_M = self._vectors_ND[ids_M].astype(np.float64) @ own_D
            best = np.lexsort((ids_M, -similarities_M))[: self._k]
            by_similarity[i] = (similarities_M[best] >= kth - schemas.EXCHANGEABLE).sum() / self._k
            by_id[i] = np.isin(truth_sK[i], ids_M[best]).mean()
        return Recall(
            nprobe=nprobe,
            lists=int(self._index.nlist),
            target=target,
            rows=len(rows_s),
            by_similarity=round(float(by_similarity.mean()), 6),
            by_id=round(float(by_id.mean()), 6),
            interval=recall_interval(by_similarity),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class IvfEstimate:
    """What a search through the index is expected to take, by a few texts."""

    nprobe: int
    lists: int
    rows: int
    """Texts that it was measured on."""
    recall: float
    """Share of their exact neighbours that were found."""
    seconds: float
    """For all texts; settling the number of lists comes on top."""

    def line(self) -> str:
        """Return the estimate in one line."""
        return (
            f"ivf instead: about {self.seconds:,.0f} s with {self.nprobe:,} of {self.lists:,} lists probed, a recall of "
            f"{self.recall:.3f} on {self.rows:,} texts (--method ivf measures it properly)"
        )


def estimate_ivf(index_file: Path, queries_nD: NDArray[np.float16], *, k: int, recall: float, texts: int) -> IvfEstimate:
    """Time a search through the index on some of its texts, with as many lists as they need.

    Args:
        index_file: An inverted-file index.
        queries_nD: Texts of the index, the more the better; a part is taken.
        k: Neighbours a text.
        recall: Share of the neighbours to be found.
        texts: N.
    """
    index = _open_index(index_file)
    lists = int(index.nlist)
    queries_nD = queries_nD[: max(8, min(_ESTIMATE_ROWS, _ESTIMATE_PAIRS // texts))].astype(np.float32)
    index.nprobe = lists
    truth_nK = index.search(queries_nD, k + 1)[1]
    nprobe = 1
    while True:
        index.nprobe = nprobe
        started = time.perf_counter()
        found_nK = index.search(queries_nD, k + 1)[1]
        seconds = (time.perf_counter() - started) / len(queries_nD) * texts
        shares = [np.isin(truth_K, found_K).mean() for truth_K, found_K in zip(truth_nK, found_nK, strict=True)]
        if np.mean(shares) >= recall or nprobe == lists:
            return IvfEstimate(nprobe=nprobe, lists=lists, rows=len(queries_nD), recall=float(np.mean(shares)), seconds=seconds)
        nprobe = min(2 * nprobe, lists)


def _open_index(path: Path) -> Any:
    """The index, mapped; on a GPU where FAISS finds one with room for it."""
    import faiss

    index: Any = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
    if getattr(faiss, "get_num_gpus", int)() == 0:
        return index
    try:
        return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, faiss.read_index(str(path)))
    # What FAISS raises where the index does not fit, or its kind is not for GPUs, is a RuntimeError of any text.
    except RuntimeError:
        return index
