"""What a search takes of a device's memory, and of the host's: how many rows go together, and how large tiles are.

Shape letters: N texts, K neighbours kept, D vector width, W candidates a row has room for.
"""

from __future__ import annotations

from dataclasses import dataclass

from graphbuild.errors import ResourceError
from graphbuild.knn.engines.gpu.limits import room as room_for
from graphbuild.knn.engines.gpu.lists import Lists
from graphbuild.knn.engines.gpu.tiles import BUFFERS, WIDEST
from graphbuild.knn.engines.gpu.topk import kept

_TILE = 8192
_LEAST_TILE = 128
_RESIDENT = 0.75
"""Vectors stay on the device where they take at most this share of its free memory."""
_AMPLE, _SCANT = 8.5, 4.5
"""Standard deviations of a row's candidates that it has room for: where there is memory, and where there is little."""
_HITS_BYTES = 24
"""Bytes for each score of a tile while torch looks for hits, of which there may be many."""
_KEPT_BYTES = 40
"""Bytes for each candidate of a panel: similarity, key and result, or what `topk` sorts and joins."""
_MOST_SPARE = 2**30
_RESULT_BYTES = 6
"""Bytes for each neighbour: id and similarity."""
_EARLY = 8
"""One row in so many is done early and kept on the host until its range is complete."""


@dataclass(frozen=True, slots=True)
class Room:
    """How a search uses its memory."""

    resident: bool
    """Whether all vectors stay on the device."""
    tile: int
    """Rows and columns of a tile."""
    width: int
    """W."""
    rows: int
    """Rows of a group."""
    panel: int
    """Rows of a panel of a search by `topk`."""
    spare: int
    """Bytes for what is done a part at a time."""


def plan_room(
    count: int, dim: int, k: int, *, free: int, host: int, device: str, kernels: bool, sweep: bool, held: bool = False
) -> Room:
    """Share out a device's memory.

    Args:
        count: N.
        dim: D.
        k: K.
        free: Bytes that are free on the device.
        host: Bytes of the host's memory for results that wait; the same memory where the device is the CPU.
        device: Its name, for the message.
        kernels: Whether Triton's kernels look for hits.
        sweep: Whether rows have lists of candidates.
        held: Whether the vectors are on the device already.

    Raises:
        ResourceError: If there is no room for a small tile and its rows.
    """
    on_cpu = device.startswith("cpu")
    vectors = 0 if held else 2 * count * dim
    resident = held or (vectors <= free * _RESIDENT and (not on_cpu or kernels))
    left = free - (vectors if resident else 0) - 8 * count
    spare = min(left // 8, _MOST_SPARE)
    width = min(room_for(k, deviations=_AMPLE), count + 1) if sweep else kept(k, count)
    if sweep and not on_cpu and count * Lists.row_bytes(width) > left // 2:
        width = min(room_for(k, deviations=_SCANT), count + 1)
    tile = _TILE
    while tile > _LEAST_TILE and (tile // 2 >= count or _tile_bytes(tile, dim, width, kernels=kernels or not sweep) > left // 4):
        tile //= 2
    fixed = _tile_bytes(tile, dim, width, kernels=kernels or not sweep)
    each = (Lists.row_bytes(width) if sweep else 0) + (_RESULT_BYTES * k // _EARLY if on_cpu else 0)
    rows = min(count, (left - 2 * spare - fixed) // max(1, each))
    if not on_cpu:
        rows = min(rows, max(tile, host // 4 * _EARLY // (_RESULT_BYTES * k)))
    if rows < min(count, tile):
        needed = (8 * count + 2 * (_tile_bytes(_LEAST_TILE, dim, width, kernels=kernels) + each * min(count, _LEAST_TILE))) * 4
        raise ResourceError(
            f"the search needs at least {needed / 1e6:,.0f} MB on {device}, and {max(0, free) / 1e6:,.0f} MB are "
            "free. Free some, or use --device cpu with a larger --memory-limit, or lower --k."
        )
    panel = max(1, min(tile, spare // (_KEPT_BYTES * (width + min(width, tile)))))
    return Room(resident, tile, width, int(rows), int(panel), int(spare))


def _tile_bytes(tile: int, dim: int, width: int, *, kernels: bool) -> int:
    """Scores of the tiles, the vectors of rows and columns (float32 ones, too), and candidates while they are ranked."""
    scores = tile * tile * (2 * BUFFERS * WIDEST + (0 if kernels else _HITS_BYTES))
    return scores + 6 * dim * tile * (1 + WIDEST) + _KEPT_BYTES // 2 * tile * width
