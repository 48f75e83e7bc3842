"""Products of a panel of rows with columns, a tile at a time, and what is done with each tile's scores.

Shape letters: t rows and C columns of a tile, D vector width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from graphbuild.knn.engines.gpu.lists import Columns, Lists, Steps
from graphbuild.knn.engines.gpu.streams import new_event, new_stream
from graphbuild.knn.engines.gpu.vectors import Places, Vectors

BUFFERS = 2
"""Tiles in memory: while one is filtered, the next product may go on."""
WIDEST = 2
"""Columns of the widest tile, to each row."""


@dataclass(slots=True)
class Rows:
    """A panel of rows of the group."""

    vectors_tD: Tensor
    """Padded."""
    places_t: Places
    top: int
    """The row of the group that the first one is."""

    def __len__(self) -> int:
        return len(self.places_t)


class Segments:
    """Columns that a panel has yet to meet, in order, in tiles of any width."""

    def __init__(self, vectors: Vectors, parts: list[tuple[Places, int | None]]) -> None:
        """Take columns, each part with the row of the group that its first is, or None where they are not to list the rows."""
        self._vectors = vectors
        self._parts = [part for part in parts if len(part[0])]

    @property
    def following(self) -> int:
        """Columns of this part that are left."""
        return len(self._parts[0][0]) if self._parts else 0

    def next(self, width: int) -> Columns | None:
        """Return the next columns, at most so many; None at the end."""
        if not self._parts:
            return None
        places, at = self._parts[0]
        taken, rest = places[:width], places[width:]
        self._parts = [(rest, None if at is None else at + width), *self._parts[1:]] if len(rest) else self._parts[1:]
        return Columns(self._vectors.block(taken), taken.device, at)


class Buffers:
    """Memory for tiles, and the product into it."""

    def __init__(self, tile: int, device: torch.device, *, wide: bool) -> None:
        """Take the memory.

        Args:
            tile: Rows of a panel, at most.
            device: Where.
            wide: Whether to multiply in float32, for devices whose float16 products break the error bound.
        """
        self._flat = [torch.empty(tile * tile * WIDEST, dtype=torch.float16, device=device) for _ in range(BUFFERS)]
        self.wide = wide
        self.device = device

    @property
    def size(self) -> int:
        """Scores that a tile may have."""
        return self._flat[0].numel()

    def product(self, rows_tD: Tensor, columns_CD: Tensor, which: int = 0) -> Tensor:
        """Return the scores of all rows with all columns, (t, C) float16, in one of the buffers."""
        out_tC = self._flat[which][: len(rows_tD) * len(columns_CD)].view(len(rows_tD), len(columns_CD))
        if self.wide:
            return out_tC.copy_(rows_tD.float() @ columns_CD.float().T)
        return torch.mm(rows_tD, columns_CD.T, out=out_tC)


class Way:
    """One way to score tiles and enter their hits: so many columns at a time, on one stream of work or on two."""

    def __init__(self, buffers: Buffers, steps: Steps, *, columns: int, streams: int = 1) -> None:
        self.columns = columns
        self._buffers, self._steps = buffers, steps
        self._turn = 0
        self._side = new_stream(buffers.device) if streams > 1 else None
        self._free = [new_event() for _ in range(BUFFERS)] if streams > 1 else []

    @property
    def name(self) -> str:
        """As it is recorded."""
        return f"{self._steps.name}, {self.columns} columns" + (", two streams" if self._side else "")

    def run(self, lists: Lists, rows: Rows, columns: Columns) -> None:
        """Score a tile and enter its hits."""
        if self._side is None:
            scores_tC = self._buffers.product(rows.vectors_tD, columns.vectors_CD)
            self._steps.enter(scores_tC[: len(rows)], lists, rows.top, rows.places_t.device, columns)
            return
        self._turn = (self._turn + 1) % BUFFERS
        main = torch.cuda.current_stream()
        main.wait_event(self._free[self._turn])
        scores_tC = self._buffers.product(rows.vectors_tD, columns.vectors_CD, self._turn)
        self._side.wait_stream(main)
        with torch.cuda.stream(self._side):
            self._steps.enter(scores_tC[: len(rows)], lists, rows.top, rows.places_t.device, columns)
            self._free[self._turn].record()
        # The allocator must not hand out what the filter still reads.
        columns.positions_C.record_stream(self._side)
        rows.places_t.device.record_stream(self._side)

    def join(self) -> None:
        """Let what follows on the current stream find all hits entered."""
        if self._side is not None:
            torch.cuda.current_stream().wait_stream(self._side)
