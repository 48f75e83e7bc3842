"""Hashes of strings: xxh3-64 of the UTF-8 bytes, as `sample_hash` holds it.

Shape letters: S strings.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

_AT_A_TIME = 65_536


def hash_string(value: str) -> int:
    """Return the xxh3-64 of a string's UTF-8 bytes."""
    number: int = xxhash.xxh3_64_intdigest(value.encode())
    return number


def hash_strings(values: Iterable[str]) -> NDArray[np.uint64]:
    """Return the xxh3-64 of each string; (S,)."""
    return np.fromiter((xxhash.xxh3_64_intdigest(value.encode()) for value in values), np.uint64)


def hash_column(values: pa.Array) -> NDArray[np.uint64]:
    """Return the xxh3-64 of each string of an Arrow array, null counting as the empty string; (S,)."""
    hashes_S = np.empty(len(values), np.uint64)
    for start in range(0, len(values), _AT_A_TIME):
        # As Python strings only a slice at a time: 12 M of them would take gigabytes.
        part = values.slice(start, _AT_A_TIME).to_pylist()
        hashes_S[start : start + len(part)] = hash_strings(value or "" for value in part)
    return hashes_S
