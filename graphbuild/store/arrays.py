"""Types of arrays by what they hold; their letters, in the names of variables, tell the shape. And how groups are numbered."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bool = npt.NDArray[np.bool_]
UInt8 = npt.NDArray[np.uint8]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float16 = npt.NDArray[np.float16]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Ids = Int32
"""Text ids, and neighbours' text ids."""


def by_first_appearance(first_N: Int64, group_S: Int64) -> tuple[Int64, Int32]:
    """Number groups by their first members, as texts are numbered everywhere.

    Args:
        first_N: The first member of each group, as `np.unique` gives it; (N,).
        group_S: The group of each member; (S,), or as `np.unique` shapes it.

    Returns:
        The groups in that order, (N,), and the new number of each member's group, (S,).
    """
    order_N = np.argsort(first_N)
    place_N = np.empty(len(order_N), np.int32)
    place_N[order_N] = np.arange(len(order_N), dtype=np.int32)
    return order_N, place_N[group_S.reshape(-1)]
