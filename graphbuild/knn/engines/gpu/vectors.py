"""All vectors in the order in which a search meets them, on the device where they fit it.

Shape letters: N texts, T texts of a block, D vector width.

A position is a place in this order: an eighth of the texts at random come first, for limits to be raised by, then the others
by id. What is padded ends in vectors of zeros, whose scores exceed no limit, up to a multiple of `ALIGNED`: products are faster,
and kernels read whole words.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphbuild.knn.engines.gpu.limits import checkpoints
from graphbuild.knn.engines.gpu.streams import new_event

ALIGNED = 16
_BLOCK = 65_536


def padded(count: int) -> int:
    """Return the next multiple of `ALIGNED`."""
    return -(-count // ALIGNED) * ALIGNED


@dataclass(frozen=True, slots=True)
class Places:
    """Some positions, on the host and on the device."""

    host: NDArray[np.int32]
    device: Tensor

    @classmethod
    def of(cls, positions: NDArray[np.int32], device: torch.device) -> Places:
        """Bring positions of the host to a device."""
        return cls(positions, torch.from_numpy(positions).to(device))

    def __len__(self) -> int:
        return len(self.host)

    def __getitem__(self, part: slice) -> Places:
        return Places(self.host[part], self.device[part])


class Vectors:
    """All vectors by position, held on the device or brought there as they are needed."""

    def __init__(self, vectors_ND: NDArray[np.float16], device: torch.device, *, resident: bool) -> None:
        """Put the vectors in order, and copy them to the device where they are to be resident."""
        self.count, self.dim = vectors_ND.shape
        self.device = device
        self._source = vectors_ND
        order = np.random.default_rng(2).permutation(self.count)
        first = checkpoints(self.count)[-1]
        self._order = np.concatenate([order[:first], np.sort(order[first:])]).astype(np.int32)
        self.texts_N = torch.from_numpy(self._order).to(device)
        """The text at each position."""
        self.places_N = Places.of(np.arange(self.count, dtype=np.int32), device)
        self.held_ND = self._upload() if resident else None
        """The vectors by position, padded, where they are resident."""

    def places(self, wanted_N: NDArray[np.bool_]) -> Places:
        """Return the positions of the texts that are wanted, in ascending order."""
        if wanted_N.all():
            return self.places_N
        return Places.of(np.flatnonzero(wanted_N[self._order]).astype(np.int32), self.device)

    def texts(self, places_n: Places) -> NDArray[np.int32]:
        """Return the texts at some positions."""
        return self._order[places_n.host]

    def block(self, places_T: Places) -> Tensor:
        """Return the vectors at ascending positions, padded; (padded T, D) float16."""
        size = len(places_T)
        first, last = int(places_T.host[0]), int(places_T.host[-1]) + 1
        # What follows the last vector are zeros; what follows another is not.
        whole = size % ALIGNED == 0 or (last == self.count and first % ALIGNED == 0)
        if self.held_ND is not None and last - first == size and whole:
            return self.held_ND[first : first + padded(size)]
        out_TD = torch.zeros((padded(size), self.dim), dtype=torch.float16, device=self.device)
        out_TD[:size] = self.gather(places_T.device)
        return out_TD

    def gather(self, positions: Tensor) -> Tensor:
        """Return the vectors at any positions; one more dimension, D, as stored."""
        if self.held_ND is not None:
            return self.held_ND[positions.long()]
        texts = self._order[positions.cpu().numpy()]
        return torch.from_numpy(np.ascontiguousarray(self._source[texts])).to(self.device)

    def _upload(self) -> Tensor:
        held_ND = torch.zeros((padded(self.count), self.dim), dtype=torch.float16, device=self.device)
        on_gpu = self.device.type == "cuda"
        # While one block is on its way, the next is gathered.
        slots = [torch.empty((min(_BLOCK, self.count), self.dim), dtype=torch.float16, pin_memory=on_gpu) for _ in range(2)]
        sent = [new_event() if on_gpu else None for _ in slots]
        for turn, start in enumerate(range(0, self.count, _BLOCK)):
            slot, event = slots[turn % 2], sent[turn % 2]
            if event is not None:
                event.synchronize()
            texts = self._order[start : start + _BLOCK]
            np.take(self._source, texts, axis=0, out=slot.numpy()[: len(texts)], mode="clip")
            held_ND[start : start + len(texts)].copy_(slot[: len(texts)], non_blocking=True)
            if event is not None:
                event.record()
        return held_ND


_Source = tuple[str, int, int]
"""Name, time and size of the file that an array is mapped from."""
_kept: dict[str, tuple[_Source, Vectors]] = {}
"""By device, the vectors of a scratch file that one task leaves for the next: at most one set on each."""


def open_vectors(vectors_ND: NDArray[np.float16], device: torch.device, *, resident: bool) -> Vectors:
    """Return the vectors for a search; those of a mapped file stay on a GPU for the next search of this process."""
    source = _mapped_file(vectors_ND)
    if source is None or not resident or device.type == "cpu":
        return Vectors(vectors_ND, device, resident=resident)
    if not is_kept(vectors_ND, device):
        # What was kept before gives its memory back first.
        _kept.pop(str(device), None)
        _kept[str(device)] = source, Vectors(vectors_ND, device, resident=True)
    return _kept[str(device)][1]


def is_kept(vectors_ND: NDArray[np.float16], device: torch.device) -> bool:
    """Return whether an earlier search of this process left these vectors on the device."""
    source, _ = _kept.get(str(device), (None, None))
    return source is not None and source == _mapped_file(vectors_ND)


def _mapped_file(vectors_ND: NDArray[np.float16]) -> _Source | None:
    """The file that all of an array is mapped from, if it is."""
    base: object = vectors_ND
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    if not isinstance(base, np.memmap) or base.filename is None or base.size != vectors_ND.size:
        return None
    status = Path(base.filename).stat()
    return str(base.filename), status.st_mtime_ns, status.st_size
