"""Numbering of 128-bit keys by first appearance, for many millions of them in bounded memory.

Shape letters: n keys of a call, N keys known, S slots. A slot holds the number of a key, or -1; the keys lie beside them by
number, so that a look-up compares all 128 bits: two keys are never taken for one because a part of them agrees.
Memory: 16 to 24 bytes a key, and 8 to 16 of slots.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

_LEAST = 1024
_EMPTY = -1

Keys = NDArray[np.uint64]
"""(n, 2): a 64-bit hash, and a second one that is independent of it."""


class KeyTable:
    """Keys to numbers 0..N-1, in order of first appearance."""

    def __init__(self) -> None:
        self._slots_S = np.full(_LEAST, _EMPTY, np.int32)
        self._keys = Growing(np.uint64, 2)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def number(self, keys_n2: Keys) -> NDArray[np.int32]:
        """Return the number of each key; new keys take the next numbers, in the order given."""
        most = self._count + len(keys_n2)
        self._keys.reserve(most)
        self._widen(most)
        numbers_n = np.empty(len(keys_n2), np.int32)
        self._count = _enter(self._slots_S, self._keys.values, self._count, keys_n2, numbers_n)
        return numbers_n

    def _widen(self, most: int) -> None:
        """Keep at least half of the slots empty: a search for a key then ends after one or two of them."""
        size = len(self._slots_S)
        while 2 * most > size:
            size *= 2
        if size > len(self._slots_S):
            self._slots_S = np.full(size, _EMPTY, np.int32)
            _place(self._slots_S, self._keys.values, self._count)


class Growing:
    """An array of rows that grows in place; rows that were never written are zero."""

    def __init__(self, dtype: Any, width: int = 1) -> None:
        self.values: NDArray[Any] = np.zeros((_LEAST, width) if width > 1 else _LEAST, dtype)

    def reserve(self, rows: int) -> None:
        """Make room for so many rows."""
        if rows > len(self.values):
            # Moved by the system page by page where it can be, so that there are never two copies of a large array.
            self.values.resize((max(rows, len(self.values) * 3 // 2), *self.values.shape[1:]), refcheck=False)


@njit(cache=True, nogil=True)
def _slot(slots_S: NDArray[np.int32], keys_N2: Keys, first: np.uint64, second: np.uint64) -> np.uint64:
    """The slot that holds a key, or the empty one that it would go into."""
    # Both hashes, so that keys which agree in the first one do not crowd one another.
    mask = np.uint64(len(slots_S) - 1)
    at = (first ^ (second << np.uint64(1))) & mask
    while True:
        number = slots_S[at]
        if number < 0 or (keys_N2[number, 0] == first and keys_N2[number, 1] == second):
            return at
        at = (at + np.uint64(1)) & mask


@njit(cache=True, nogil=True)
def _enter(slots_S: NDArray[np.int32], keys_N2: Keys, count: int, keys_n2: Keys, numbers_n: NDArray[np.int32]) -> int:
    for i in range(len(keys_n2)):
        at = _slot(slots_S, keys_N2, keys_n2[i, 0], keys_n2[i, 1])
        if slots_S[at] < 0:
            slots_S[at] = count
            keys_N2[count, 0], keys_N2[count, 1] = keys_n2[i, 0], keys_n2[i, 1]
            count += 1
        numbers_n[i] = slots_S[at]
    return count


@njit(cache=True, nogil=True)
def _place(slots_S: NDArray[np.int32], keys_N2: Keys, count: int) -> None:
    for number in range(count):
        slots_S[_slot(slots_S, keys_N2, keys_N2[number, 0], keys_N2[number, 1])] = number
