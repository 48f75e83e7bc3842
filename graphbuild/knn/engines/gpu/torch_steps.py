"""The steps of a search in torch alone: the reference for the kernels, and what runs where Triton does not.

Shape letters: t rows and C columns of a tile, B columns of a block, W candidates a row has room for, K neighbours kept,
D vector width, h hits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graphbuild.knn.engines.gpu.lists import Best, Columns, Lists
from graphbuild.knn.engines.gpu.vectors import Vectors

_BLOCK = 16
"""Columns whose maximum is compared first: few blocks hold a hit. A divisor of what columns are padded to."""
STEP_BYTES = 2**28
"""Bytes that sorting and float64 products take at a time."""
_SORT_BYTES = 48
"""Bytes for each candidate while it is sorted."""


class TorchSteps:
    """Maxima of blocks, sorting, and float64 products."""

    name = "maxima"

    def __init__(self, step_bytes: int = STEP_BYTES) -> None:
        self._step_bytes = step_bytes

    def first_limits(self, scores_tM: Tensor, rank: int) -> Tensor:
        """Return the first limits, as `Steps` says, by PyTorch."""
        if rank > scores_tM.shape[1]:
            return torch.zeros(len(scores_tM), dtype=torch.int16, device=scores_tM.device)
        codes_t = scores_tM.topk(rank, dim=1, sorted=False).values.amin(dim=1).contiguous().view(torch.int16)
        return (codes_t - 1).clamp(min=0)

    def enter(self, scores_tC: Tensor, lists: Lists, top: int, positions_t: Tensor, columns: Columns) -> None:
        """Enter the scores of a tile, as `Steps` says, by PyTorch."""
        rows, width = scores_tC.shape
        codes_tGB = scores_tC.view(torch.int16).view(rows, width // _BLOCK, _BLOCK)
        limits_t = lists.limits_n[top : top + rows]
        lowest_tG = limits_t[:, None].expand(rows, width // _BLOCK)
        if columns.at is not None:
            column_limits_C = lists.limits_n[columns.at : columns.at + width]
            lowest_tG = torch.minimum(lowest_tG, column_limits_C.view(-1, _BLOCK).amin(dim=1))
        row_h, block_h = (codes_tGB.amax(dim=2) > lowest_tG).nonzero(as_tuple=True)
        codes_hB = codes_tGB[row_h, block_h]
        hit, lane = (codes_hB > limits_t[row_h, None]).nonzero(as_tuple=True)
        ids_h = columns.positions_C[block_h[hit] * _BLOCK + lane]
        self._append(lists, slice(top, top + rows), row_h[hit], ids_h, codes_hB[hit, lane])
        if columns.at is not None:
            hit, lane = (codes_hB > column_limits_C.view(-1, _BLOCK)[block_h]).nonzero(as_tuple=True)
            column_h = block_h[hit] * _BLOCK + lane
            by_column = column_h.argsort()
            column_h, hit, lane = column_h[by_column], hit[by_column], lane[by_column]
            served = slice(columns.at, columns.at + width)
            self._append(lists, served, column_h, positions_t[row_h[hit]], codes_hB[hit, lane])

    def _append(self, lists: Lists, part: slice, row_h: Tensor, ids_h: Tensor, codes_h: Tensor) -> None:
        """Enter hits that come row by row, wherever there is room; the count tells how many there were."""
        counts_t = lists.counts_n[part]
        per_row = torch.bincount(row_h, minlength=len(counts_t))
        # A hit's place in its row is its number less that of the row's first.
        order_h = torch.arange(len(row_h), device=row_h.device) - (per_row.cumsum(0) - per_row)[row_h]
        place_h = counts_t[row_h] + order_h
        kept = place_h < lists.ids_nW.shape[1]
        at = (row_h[kept] + part.start, place_h[kept])
        lists.ids_nW.index_put_(at, ids_h[kept])
        lists.codes_nW.index_put_(at, codes_h[kept])
        counts_t += per_row.to(torch.int32)

    def raise_limits(self, lists: Lists, rows: slice, rank: int, lowered: Tensor | None) -> None:
        """Raise limits and drop candidates, as `Steps` says, by PyTorch."""
        step = max(1, self._step_bytes // (_SORT_BYTES * lists.ids_nW.shape[1]))
        for first in range(rows.start, rows.stop, step):
            self._raise(lists, slice(first, min(first + step, rows.stop)), rank, lowered)

    def _raise(self, lists: Lists, part: slice, rank: int, lowered: Tensor | None) -> None:
        width = lists.ids_nW.shape[1]
        counts_t = lists.counts_n[part]
        lists.spilled_n[part] |= (counts_t > width).to(torch.int8)
        place_W = torch.arange(width, device=counts_t.device)
        codes_tW, order = lists.codes_nW[part].masked_fill(place_W >= counts_t[:, None], -1).sort(dim=1, descending=True)
        nth_t = codes_tW[:, rank - 1].clamp(min=0) if rank <= width else torch.zeros_like(codes_tW[:, 0])
        raised_t = (nth_t - 1).clamp(min=0) if lowered is None else lowered[nth_t.long()]
        limits_t = torch.maximum(lists.limits_n[part], raised_t)
        lists.limits_n[part] = limits_t
        lists.codes_nW[part] = codes_tW
        lists.ids_nW[part] = lists.ids_nW[part].gather(1, order)
        # Sorted, those that stay come first.
        lists.counts_n[part] = (codes_tW > limits_t[:, None]).sum(dim=1, dtype=torch.int32)

    def best(self, vectors: Vectors, own_t: Tensor, ids_tW: Tensor, counts_t: Tensor, k: int) -> Best:
        """Return the K best of each row, as `Steps` says, by PyTorch."""
        # The fullest row decides how much of the lists is looked at.
        width = max(k, int(counts_t.max()))
        step = max(1, self._step_bytes // ((10 * vectors.dim + _SORT_BYTES) * width))
        spans = [slice(first, first + step) for first in range(0, len(own_t), step)]
        parts = [self._best(vectors, own_t[at], ids_tW[at, :width], counts_t[at], k) for at in spans]
        return Best(
            torch.cat([part.texts_tK for part in parts]),
            torch.cat([part.similarities_tK for part in parts]),
            torch.cat([part.kth_t for part in parts]),
        )

    def _best(self, vectors: Vectors, own_t: Tensor, ids_tW: Tensor, counts_t: Tensor, k: int) -> Best:
        absent = torch.arange(ids_tW.shape[1], device=own_t.device) >= counts_t[:, None]
        positions = ids_tW.masked_fill(absent, 0)
        exact = exact_similarities(vectors, own_t, positions)
        return select(vectors.texts_N[positions.long()], exact.masked_fill_(absent | (positions == own_t[:, None]), -torch.inf), k)


def exact_similarities(vectors: Vectors, own_t: Tensor, positions_tW: Tensor) -> Tensor:
    """Return inner products in float64, whose sums of products of float16 are exact in any order (see `kernels.exact`)."""
    own_tD1 = vectors.gather(own_t).double()[:, :, None]
    return torch.bmm(vectors.gather(positions_tW).double(), own_tD1)[:, :, 0]


def select(texts_tW: Tensor, exact_tW: Tensor, k: int) -> Best:
    """Return the K best by exact similarity, then by lower id, in the order that they are stored in.

    Args:
        texts_tW: Text ids.
        exact_tW: Similarities, minus infinity for what is no candidate.
        k: K, at most W.
    """
    # By id first, for sorting by similarity keeps the order among equals.
    texts, order = texts_tW.sort(dim=1)
    exact, order_2 = exact_tW.gather(1, order).sort(dim=1, descending=True, stable=True)
    texts, exact = texts.gather(1, order_2)[:, :k], exact[:, :k]
    return Best(*in_order(texts, exact), exact[:, -1])


def in_order(texts_tK: Tensor, exact_tK: Tensor) -> tuple[Tensor, Tensor]:
    """Sort neighbours by their float16 similarity, then by id: int32 and float16, (t, K) each."""
    bits = half_bits(exact_tK.clamp(min=-2))
    magnitude = bits & 0x7FFF
    ordered = torch.where(bits < 0x8000, -magnitude, magnitude)
    keys = ((ordered << 32) | texts_tK).sort(dim=1).values
    ordered = keys >> 32
    rounded = torch.where(ordered <= 0, -ordered, ordered - 32768).to(torch.int16).view(torch.float16)
    return (keys & 0xFFFFFFFF).to(torch.int32), rounded


def half_bits(values: Tensor) -> Tensor:
    """Return the float16 nearest to each float64 (ties to even), as its bits; |value| below 65,504. Casts round twice."""
    bits = values.view(torch.int64)
    magnitude = bits & 0x7FFFFFFFFFFFFFFF
    normal = ((magnitude + 0x1FFFFFFFFFF + ((magnitude >> 42) & 1)) >> 42) - ((1023 - 15) << 10)
    small = (values.abs() * 2.0**24).round().long()
    return torch.where(values.abs() < 2.0**-14, small, normal) | torch.where(bits < 0, 0x8000, 0)
