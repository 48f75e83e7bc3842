"""Search with torch alone, on a GPU or a CPU: the exact engine's contract where numba's kernels do not reach.

Shape letters: N texts, n rows of a group, t rows and T columns of a tile, W candidates a row has room for, K neighbours
kept, D vector width.

Scores exist one tile at a time; where Triton's kernels run (`fused`), only those that are kept exist at all. A row keeps what
exceeds its limit; limits start from a random sample and only rise, so everything that a row has turned away scored at most
its last limit. Candidates are re-ranked in float64, whose sums are exact in any order (see `exact`); rows that their
certificate does not settle are set against all texts in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphbuild.errors import ResourceError
from graphbuild.knn.engines.base import Advance, Neighbors, unheard
from graphbuild.knn.engines.devices import device_memory, open_device
from graphbuild.knn.engines.scores import FLOAT16, FLOAT32, FORMATS, Bounds, Format, make_bounds, products_hold
from graphbuild.knn.kernels import fused
from graphbuild.store.files import ShardRange

_TILE = 8192
_LEAST_TILE = 256
_SAMPLE = 8192
_SAMPLE_SHARE = 16
_ROOM = 3
"""Candidates a row has room for, to each neighbour: half are left after thinning, and the rest takes a tile's hits."""
_SPREAD = 3.0
"""Standard deviations by which a sample's rank is put lower, so that few rows start from too high a limit."""
_LONGEST = 1.01
_TILE_BYTES = 24
"""Bytes for each score of a tile: itself, whether it is a hit, and the places of the hits, of which there may be many."""
_RERANK_BYTES = 2**28
_SETTLING_BYTES = 48
"""Bytes for each pair of an open row that is looked at: id and similarity, with a copy, and what marks and counts the best."""
_STRIPE = 16
"""Tiles of columns that the fused kernel takes at a time."""


@dataclass(slots=True)
class _State:
    """Candidates of a group of rows, on the device."""

    ids_n: Tensor
    vectors_nD: Tensor
    limits_n: Tensor
    counts_n: Tensor
    candidates_nW: Tensor
    scores_nW: Tensor


