"""Search kernels for GPUs, in Triton: a tile's scores are compared where they are computed, and only hits reach memory.

Shape letters: n rows of a group, T columns, W candidates a row has room for, D vector width.

What they do is what `DeviceEngine` does in torch, which is the reference and takes over where these are not to be had. The
order in which a row's candidates are entered differs from run to run; the neighbours do not, for re-ranking orders them.
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from typing import Any

import torch
from torch import Tensor

_ROWS, _COLUMNS, _DEPTH = 128, 128, 64
_BAND = 16
"""Row tiles that are taken down a column together: their columns' vectors are then still in the second-level cache."""
_WARPS = 8
_CANDIDATES = 32
_TRIAL = (40, 200)
"""Rows and columns of the trial by which `usable` decides."""


@cache
def _kernels() -> tuple[Any, Any]:
    """The two kernels; made when first asked for, for Triton is not installed everywhere."""
    import triton
    import triton.language as tl

    @triton.jit
    def collect_hits(  # type: ignore[no-untyped-def]
        rows_nD, columns_TD, limits_n, counts_n, candidates_nW, scores_nW, n, T, first, D, W,
        ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, BAND: tl.constexpr,
    ):  # fmt: skip
        row_tiles, column_tiles = tl.cdiv(n, ROWS), tl.cdiv(T, COLUMNS)
        program = tl.program_id(0)
        band = program // (BAND * column_tiles)
        height = tl.minimum(row_tiles - band * BAND, BAND)
        inside = program - band * BAND * column_tiles
        row = (band * BAND + inside % height) * ROWS + tl.arange(0, ROWS)
        left_column, place = (inside // height) * COLUMNS, tl.arange(0, COLUMNS)
        column, depth = left_column + place, tl.arange(0, DEPTH)
        own = rows_nD + row[:, None].to(tl.int64) * D + depth[None, :]
        other = columns_TD + column[None, :].to(tl.int64) * D + depth[:, None]
        sums = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for start in range(0, D, DEPTH):
            left = depth + start < D
            a = tl.load(own + start, mask=(row < n)[:, None] & left[None, :], other=0.0)
            b = tl.load(other + start, mask=left[:, None] & (column < T)[None, :], other=0.0)
            sums = tl.dot(a, b, sums)
        limits = tl.load(limits_n + row, mask=row < n, other=float("inf"))
        hits = (sums.to(tl.float16) > limits[:, None]) & (column < T)[None, :]
        # Few tiles have a row with two hits: one of each row at a time takes a fifth of the instructions of placing all at once,
        # and none of the registers that would have to be spilled.
        first_hit = tl.min(tl.where(hits, place[None, :], COLUMNS), axis=1)
        while tl.min(first_hit, axis=0) < COLUMNS:
            found = first_hit < COLUMNS
            # All others are zero, so that the sum is the score.
            score = tl.sum(tl.where(place[None, :] == first_hit[:, None], sums, 0.0), axis=1)
            before = tl.atomic_add(counts_n + row, found.to(tl.int64), mask=found, sem="relaxed")
            kept = found & (before < W)
            at = row.to(tl.int64) * W + before
            tl.store(candidates_nW + at, first + left_column + first_hit, mask=kept)
            tl.store(scores_nW + at, score.to(tl.float16), mask=kept)
            first_hit = tl.min(tl.where(hits & (place[None, :] > first_hit[:, None]), place[None, :], COLUMNS), axis=1)

    @triton.jit
    def exact_products(  # type: ignore[no-untyped-def]
        vectors_ND, own_t, candidates_tW, exact_tW, D, W, CANDIDATES: tl.constexpr, DEPTH: tl.constexpr
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        place = tl.program_id(1) * CANDIDATES + tl.arange(0, CANDIDATES)
        depth = tl.arange(0, DEPTH)
        own = vectors_ND + tl.load(own_t + row) * D
        others = vectors_ND + tl.load(candidates_tW + row * W + place, mask=place < W, other=0) * D
        sums = tl.zeros((CANDIDATES,), dtype=tl.float64)
        for start in range(0, D, DEPTH):
            left = depth + start < D
            a = tl.load(own + start + depth, mask=left, other=0.0).to(tl.float64)
            b = tl.load(others[:, None] + start + depth[None, :], mask=left[None, :], other=0.0).to(tl.float64)
            sums += tl.sum(a[None, :] * b, axis=1)
        tl.store(exact_tW + row * W + place, sums, mask=place < W)

    return collect_hits, exact_products


def collect(
    rows_nD: Tensor, columns_TD: Tensor, first: int, limits_n: Tensor, counts_n: Tensor, candidates_nW: Tensor, scores_nW: Tensor
) -> None:
    """Enter every column that exceeds a row's limit among the row's candidates.

    A row that has more hits than room keeps as many as it has room for, in no order; its count tells.

    Args:
        rows_nD: float16, C order, as all that follows.
        columns_TD: float16.
        first: Id of the first column.
        limits_n: float16.
        counts_n: int64; raised by all hits.
        candidates_nW: int32.
        scores_nW: float16.
    """
    n, dim = rows_nD.shape
    tiles = -(-n // _ROWS) * -(-len(columns_TD) // _COLUMNS)
    _kernels()[0][(tiles,)](
        rows_nD, columns_TD, limits_n, counts_n, candidates_nW, scores_nW, n, len(columns_TD), first, dim,
        candidates_nW.shape[1], ROWS=_ROWS, COLUMNS=_COLUMNS, DEPTH=_DEPTH, BAND=_BAND, num_warps=_WARPS,
    )  # fmt: skip


def exact(vectors_ND: Tensor, own_t: Tensor, candidates_tW: Tensor) -> Tensor:
    """Exact similarities of texts to their candidates, (t, W) float64; the sums are exact in any order (see `exact`).

    Args:
        vectors_ND: All vectors, float16.
        own_t: int64.
        candidates_tW: int64, every entry a text.
    """
    rows, width = candidates_tW.shape
    found = torch.empty((rows, width), dtype=torch.float64, device=vectors_ND.device)
    grid = (rows, -(-width // _CANDIDATES))
    _kernels()[1][grid](vectors_ND, own_t, candidates_tW, found, vectors_ND.shape[1], width, CANDIDATES=_CANDIDATES, DEPTH=_DEPTH)
    return found


@cache
def usable(device: torch.device, dim: int) -> bool:
    """Whether the kernels run here and find, on a small trial, what torch finds."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if importlib.util.find_spec("triton") is None or (device.type != "cuda" and not interpreted):
        return False
    try:
        return _agrees(device, dim)
    # What a compiler and a driver raise cannot be listed; the search goes on without the kernels.
    except Exception:
        return False


def _agrees(device: torch.device, dim: int) -> bool:
    rows, columns = _TRIAL
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(rows + columns, dim, generator=generator)).half().to(device)
    own, others = vectors[:rows].contiguous(), vectors[rows:].contiguous()
    scores = own.double() @ others.double().T
    limits = scores.quantile(0.9, dim=1).half()
    counts = torch.zeros(rows, dtype=torch.int64, device=device)
    candidates = torch.zeros((rows, columns), dtype=torch.int32, device=device)
    kept = torch.zeros((rows, columns), dtype=torch.float16, device=device)
    collect(own, others, rows, limits, counts, candidates, kept)
    # Scores within their rounding of the limit may fall on either side.
    surely, perhaps = scores > limits[:, None].double() + 1e-3, scores > limits[:, None].double() - 1e-3
    listed = torch.arange(columns, device=device) < counts[:, None]
    # What is not listed goes to a column beyond the last.
    at = torch.where(listed, candidates.long() - rows, columns)
    hit = torch.zeros((rows, columns + 1), dtype=torch.bool, device=device).scatter_(1, at, listed)[:, :columns]
    products = exact(vectors, torch.arange(rows, device=device), torch.where(listed, candidates.long(), 0))
    truth = scores.gather(1, at.clamp(max=columns - 1))
    sound = (surely <= hit) & (hit <= perhaps)
    return bool(sound.all()) and bool((hit.sum(1) == counts).all()) and bool((products == truth)[listed].all())
