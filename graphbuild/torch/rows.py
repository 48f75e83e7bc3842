"""Where a batch's graph rows come from: mapped files, read one batch ahead, or the whole graph on the device.

Shape letters: N texts, B samples in a batch, K neighbours stored, R sketch width.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from graphbuild.errors import ResourceError
from graphbuild.store.choices import OnDevice
from graphbuild.store.graph import Graph
from graphbuild.store.neighbors import Rows

_SHARE_OF_FREE = 0.5
"""Of a GPU's free memory, what `auto` gives the graph: the model and its activations come later."""
_BLOCK = 65_536


class RowTensors(NamedTuple):
    """`graphbuild.store.graph.Rows` as tensors on one device."""

    neighbor_ids: Tensor
    """(B, K) int32."""
    similarities: Tensor
    """(B, K) float16."""
    sketch: Tensor
    """(B, R) int8."""
    sketch_scale: Tensor
    """(B,) float32."""


class MappedRows:
    """Rows copied from the mapped files; those of the next batch in a thread, so that a cold disk is waited for meanwhile."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="graph-rows")
        self._ahead: tuple[npt.NDArray[np.integer], Future[Rows]] | None = None

    def read_ahead(self, text_ids_B: npt.NDArray[np.integer]) -> None:
        """Begin to read what will be asked for next."""
        self._ahead = (text_ids_B, self._pool.submit(self._graph.rows, text_ids_B))

    def rows(self, text_ids_B: npt.NDArray[np.integer]) -> Rows:
        """Return the stored rows of some texts, whether or not they were read ahead."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and np.array_equal(ahead[0], text_ids_B):
            return ahead[1].result()
        # An image of the batch could not be read, say. What was read ahead is in the page cache all the same.
        return self._graph.rows(text_ids_B)


class DeviceRows:
    """All rows of a graph in the memory of a device: N (6 K + R + 4) bytes."""

    def __init__(self, graph: Graph, device: torch.device) -> None:
        """Copy the graph, a block at a time."""
        self._all = RowTensors(
            torch.empty((graph.n_texts, graph.k), dtype=torch.int32, device=device),
            torch.empty((graph.n_texts, graph.k), dtype=torch.float16, device=device),
            torch.empty((graph.n_texts, graph.sketch_dim), dtype=torch.int8, device=device),
            torch.empty(graph.n_texts, dtype=torch.float32, device=device),
        )
        for start in range(0, graph.n_texts, _BLOCK):
            stop = min(start + _BLOCK, graph.n_texts)
            block = graph.rows(np.arange(start, stop))
            for name, whole in zip(RowTensors._fields, self._all, strict=True):
                whole[start:stop].copy_(torch.from_numpy(getattr(block, name)))

    def rows(self, text_ids_B: Tensor) -> RowTensors:
        """Return rows of some texts, whose ids are on the device: no wait for it, and no check of the ids."""
        return RowTensors(*(whole.index_select(0, text_ids_B) for whole in self._all))


def bytes_on_device(graph: Graph) -> int:
    """Return the bytes of device memory that `DeviceRows` takes."""
    return graph.n_texts * (6 * graph.k + graph.sketch_dim + 4)


def belongs_on_device(graph: Graph, device: torch.device, choice: OnDevice) -> bool:
    """Return whether the graph is to be held on the device. `auto` holds it on a GPU that has twice the room; never on a CPU.

    Raises:
        ResourceError: If `yes` asks for more than there is.
    """
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    needed = bytes_on_device(graph)
    if choice == "yes" and free is not None and needed > free:
        raise ResourceError(
            f"--graph-on-device yes: the graph's rows take {needed / 1e9:.1f} GB, and {device} has {free / 1e9:.1f} GB free. "
            "Use --graph-on-device no, or build the graph with a smaller --k."
        )
    return choice == "yes" or (choice == "auto" and free is not None and needed <= _SHARE_OF_FREE * free)


def to_device(array: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    """Return a copy on a device that nothing waits for."""
    # Half precision travels as its bits: NumPy's and torch's are the same.
    host = torch.from_numpy(array)
    return (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)


def rows_to_device(rows: Rows, device: torch.device) -> RowTensors:
    """Return the rows of one batch, copied to a device that nothing waits for."""
    return RowTensors(*(to_device(getattr(rows, name), device) for name in RowTensors._fields))
