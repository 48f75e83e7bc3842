"""CRC-32C (Castagnoli), the checksum that object stores state for every file; the standard library has only CRC-32."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

_POLYNOMIAL = 0x82F63B78


def _table() -> NDArray[np.uint32]:
    values = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        values = np.where(values & 1, (values >> 1) ^ np.uint32(_POLYNOMIAL), values >> 1)
    return values


_TABLE = _table()


def crc32c(data: bytes, before: int = 0) -> int:
    """Checksum of bytes; `before` is that of what came before them."""
    return int(_update(np.frombuffer(data, np.uint8), np.uint32(before ^ 0xFFFFFFFF), _TABLE)) ^ 0xFFFFFFFF


@numba.njit(cache=True)
def _update(data: NDArray[np.uint8], state: np.uint32, table: NDArray[np.uint32]) -> np.uint32:
    for value in data:
        state = table[(state ^ value) & np.uint32(0xFF)] ^ (state >> np.uint32(8))
    return state
