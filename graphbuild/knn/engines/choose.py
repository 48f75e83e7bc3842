"""Which engine suits a set of vectors.

Shape letters: N texts, K neighbours kept, D vector width.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from graphbuild.knn.engines.base import Engine
from graphbuild.knn.engines.coding import Coding
from graphbuild.knn.engines.groups import Groups
from graphbuild.knn.engines.rowblocks import RowBlockEngine
from graphbuild.knn.engines.tiles import TileEngine, plan_groups

FEW_TEXTS = 12_288
"""Up to here scoring takes under a second or two whichever way, and seeding and calibrating do not pay."""
_MANY_NEIGHBORS = 8
"""Row blocks where over N / 8 neighbours are kept: most scores are candidates then, and limits filter little."""


def required_memory(count: int, dim: int, k: int, device: str = "cpu") -> int:
    """Return the least memory limit that `make_engine` takes, in bytes of the host."""
    if device != "cpu":
        # All of a search but the vectors and the results is in the device's memory.
        return 0
    if in_row_blocks(count, k):
        return RowBlockEngine.required_memory(count, dim, k)
    return TileEngine.required_memory(count, dim, k)


def make_engine(
    vectors_ND: NDArray[np.float16], *, k: int, memory_limit: int, precision: str | Coding = "auto", device: str = "cpu"
) -> Engine:
    """Return the engine for a set of vectors.

    Args:
        vectors_ND: Unit vectors, C order; may be a memory map.
        k: Neighbours a text, 1 to N-1.
        memory_limit: Bytes to stay within, the vectors and one range's results not counted.
        precision: `auto` for the fastest here, or as the engine takes it.
        device: `cpu`, or a GPU as torch names it.

    Raises:
        ResourceError: If the limit is too small to work within.
    """
    if device != "cpu":
        from graphbuild.knn.engines.gpu.engine import DeviceEngine

        return DeviceEngine(vectors_ND, k=k, memory_limit=memory_limit, device=device)
    if in_row_blocks(len(vectors_ND), k):
        return RowBlockEngine(vectors_ND, k=k, memory_limit=memory_limit)
    return TileEngine(vectors_ND, k=k, memory_limit=memory_limit, precision=precision)


def tile_groups(count: int, dim: int, k: int, memory_limit: int, device: str = "cpu") -> Groups | None:
    """Return the groups of the engine that `make_engine` would choose; None where it scores each row against all texts.

    Raises:
        ResourceError: If the limit is too small to work within.
    """
    return None if device != "cpu" or in_row_blocks(count, k) else plan_groups(count, dim, k, memory_limit)


def in_row_blocks(count: int, k: int) -> bool:
    """Return whether row blocks are the better search: few texts, or most of them neighbours."""
    return count <= FEW_TEXTS or k * _MANY_NEIGHBORS > count