class DeviceEngine:
    """Exact search on a torch device."""

    def __init__(self, vectors_ND: NDArray[np.float16], *, k: int, memory_limit: int, device: str, precision: str = "auto") -> None:
        """Prepare for searches.

        Args:
            vectors_ND: Unit vectors, C order; may be a memory map.
            k: Neighbours a text, 1 to N-1.
            memory_limit: Bytes to stay within on the device `cpu`; a GPU's free memory decides there.
            device: `cuda`, `cuda:1`, `cpu`.
            precision: `auto` for float16 where its products are good to the error bound, else float32.

        Raises:
            ResourceError: If there is no such device, or memory leaves no room for a tile.
        """
        self._device = open_device(device)
        self._vectors_ND, self._k = vectors_ND, k
        count, dim = vectors_ND.shape
        self._format = self._choose_format(dim) if precision == "auto" else FORMATS[precision]
        self._width = min(_ROOM * (k + 1) + 64, count + 1)
        self._fused = self._format is FLOAT16 and fused.usable(self._device, dim)
        free = device_memory(self._device, memory_limit)
        # All vectors stay on the device where they take less than half of what is free.
        self._resident = vectors_ND.nbytes * 2 < free and (self._fused or self._device.type != "cpu")
        self._on_device: Tensor | None = None
        free -= vectors_ND.nbytes if self._resident else 0
        self._tile, self._group_rows = self._sizes(free // 2, dim)
        self._settling_bytes = free // 4

    @property
    def precision(self) -> str:
        """Number format of the scoring pass."""
        return self._format.name

    def pairs(self, ranges: Sequence[ShardRange]) -> int:
        """Pairs of texts that a search scores: each row against all."""
        return sum(map(len, ranges)) * len(self._vectors_ND)

    def work(self, ranges: Sequence[ShardRange]) -> int:
        """All that a search tells `advance`; re-ranking is a part of each row."""
        return self.pairs(ranges)

    def search(self, ranges: Sequence[ShardRange], advance: Advance = unheard) -> Iterator[Neighbors]:
        """Neighbours of each range of texts, in turn."""
        bounds = make_bounds(self._format, dim=self._vectors_ND.shape[1], longest=_LONGEST, cast=0.0)
        sample_MD = self._vectors(self._sample_ids())
        for one in ranges:
            ids_nK = np.empty((len(one), self._k), np.int32)
            similarities_nK = np.empty((len(one), self._k), np.float16)
            failed = []
            for start in range(one.start, one.stop, self._group_rows):
                rows = np.arange(start, min(start + self._group_rows, one.stop))
                state = self._collect(rows, sample_MD, bounds, advance)
                at = slice(start - one.start, start - one.start + len(rows))
                failed.append(self._finish(state, bounds, ids_nK[at], similarities_nK[at]) + at.start)
            open_rows = np.concatenate(failed)
            if len(open_rows):
                self._settle(open_rows, one.start, ids_nK, similarities_nK)
            yield Neighbors(ids_nK, similarities_nK, len(open_rows))

    def _choose_format(self, dim: int) -> Format:
        return FLOAT16 if products_hold(FLOAT16, dim, self._device) else FLOAT32

    def _sizes(self, free: int, dim: int) -> tuple[int, int]:
        """Rows and columns of a tile, and rows of a group."""
        tile = _TILE
        while tile > _LEAST_TILE and tile * tile * _TILE_BYTES + self._column_bytes(tile, dim) > free // 2:
            tile //= 2
        item = self._format.dtype.itemsize
        # Thinning sorts a copy with its order.
        per_row = self._width * 2 * (4 + item + 8) + dim * (item + 2) + 32
        rows = (free // 2) // per_row
        if rows < 1 or tile * tile * _TILE_BYTES + self._column_bytes(tile, dim) > free // 2:
            needed = 4 * max(per_row, _LEAST_TILE**2 * _TILE_BYTES + self._column_bytes(_LEAST_TILE, dim))
            raise ResourceError(
                f"the search needs at least {needed / 1e6:,.0f} MB on {self._device}, and {max(0, 2 * free) / 1e6:,.0f} MB are "
                "free. Free some, or use --device cpu with a larger --memory-limit, or lower --k."
            )
        return tile, int(rows)

    @property
    def _columns(self) -> int:
        """Columns that are on the device at a time, where not all are."""
        return self._tile * (_STRIPE if self._fused else 1)

    def _column_bytes(self, tile: int, dim: int) -> int:
        """The columns of a tile, as stored and cast; or those that the fused kernel takes at a time, which are not cast."""
        return (2 * _STRIPE if self._fused else 8) * tile * dim

    def _sample_ids(self) -> NDArray[np.int64]:
        size = min(_SAMPLE, len(self._vectors_ND) // _SAMPLE_SHARE)
        return np.sort(np.random.default_rng(0).choice(len(self._vectors_ND), size, replace=False))

    def _vectors(self, ids: NDArray[np.int64] | slice) -> Tensor:
        """Some vectors as stored, on the device."""
        if not self._resident:
            return torch.from_numpy(np.ascontiguousarray(self._vectors_ND[ids])).to(self._device)
        if self._on_device is None:
            self._on_device = torch.empty(self._vectors_ND.shape, dtype=torch.float16, device=self._device)
            for start in range(0, len(self._vectors_ND), _TILE):
                block = np.ascontiguousarray(self._vectors_ND[start : start + _TILE])
                self._on_device[start : start + _TILE] = torch.from_numpy(block)
        return self._on_device[ids if isinstance(ids, slice) else torch.from_numpy(ids).to(self._device)]

    def _collect(self, rows: NDArray[np.int64], sample_MD: Tensor, bounds: Bounds, advance: Advance) -> _State:
        """The candidates of some rows, from all texts."""
        vectors_nD = self._vectors(rows).to(self._format.dtype)
        count, width, place = len(rows), self._width, self._device
        state = _State(
            torch.from_numpy(rows).to(place),
            vectors_nD,
            self._seed(vectors_nD, sample_MD.to(self._format.dtype)),
            torch.zeros(count, dtype=torch.int64, device=place),
            torch.empty((count, width), dtype=torch.int32, device=place),
            torch.empty((count, width), dtype=self._format.dtype, device=place),
        )
        lowered = torch.from_numpy(bounds.lowered).to(place)
        step = self._columns
        for left in range(0, len(self._vectors_ND), step):
            columns_TD = self._vectors(slice(left, left + step)).to(self._format.dtype)
            if not (self._fused and self._enter_fused(state, columns_TD, left)):
                for first in range(0, len(columns_TD), self._tile):
                    for top in range(0, count, self._tile):
                        tile_TD = columns_TD[first : first + self._tile]
                        self._enter(state, slice(top, top + self._tile), tile_TD, left + first, lowered)
            advance(count * len(columns_TD))
        self._thin(state, slice(0, count), lowered)
        return state

    def _seed(self, vectors_nD: Tensor, sample_MD: Tensor) -> Tensor:
        """First limits: a score that about K texts exceed, by a random sample; 0 where that is too small to tell."""
        limits_n = torch.zeros(len(vectors_nD), dtype=self._format.dtype, device=self._device)
        expected = (self._k + 1) * len(sample_MD) / len(self._vectors_ND)
        rank = int(np.ceil(expected + _SPREAD * np.sqrt(expected))) + 1
        if rank > len(sample_MD):
            return limits_n
        step = max(1, self._tile * self._tile // len(sample_MD) // 2)
        for top in range(0, len(vectors_nD), step):
            scores_tM = vectors_nD[top : top + step] @ sample_MD.T
            limits_n[top : top + step] = scores_tM.topk(rank, dim=1, sorted=False).values.amin(dim=1).clamp(min=0)
        return self._below(limits_n)

    def _below(self, scores_n: Tensor) -> Tensor:
        """A little lower, on the grid of the error tables: what equals a seeded limit must not be turned away by it."""
        codes = (scores_n.view(self._format.integer) >> self._format.shift) - 1
        return (codes.clamp(min=0) << self._format.shift).to(self._format.integer).view(self._format.dtype)

    def _enter_fused(self, state: _State, columns_TD: Tensor, left: int) -> bool:
        """Enter the hits of all rows among some columns; False, and nothing is entered, if a row has no room for its hits."""
        before_n = state.counts_n.clone()
        fused.collect(state.vectors_nD, columns_TD, left, state.limits_n, state.counts_n, state.candidates_nW, state.scores_nW)
        if int(state.counts_n.max()) <= self._width:
            return True
        state.counts_n.copy_(before_n)
        return False

    def _enter(self, state: _State, part: slice, columns_TD: Tensor, left: int, lowered: Tensor) -> None:
        """Enter the hits of one tile into its rows' candidates, in as many goes as their room asks for."""
        scores_tT = state.vectors_nD[part] @ columns_TD.T
        first = 0
        while first < len(columns_TD):
            room = int((self._width - state.counts_n[part]).min())
            hits_tT = scores_tT[:, first:] > state.limits_n[part, None]
            # As many columns as no row has more hits among than it has room for.
            fits = hits_tT.sum(dim=1) <= self._width - state.counts_n[part]
            columns = hits_tT.shape[1] if bool(fits.all()) else max(room, 1)
            if room < 1 or (columns < hits_tT.shape[1] and room < self._width // 4):
                self._thin(state, part, lowered)
                continue
            self._append(state, part, hits_tT[:, :columns], scores_tT[:, first : first + columns], left + first)
            first += columns

    def _append(self, state: _State, part: slice, hits_tT: Tensor, scores_tT: Tensor, left: int) -> None:
        row, column = hits_tT.nonzero(as_tuple=True)
        per_row = hits_tT.sum(dim=1)
        # Hits come row by row: a hit's place in its row is its number less that of the row's first.
        order = torch.arange(len(row), device=self._device) - (per_row.cumsum(0) - per_row)[row]
        place = state.counts_n[part][row] + order
        state.candidates_nW[part].index_put_((row, place), (column + left).to(torch.int32))
        state.scores_nW[part].index_put_((row, place), scores_tT[row, column])
        state.counts_n[part] += per_row

    def _thin(self, state: _State, part: slice, lowered: Tensor) -> None:
        """Drop candidates that cannot be among the K nearest, as `selection.thin` does, and raise the limits to the dropped.

        A row that would still be over half full is cut by rank; the certificate then fails, and it is computed another way.
        """
        empty = torch.arange(self._width, device=self._device) >= state.counts_n[part, None]
        scores_nW, order = state.scores_nW[part].masked_fill(empty, -1).sort(dim=1, descending=True)
        codes = (scores_nW.view(self._format.integer) >> self._format.shift).long()
        limits = lowered[codes[:, self._k].clamp(min=0)].long() if self._k < self._width else torch.zeros_like(codes[:, 0])
        room = max(self._k + 1, self._width // 2)
        if room < self._width:
            crowded = codes[:, room] + (1 if self._format.shift else 0)
            limits = torch.where((codes[:, room] > limits) & (state.counts_n[part] > room), crowded, limits)
        limits = torch.where(state.counts_n[part] > self._k, limits, 0)
        raised = (limits << self._format.shift).to(self._format.integer).view(self._format.dtype)
        state.limits_n[part] = torch.maximum(state.limits_n[part], raised)
        state.scores_nW[part] = scores_nW
        state.candidates_nW[part] = state.candidates_nW[part].gather(1, order)
        kept = (scores_nW > state.limits_n[part, None]) & ~empty
        state.counts_n[part] = kept.sum(dim=1)

    def _finish(
        self, state: _State, bounds: Bounds, ids_nK: NDArray[np.int32], similarities_nK: NDArray[np.float16]
    ) -> NDArray[np.int64]:
        """The exact neighbours of a group; returns the rows that the certificate leaves open."""
        dim = self._vectors_ND.shape[1]
        width = max(int(state.counts_n.max()), self._k + 1)
        # Products in torch take copies of all vectors, in float16 and float64; the kernel takes none.
        step = max(1, _RERANK_BYTES // (width * (40 if self._fused and self._resident else dim * 10)))
        ceiling = torch.from_numpy(bounds.ceiling).to(self._device)
        failed = []
        for top in range(0, len(ids_nK), step):
            part = slice(top, top + step)
            found, similarities, kth = self._rerank(state, part, width)
            codes = (state.limits_n[part].view(self._format.integer) >> self._format.shift).long()
            # With fewer than K candidates, the K-th is minus infinity.
            failed.append((ceiling[codes] >= kth).cpu().numpy())
            ids_nK[part] = found.cpu().numpy()
            similarities_nK[part] = similarities.cpu().numpy()
        return np.flatnonzero(np.concatenate(failed))

    def _settle(
        self, places: NDArray[np.int64], first: int, ids_nK: NDArray[np.int32], similarities_nK: NDArray[np.float16]
    ) -> None:
        """Exact neighbours of some rows of a range that begins at text `first`, set against all texts in float64, in blocks."""
        count, dim = self._vectors_ND.shape
        # As many rows as leave room for their K best and a block beside them: all texts are read once for each such part.
        rows = max(1, self._settling_bytes // (2 * _SETTLING_BYTES * (self._k + _LEAST_TILE)))
        for top in range(0, len(places), rows):
            part = places[top : top + rows]
            step = max(_LEAST_TILE, self._settling_bytes // (2 * (_SETTLING_BYTES * len(part) + 8 * dim)) - self._k)
            own_t1 = torch.from_numpy(first + part).to(self._device)[:, None]
            own_tD = self._vectors(first + part).double()
            ids = own_t1[:, :0]
            exact = own_tD[:, :0]
            for left in range(0, count, step):
                block_TD = self._vectors(slice(left, left + step)).double()
                ids_T = torch.arange(left, left + len(block_TD), device=self._device)
                found = (own_tD @ block_TD.T).masked_fill_(ids_T == own_t1, -torch.inf)
                ids, exact = self._best(torch.cat([ids, ids_T.expand_as(found)], dim=1), torch.cat([exact, found], dim=1))
            found_ids, similarities = _in_order(ids, exact)
            ids_nK[part], similarities_nK[part] = found_ids.cpu().numpy(), similarities.cpu().numpy()

    def _best(self, ids_tW: Tensor, exact_tW: Tensor) -> tuple[Tensor, Tensor]:
        """The K largest of each row, of those that tie for the last places the first ones; in the order that they have."""
        if exact_tW.shape[1] <= self._k:
            return ids_tW, exact_tW
        kth_t1 = exact_tW.topk(self._k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
        above, tied = exact_tW > kth_t1, exact_tW == kth_t1
        kept = above | (tied & (tied.cumsum(dim=1) <= self._k - above.sum(dim=1, keepdim=True)))
        shape = (len(ids_tW), self._k)
        return ids_tW[kept].view(shape), exact_tW[kept].view(shape)

    def _similarities(self, own_t: Tensor, candidates_tW: Tensor) -> Tensor:
        """Exact similarities of texts to their candidates; (t, W) float64."""
        if self._fused and self._on_device is not None:
            return fused.exact(self._on_device, own_t, candidates_tW)
        if self._on_device is not None:
            others = self._on_device[candidates_tW]
        else:
            others = torch.from_numpy(self._vectors_ND[candidates_tW.cpu().numpy()]).to(self._device)
        own = self._vectors(own_t.cpu().numpy()).double()
        return torch.bmm(others.double(), own[:, :, None])[:, :, 0]

    def _rerank(self, state: _State, part: slice, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Ids and float16 similarities of the K best candidates, (t, K) each, and the exact K-th similarity, (t,)."""
        own_t = state.ids_n[part]
        empty = torch.arange(width, device=self._device) >= state.counts_n[part, None]
        candidates = state.candidates_nW[part, :width].long().masked_fill(empty, 0)
        # By id first, for sorting by similarity keeps the order among equals.
        candidates, order = candidates.sort(dim=1)
        absent = empty.gather(1, order) | (candidates == own_t[:, None])
        exact = self._similarities(own_t, candidates).masked_fill(absent, -torch.inf)
        exact, order = exact.sort(dim=1, descending=True, stable=True)
        ids, exact = candidates.gather(1, order)[:, : self._k], exact[:, : self._k]
        return *_in_order(ids, exact), exact[:, -1]


def _in_order(ids_tK: Tensor, exact_tK: Tensor) -> tuple[Tensor, Tensor]:
    """Neighbours by their float16 similarity, then by id: int32 and float16, (t, K) each."""
    bits = half_bits(exact_tK.clamp(min=-2))
    magnitude = bits & 0x7FFF
    ordered = torch.where(bits < 0x8000, -magnitude, magnitude)
    keys = ((ordered << 32) | ids_tK).sort(dim=1).values
    ordered = keys >> 32
    rounded = torch.where(ordered <= 0, -ordered, ordered - 32768).to(torch.int16).view(torch.float16)
    return (keys & 0xFFFFFFFF).to(torch.int32), rounded


def half_bits(values: Tensor) -> Tensor:
    """The float16 nearest to each float64 (ties to even), as its bits; |value| below 65,504. Casts round twice."""
    bits = values.view(torch.int64)
    magnitude = bits & 0x7FFFFFFFFFFFFFFF
    normal = ((magnitude + 0x1FFFFFFFFFF + ((magnitude >> 42) & 1)) >> 42) - ((1023 - 15) << 10)
    small = (values.abs() * 2.0**24).round().long()
    return torch.where(values.abs() < 2.0**-14, small, normal) | torch.where(bits < 0, 0x8000, 0)
