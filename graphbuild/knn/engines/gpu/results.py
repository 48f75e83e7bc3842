"""Results on their way from the device to the ranges of texts that were asked for, while the search goes on.

Shape letters: n rows of a range, t rows of a panel, K neighbours kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphbuild.knn.engines.base import Neighbors
from graphbuild.knn.engines.gpu.streams import new_event, new_stream
from graphbuild.knn.engines.gpu.sweep import Panel
from graphbuild.knn.engines.gpu.vectors import Places, Vectors
from graphbuild.store.files import ShardRange

_SLOTS = 3
"""Panels that may be on their way."""


@dataclass(slots=True)
class _Slot:
    """Pinned memory for a panel's results, and when they have arrived."""

    texts_tK: Tensor
    similarities_tK: Tensor
    open_t: Tensor
    arrived: torch.cuda.Event


@dataclass(frozen=True, slots=True)
class Arrived:
    """Results of a panel, on the host."""

    places_t: Places
    texts_tK: NDArray[np.int32]
    similarities_tK: NDArray[np.float16]
    open_t: NDArray[np.bool_]


class Ring:
    """Brings panels' results to the host; on a GPU through pinned memory, on a stream of their own."""

    def __init__(self, rows: int, k: int, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._sent: list[tuple[Places, _Slot]] = []
        self._here: list[Arrived] = []
        self._slots: list[_Slot] = []
        if self._on_gpu:
            self._stream = new_stream(device)
            self._slots = [
                _Slot(
                    torch.empty((rows, k), dtype=torch.int32, pin_memory=True),
                    torch.empty((rows, k), dtype=torch.float16, pin_memory=True),
                    torch.empty(rows, dtype=torch.bool, pin_memory=True),
                    new_event(),
                )
                for _ in range(_SLOTS)
            ]

    def send(self, panel: Panel) -> None:
        """Start to bring a panel's results to the host."""
        best = panel.best
        if not self._on_gpu:
            found = (best.texts_tK.numpy(), best.similarities_tK.numpy(), panel.open_t.numpy())
            self._here.append(Arrived(panel.places_t, *found))
            return
        slot = self._slots.pop()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for source, target in zip(
                (best.texts_tK, best.similarities_tK, panel.open_t), (slot.texts_tK, slot.similarities_tK, slot.open_t), strict=True
            ):
                target[: len(source)].copy_(source, non_blocking=True)
                source.record_stream(self._stream)
            slot.arrived.record()
        self._sent.append((panel.places_t, slot))

    def arrived(self, *, all_of_them: bool = False) -> Iterator[Arrived]:
        """Yield what is on the host: all but the last panels, unless all are asked for."""
        yield from self._here
        self._here.clear()
        while self._sent and (all_of_them or not self._slots):
            places_t, slot = self._sent.pop(0)
            slot.arrived.synchronize()
            tensors = (slot.texts_tK, slot.similarities_tK, slot.open_t)
            texts, similarities, opened = (tensor[: len(places_t)].numpy().copy() for tensor in tensors)
            self._slots.append(slot)
            yield Arrived(places_t, texts, similarities, opened)


@dataclass(slots=True)
class _Part:
    """Rows of a range that have arrived."""

    rows_t: NDArray[np.int64]
    positions_t: NDArray[np.int32]
    texts_tK: NDArray[np.int32]
    similarities_tK: NDArray[np.float16]
    open_t: NDArray[np.bool_]


class Gathered:
    """Puts results into the ranges that they belong to; a range is complete when all of its rows are there."""

    def __init__(self, ranges: Sequence[ShardRange], k: int) -> None:
        """Expect the rows of some ranges, which ascend."""
        self._ranges, self._k = ranges, k
        self._stops = np.array([one.stop for one in ranges])
        self._left = [len(one) for one in ranges]
        self._parts: list[list[_Part]] = [[] for _ in ranges]
        self._next = 0

    def put(self, found: Arrived, vectors: Vectors) -> None:
        """Enter the results of a panel."""
        texts_t = vectors.texts(found.places_t)
        order = np.argsort(texts_t)
        of_range = np.searchsorted(self._stops, texts_t[order], side="right")
        numbers, starts = np.unique(of_range, return_index=True)
        for number, rows in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
            self._parts[number].append(
                _Part(
                    texts_t[rows] - np.int64(self._ranges[number].start),
                    found.places_t.host[rows],
                    found.texts_tK[rows],
                    found.similarities_tK[rows],
                    found.open_t[rows],
                )
            )
            self._left[number] -= len(rows)

    def complete(self) -> Iterator[tuple[Neighbors, NDArray[np.int64], NDArray[np.int32]]]:
        """Yield the ranges that have become complete, in order, each with its open rows and their positions."""
        while self._next < len(self._ranges) and not self._left[self._next]:
            count = len(self._ranges[self._next])
            found = Neighbors(np.empty((count, self._k), np.int32), np.empty((count, self._k), np.float16), 0)
            opened = []
            positions = []
            for part in self._parts[self._next]:
                found.ids_nK[part.rows_t], found.similarities_nK[part.rows_t] = part.texts_tK, part.similarities_tK
                opened.append(part.rows_t[part.open_t])
                positions.append(part.positions_t[part.open_t])
            self._parts[self._next] = []
            self._next += 1
            yield found, np.concatenate(opened), np.concatenate(positions)
