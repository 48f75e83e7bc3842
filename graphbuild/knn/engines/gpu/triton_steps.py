"""The steps of a search as Triton kernels, and whether they run here and find what torch finds.

Shape letters: t rows and C columns of a tile, M texts of a sample, W candidates a row has room for, K neighbours kept.
"""

from __future__ import annotations

import importlib.util
import os
from contextlib import nullcontext
from functools import cache

import numpy as np
import torch
from torch import Tensor

from graphbuild.knn.engines.gpu.lists import Best, Columns, Lists
from graphbuild.knn.engines.gpu.torch_steps import STEP_BYTES, TorchSteps
from graphbuild.knn.engines.gpu.vectors import Vectors

ROWS, CHUNK, PART = 8, 512, 64
"""Rows and columns that a program of the filter reads, by one warp, and columns of the part that it reads again."""
_MOST = 4096
"""Candidates of a row that fit the registers of a program; wider lists are left to torch."""
_EXACT_BLOCK, _EXACT_DEPTH = 16, 128
_TRIAL = (48, 160, 24)
"""Texts, vector width and neighbours of the trial by which `usable` decides."""


class TritonSteps:
    """One read of the scores, bisection, and float64 products beside the candidates."""

    name = "filter"

    def __init__(self, step_bytes: int = STEP_BYTES) -> None:
        self._torch = TorchSteps(step_bytes)

    def first_limits(self, scores_tM: Tensor, rank: int) -> Tensor:
        """Return the first limits, as `Steps` says, by Triton kernels."""
        from graphbuild.knn.kernels.filter import seed_limits

        rows, width = scores_tM.shape
        limits_t = torch.empty(rows, dtype=torch.int16, device=scores_tM.device)
        size = _power_of_2(width)
        seed_limits[(rows,)](
            scores_tM.view(torch.int16), limits_t, width, scores_tM.stride(0), rank, SIZE=size, num_warps=_warps(size, 2048)
        )
        return limits_t

    def enter(self, scores_tC: Tensor, lists: Lists, top: int, positions_t: Tensor, columns: Columns) -> None:
        """Enter the scores of a tile, as `Steps` says, by Triton kernels."""
        from graphbuild.knn.kernels.filter import filter_tile

        rows, width = scores_tC.shape
        both = columns.at is not None
        filter_tile[(-(-width // CHUNK), -(-rows // ROWS))](
            scores_tC, lists.limits_n.view(torch.float16), lists.counts_n, lists.ids_nW, lists.codes_nW.view(torch.float16),
            positions_t, columns.positions_C, top, columns.at or 0, rows, width, scores_tC.stride(0), lists.ids_nW.shape[1],
            ROWS=ROWS, CHUNK=CHUNK, PART=PART, BOTH=both, num_warps=1,
        )  # fmt: skip

    def raise_limits(self, lists: Lists, rows: slice, rank: int, lowered: Tensor | None) -> None:
        """Raise limits and drop candidates, as `Steps` says, by Triton kernels."""
        from graphbuild.knn.kernels.filter import raise_limits

        width = lists.ids_nW.shape[1]
        size = _power_of_2(width)
        if size > _MOST:
            self._torch.raise_limits(lists, rows, rank, lowered)
            return
        raise_limits[(rows.stop - rows.start,)](
            lists.limits_n, lists.counts_n, lists.ids_nW, lists.codes_nW, lists.spilled_n,
            lists.limits_n if lowered is None else lowered, rows.start, rank, width,
            BY_RANK=lowered is None, SIZE=size, num_warps=_warps(size, 256),
        )  # fmt: skip

    def best(self, vectors: Vectors, own_t: Tensor, ids_tW: Tensor, counts_t: Tensor, k: int) -> Best:
        """Return the K best of each row, as `Steps` says, by Triton kernels."""
        from graphbuild.knn.kernels.ranking import best_rows, exact_products

        rows, width = ids_tW.shape
        size = _power_of_2(width)
        if size > _MOST or vectors.held_ND is None:
            return self._torch.best(vectors, own_t, ids_tW, counts_t, k)
        device = own_t.device
        exact_tW = torch.empty((rows, width), dtype=torch.float64, device=device)
        exact_products[(rows,)](
            vectors.held_ND, own_t, counts_t, ids_tW, exact_tW, vectors.dim, width,
            BLOCK=_EXACT_BLOCK, DEPTH=_EXACT_DEPTH, num_warps=4,
        )  # fmt: skip
        found = Best(
            torch.empty((rows, k), dtype=torch.int32, device=device),
            torch.empty((rows, k), dtype=torch.float16, device=device),
            torch.empty(rows, dtype=torch.float64, device=device),
        )
        best_rows[(rows,)](
            exact_tW, exact_tW.view(torch.int64), counts_t, ids_tW, own_t, vectors.texts_N,
            found.texts_tK, found.similarities_tK.view(torch.int16), found.kth_t, width, k,
            SIZE=size, BEST=_power_of_2(k), num_warps=_warps(size, 256, 8),
        )  # fmt: skip
        return found


def _power_of_2(count: int) -> int:
    return 1 << max(0, count - 1).bit_length()


def _warps(size: int, each: int, most: int = 16) -> int:
    return min(most, max(1, size // each))


@cache
def usable(device: torch.device) -> bool:
    """Return whether the kernels run here and find, on a small trial, what float64 finds."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if importlib.util.find_spec("triton") is None or (device.type != "cuda" and not interpreted):
        return False
    try:
        # Kernels are launched on the current device.
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            return _agrees(device)
    # What a compiler and a driver raise cannot be listed; the search goes on without the kernels.
    except Exception:
        return False


def _agrees(device: torch.device) -> bool:
    """Rows of a small group, each with the texts that exceed a limit: the same candidates, and the same neighbours of them."""
    count, dim, k = _TRIAL
    wide = np.random.default_rng(0).standard_normal((count, dim))
    vectors = Vectors((wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float16), device, resident=True)
    all_ND = vectors.block(vectors.places_N)
    positions_N = vectors.places_N.device
    scores = all_ND @ all_ND.T
    half = count // 2
    # Its halves meet: each row lists the texts of the other half by their scores, and no other.
    truth = scores[:half, half:].contiguous()
    lists, steps = Lists.empty(count, count, device), TritonSteps()
    rank = half // 3
    lists.limits_n[:count] = torch.cat([steps.first_limits(truth, rank), steps.first_limits(truth.T.contiguous(), rank)])
    columns = Columns(all_ND[half:], positions_N[half:], half)
    steps.enter(truth, lists, 0, positions_N[:half], columns)
    steps.raise_limits(lists, slice(0, count), rank - 2, None)
    return _holds(lists, truth, rank) and _ranks(lists, vectors, k // 6)


def _holds(lists: Lists, scores_tC: Tensor, rank: int) -> bool:
    """Whether limits and candidates are those that sorting gives."""
    half = len(scores_tC)
    for first, scores in ((0, scores_tC), (half, scores_tC.T)):
        codes = scores.contiguous().view(torch.int16).clamp(min=0)
        limits = (codes.sort(dim=1, descending=True).values[:, rank - 3] - 1).clamp(min=0)
        over = codes > limits[:, None]
        counts = lists.counts_n[first : first + half]
        if bool((limits != lists.limits_n[first : first + half]).any()) or bool((over.sum(1) != counts).any()):
            return False
        listed = torch.arange(lists.ids_nW.shape[1], device=counts.device) < counts[:, None]
        places = torch.where(listed, lists.ids_nW[first : first + half] - (half - first), half).long()
        found = torch.zeros((half, half + 1), dtype=torch.bool, device=counts.device).scatter_(1, places, listed)[:, :half]
        if bool((found != over).any()):
            return False
    return True


def _ranks(lists: Lists, vectors: Vectors, k: int) -> bool:
    """Whether the candidates' order is that of torch, bit by bit."""
    counts = lists.counts_n[: vectors.count]
    found, expected = (
        steps.best(vectors, vectors.places_N.device, lists.ids_nW, counts, k) for steps in (TritonSteps(), TorchSteps())
    )
    alike = torch.equal(found.texts_tK, expected.texts_tK) and torch.equal(found.similarities_tK, expected.similarities_tK)
    return alike and torch.equal(found.kth_t, expected.kth_t)
