"""From a configuration and the images of a run to its batches: random ones, or chunks of neighbours in the graph."""

from __future__ import annotations

from graphbuild.errors import OptionError
from graphbuild.store.arrays import Int32
from graphbuild.store.graph import Graph
from graphbuild.targets.batches import NeighborBatches, RandomBatches
from graphbuild.targets.chunks import PartitionConfig, chunk_samples
from graphbuild.targets.partition import load_partition
from train.config import TrainConfig
from train.data.join import Joined
from train.data.prepare import TrainingData


def make_batches(config: TrainConfig, data: TrainingData) -> RandomBatches:
    """Return the batches that a configuration names. The graph's partition is made first if it is missing.

    Images that the graph does not know are in no batch; their chunks are short.

    Raises:
        OptionError: If there are fewer images than a batch holds, or neighbours are asked for without a graph.
        UserError: If the partition cannot be made.
    """
    if config.batches == "random" or config.chunk == 1:
        return RandomBatches(len(data.store), config.batch_size, config.seed)
    # The first graph of the run, whichever of them these data look at.
    known = next(iter(data.opened.known.values()), None)
    if known is None:
        raise OptionError("--batches neighbors needs a graph: name it with --graph-dir.")
    chunks = chunks_of(known.graph, known.joined, PartitionConfig(chunk=config.chunk, neighbor_ranks=config.neighbor_ranks))
    return NeighborBatches(chunks, config.batch_size, config.seed)


def chunks_of(graph: Graph, joined: Joined, config: PartitionConfig) -> Int32:
    """Return the chunk of every image that the graph knows; (N,)."""
    if joined.by == "class":
        # The graph's own samples are classes there, and its partition one of classes: these are images.
        return chunk_samples(graph, joined.offsets, joined.text_ids, config)[0]
    return load_partition(graph, config).of_rows(joined.graph_rows)
