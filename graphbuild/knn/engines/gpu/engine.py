"""The exact engine's contract on a torch device, a GPU or a CPU.

Shape letters: N texts, n rows of a group, K neighbours kept, D vector width.

Scores exist one tile at a time. A row lists what exceeds its limit; limits start from a random sample and only rise, so
everything that a row has turned away scored at most its last limit. Candidates are re-ranked in float64, whose sums are exact in
any order (see `kernels.exact`); rows that their certificate does not settle are set against all texts in float64. So the result
is a function of the vectors alone: of no tile, group, or order of hits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from graphbuild.knn.engines.base import Advance, Neighbors, ignore_progress, join_parts
from graphbuild.knn.engines.devices import device_memory, open_device
from graphbuild.knn.engines.gpu import triton_steps
from graphbuild.knn.engines.gpu.ahead import ahead
from graphbuild.knn.engines.gpu.certificate import Certificate
from graphbuild.knn.engines.gpu.choice import TOPK, Choice
from graphbuild.knn.engines.gpu.lists import Steps
from graphbuild.knn.engines.gpu.results import Gathered, Ring
from graphbuild.knn.engines.gpu.room import Room, plan_room
from graphbuild.knn.engines.gpu.settle import settle
from graphbuild.knn.engines.gpu.sweep import Panel, Sweep
from graphbuild.knn.engines.gpu.tiles import WIDEST, Buffers, Way
from graphbuild.knn.engines.gpu.topk import topk_panels
from graphbuild.knn.engines.gpu.torch_steps import TorchSteps
from graphbuild.knn.engines.gpu.vectors import ALIGNED, Places, Vectors, is_kept, open_vectors
from graphbuild.knn.engines.scores import FLOAT16, FLOAT32, products_hold
from graphbuild.store.files import ShardRange

_FEW_TEXTS = 20_000
_MANY_NEIGHBORS = 8
"""`topk` from the start for few texts, or where over N / 8 neighbours are kept: limits filter little then."""


class DeviceEngine:
    """Exact search on a torch device."""

    def __init__(
        self,
        vectors_ND: NDArray[np.float16],
        *,
        k: int,
        memory_limit: int,
        device: str,
        precision: str = "auto",
        way: str | None = None,
    ) -> None:
        """Prepare for searches.

        Args:
            vectors_ND: Unit vectors, C order; may be a memory map.
            k: Neighbours a text, 1 to N-1.
            memory_limit: Bytes of the host to stay within; on a GPU, its free memory decides on all but waiting results.
            device: `cuda`, `cuda:1`, `cpu`.
            precision: `auto` for float16 where its products are good to the error bound, else float32.
            way: `sweep` or `topk` instead of whichever is faster.

        Raises:
            ResourceError: If there is no such device, or memory leaves no room for a tile.
        """
        self._device = open_device(device)
        self._vectors_ND, self._k = vectors_ND, k
        count, dim = vectors_ND.shape
        half = precision == "float16" or (precision == "auto" and products_hold(FLOAT16, dim, self._device))
        self.precision = (FLOAT16 if half else FLOAT32).name
        """Number format of the products; scores are float16 in any case."""
        self._way = way or ("topk" if count <= _FEW_TEXTS or k * _MANY_NEIGHBORS > count else "auto")
        kernels = triton_steps.usable(self._device)
        self.room: Room = plan_room(
            count,
            dim,
            k,
            free=device_memory(self._device, memory_limit),
            host=memory_limit,
            device=device,
            kernels=kernels,
            sweep=self._way != "topk",
            held=is_kept(vectors_ND, self._device),
        )
        """Sizes of what is held while it searches; other ones give the same rows."""
        self.steps: Steps = (triton_steps.TritonSteps if kernels else TorchSteps)(self.room.spare)
        """Triton's where they run here, else torch's."""
        self._choice: Choice | None = None

    def pairs(self, ranges: Sequence[ShardRange]) -> int:
        """Count the pairs of a row and a text that a search covers; one that is scored once for both sides counts twice."""
        return sum(map(len, ranges)) * len(self._vectors_ND)

    def work(self, ranges: Sequence[ShardRange]) -> int:
        """Return all that a search tells `advance`; re-ranking is a part of each row."""
        return self.pairs(ranges)

    def search(self, ranges: Sequence[ShardRange], advance: Advance = ignore_progress) -> Iterator[Neighbors]:
        """Yield the neighbours of each range of texts, in turn; the search goes on while they are looked at."""
        yield from ahead(self._search(ranges, advance))

    def _search(self, ranges: Sequence[ShardRange], advance: Advance) -> Iterator[Neighbors]:
        # Kernels are launched on this thread's device.
        with torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext():
            vectors = open_vectors(self._vectors_ND, self._device, resident=self.room.resident)
            certificate = Certificate(vectors.dim, self._device)
            buffers = Buffers(self.room.tile, self._device, wide=self.precision == FLOAT32.name)
            self._check_products(vectors, buffers, certificate)
            parts: list[Neighbors] = []
            for group in self._groups(ranges):
                for piece, found in zip(group, self._search_group(vectors, group, buffers, certificate, advance), strict=True):
                    parts.append(found)
                    if piece.stop == ranges[piece.index].stop:
                        yield join_parts(parts)
                        parts = []

    def _check_products(self, vectors: Vectors, buffers: Buffers, certificate: Certificate) -> None:
        """Multiply in float32 from now on if a product of these vectors, of the shape that the search has, breaks the bound."""
        rows_tD = vectors.block(vectors.places_N[: self.room.tile])
        scores_tC = buffers.product(rows_tD, rows_tD)
        if not certificate.holds(scores_tC[:ALIGNED], rows_tD[:ALIGNED], rows_tD):
            buffers.wide = True
            self.precision = FLOAT32.name

    def _groups(self, ranges: Sequence[ShardRange]) -> Iterator[list[ShardRange]]:
        """Pieces of the ranges, their index the range's number, in groups of as many rows as there is room for."""
        group: list[ShardRange] = []
        left = self.room.rows
        for index, one in enumerate(ranges):
            start = one.start
            while start < one.stop:
                if not left:
                    yield group
                    group, left = [], self.room.rows
                stop = min(one.stop, start + left)
                group.append(ShardRange(index, start, stop))
                left -= stop - start
                start = stop
        if group:
            yield group

    def _search_group(
        self, vectors: Vectors, group: list[ShardRange], buffers: Buffers, certificate: Certificate, advance: Advance
    ) -> Iterator[Neighbors]:
        wanted_N = np.zeros(vectors.count, np.bool_)
        for piece in group:
            wanted_N[piece.start : piece.stop] = True
        ring = Ring(self.room.tile, self._k, self._device)
        gathered = Gathered(group, self._k)
        for panel in self._panels(vectors, vectors.places(wanted_N), buffers, certificate, advance):
            ring.send(panel)
            yield from self._complete(vectors, ring, gathered, last=False)
        yield from self._complete(vectors, ring, gathered, last=True)

    def _panels(
        self, vectors: Vectors, group_n: Places, buffers: Buffers, certificate: Certificate, advance: Advance
    ) -> Iterator[Panel]:
        """The group's panels, by the way that is asked for, or else the fastest."""
        told = done = 0
        if self._way != "topk":
            choice = self._choice = self._contenders(buffers, len(group_n))

            def heard(pairs: int) -> None:
                nonlocal told
                told += pairs
                advance(pairs)

            for panel in self._sweep(vectors, group_n, buffers, certificate).panels(choice, heard):
                done += len(panel.places_t)
                yield panel
            if choice.taken != TOPK:
                return
            self._way = "topk"
            told -= done * vectors.count

        def not_twice(pairs: int) -> None:
            nonlocal told
            again = min(told, pairs)
            told -= again
            advance(pairs - again)

        yield from topk_panels(
            vectors,
            group_n[done:],
            k=self._k,
            rows=min(self.room.panel, self.room.tile),
            columns=self.room.tile * WIDEST,
            steps=self.steps,
            buffers=buffers,
            certificate=certificate,
            advance=not_twice,
        )

    def _sweep(self, vectors: Vectors, group_n: Places, buffers: Buffers, certificate: Certificate) -> Sweep:
        return Sweep(
            vectors,
            group_n,
            k=self._k,
            width=self.room.width,
            tile=self.room.tile,
            steps=self.steps,
            buffers=buffers,
            certificate=certificate,
        )

    def _contenders(self, buffers: Buffers, rows: int) -> Choice:
        tile, steps = self.room.tile, self.steps
        ways = [Way(buffers, steps, columns=tile)]
        if self._device.type == "cuda":
            ways += [Way(buffers, steps, columns=columns) for columns in (tile * WIDEST, tile // 2)]
            ways += [Way(buffers, steps, columns=tile, streams=2)]
        count = len(self._vectors_ND)
        return Choice(ways, buffers, k=self._k, share=(count - rows / 2) / count, topk=self._way == "auto")

    def _facts(self) -> dict[str, Any]:
        """Which way was taken, and what a pair took by each that was tried."""
        if self._choice is None:
            return {"way": TOPK}
        return {"way": self._choice.taken, "picoseconds": {way: round(one, 3) for way, one in self._choice.picoseconds.items()}}

    def _complete(self, vectors: Vectors, ring: Ring, gathered: Gathered, *, last: bool) -> Iterator[Neighbors]:
        """Ranges whose rows have all arrived, open ones settled."""
        for arrived in ring.arrived(all_of_them=last):
            gathered.put(arrived, vectors)
        for found, rows, positions in gathered.complete():
            if len(rows):
                found.ids_nK[rows], found.similarities_nK[rows] = settle(vectors, positions, self._k, self.room.spare)
            yield replace(found, recomputed=len(rows), facts=self._facts())
