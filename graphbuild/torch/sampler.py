"""Batches of neighbours for any DataLoader: sample ids of a data set in, lists of its indices out.

Shape letters: N samples of the data set, B samples in a batch of all processes, b of them this process's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from graphbuild.errors import ArtifactError, OptionError
from graphbuild.store.graph import Graph
from graphbuild.targets.batches import NeighborBatches
from graphbuild.targets.chunks import PartitionConfig, chunk_samples
from graphbuild.targets.partition import load_partition
from graphbuild.targets.samples import positions_of
from graphbuild.torch.gather import Place, this_place


class NeighborBatchSampler(Sampler[list[int]]):
    """Batches of whole chunks of neighbours in the graph, the chunks shuffled anew every epoch.

    Every sample comes once an epoch, the last batch being shorter; with several processes each has its share of every batch,
    and of the last one as many as the others, so that fewer samples than there are processes may be left out of an epoch.
    An iteration goes on where the one before it, or the state that was loaded, left off; one that ends begins the next epoch.
    """

    def __init__(
        self,
        graph_dir: Path | str,
        sample_ids: Sequence[str],
        batch_size: int,
        *,
        chunk: int = 32,
        neighbor_ranks: str | None = None,
        seed: int = 0,
        drop_last: bool = False,
        rank: int | None = None,
        num_replicas: int | None = None,
    ) -> None:
        """Find the chunk of every sample. The graph's partition is made first if it is missing, and is kept in its directory.

        Args:
            graph_dir: A graph directory whose knn stage is done.
            sample_ids: The sample id of every item of the data set, in its order; (N,).
            batch_size: b, samples a batch of one process.
            chunk: Samples a chunk, at most 128 and `batch_size`.
            neighbor_ranks: Ranks of the neighbours that chunks are grown along, such as `1:64`; None: all.
            seed: Orders the chunks.
            drop_last: Whether the shorter batch at the end of an epoch is left out.
            rank: Which process this is; None: as torch.distributed says when batches are drawn.
            num_replicas: How many there are; None: as torch.distributed says.

        Raises:
            SourceError: If the graph does not know all samples.
            OptionError: If a value is out of its range.
            ArtifactError: If the graph is not finished, damaged, or has no partition and cannot be written.
        """
        if not 1 <= chunk <= batch_size:
            raise OptionError(f"chunk {chunk} is not from 1 to the batch size, {batch_size}. Lower it, or raise batch_size.")
        if (rank is None) != (num_replicas is None) or (rank is not None and not 0 <= rank < (num_replicas or 0)):
            raise OptionError(f"rank {rank} of num_replicas {num_replicas}: give both, with rank from 0 to num_replicas - 1.")
        self.batch_size, self.seed, self.drop_last = batch_size, seed, drop_last
        self._fixed = None if rank is None else Place(rank, num_replicas or 1)
        config = PartitionConfig(chunk=chunk, neighbor_ranks=neighbor_ranks)
        self._chunks = _chunks_of(Graph.open(Path(graph_dir)), sample_ids, config)
        self._made = NeighborBatches(self._chunks, self._place.world * batch_size, seed)
        self._epoch = self._step = 0

    def __len__(self) -> int:
        batches = self._batches
        rest = 0 if self.drop_last else batches.dropped_per_epoch // self._place.world
        return batches.steps_per_epoch + (rest > 0)

    def __iter__(self) -> Iterator[list[int]]:
        place, batches, epoch = self._place, self._batches, self._epoch
        for step in range(self._step, len(self)):
            self._step = step + 1
            whole = batches.batch(epoch, step) if step < batches.steps_per_epoch else batches.rest(epoch)
            part = place.part(len(whole))
            yield whole[part.start : part.stop].tolist()
        self._epoch, self._step = epoch + 1, 0

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch, from 0; nothing changes if it is the one that is under way."""
        if epoch != self._epoch:
            self._epoch, self._step = epoch, 0

    def state_dict(self, step: int | None = None) -> dict[str, int]:
        """Return where the epoch is, to go on from.

        Args:
            step: Batches of this epoch that were trained on; None: those handed out, which workers of a DataLoader take ahead.
        """
        return {"epoch": self._epoch, "step": self._step if step is None else step, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a state was taken.

        Raises:
            OptionError: If it is of other batches: another seed, batch size, number of processes or data set.
        """
        theirs = {name: state.get(name) for name in self._identity()}
        if theirs != self._identity():
            raise OptionError(f"the state is of other batches: {theirs}, not {self._identity()}. Sample them as it was made.")

        self._epoch, self._step = state["epoch"], state["step"]

    def _identity(self) -> dict[str, int]:
        return {"seed": self.seed, "batch_of_all": self._batches.batch_size, "samples": len(self._chunks)}

    @property
    def _place(self) -> Place:
        return self._fixed or this_place()

    @property
    def _batches(self) -> NeighborBatches:
        # The process group may be made after the sampler.
        if self._made.batch_size != (size := self._place.world * self.batch_size):
            self._made = NeighborBatches(self._chunks, size, self.seed)
        return self._made


def _chunks_of(graph: Graph, sample_ids: Sequence[str], config: PartitionConfig) -> np.ndarray[Any, np.dtype[np.int32]]:
    """The chunk of every sample; (N,)."""
    positions = positions_of(graph, sample_ids)
    if len(np.unique(positions)) < len(positions):
        # The graph's samples are classes, say, and its partition one of classes: these are their images.
        found = graph.texts_of_rows(positions)
        return chunk_samples(graph, found.offsets, found.text_ids, config)[0]
    try:
        return load_partition(graph, config).of_rows(positions)
    except OSError as error:
        raise ArtifactError(
            f"{graph.path} has no partition into chunks of {config.chunk}, and it cannot be written ({error.strerror}). "
            f"Run `graphbuild partition --chunk {config.chunk}` where it can be."
        ) from error
