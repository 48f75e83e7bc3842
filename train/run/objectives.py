"""The three objectives as one interface: samples of a batch in, their similarity matrix G out, by rows.

Shape letters: B samples in a batch. What G means for each objective is in `graphbuild.torch.similarities`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from graphbuild.errors import OptionError
from graphbuild.store.graph import Graph
from graphbuild.targets.batches import draw_texts
from graphbuild.torch.blocks import Gather, OneHot, SameClass, Target
from graphbuild.torch.similarities import GraphTarget, TargetAssembler, kl
from train.config import TrainConfig
from train.data.base import Int32, Int64
from train.data.join import Joined
from train.data.prepare import TrainingData

MOST_EMBEDDING_BYTES = 4 << 30
"""KL to the dense target is measured where the graph's embeddings are smaller than this."""


class Objective(Protocol):
    """Makes the target of a batch."""

    note: str
    """What a user should know about it, in one line; empty if nothing."""

    def target(self, samples_B: Int64, epoch: int) -> Target:
        """G of a batch; all of it, whichever process has which sample."""

    def read_ahead(self, samples_B: Int64, epoch: int) -> None:
        """Begin to read what the next batch needs; only a hint."""

    def measures(self, *, with_kl: bool) -> dict[str, Tensor | None]:
        """`hit_rate` and `kl_to_dense` of the batch whose G was made last, over the anchors of this process.

        Scalars; None where they have no meaning.
        """


@dataclass(frozen=True, slots=True)
class Split:
    """How a batch is taken."""

    anchors: range
    """This process's samples of a batch."""
    tile: int
    """How many of them at a time."""
    gather: Gather | None = None
    """Brings the rows of several processes together; None where there is one."""

    @property
    def whole(self) -> bool:
        """Whether one process takes the batch at once."""
        return self.gather is None and self.tile >= len(self.anchors)

    def tiles(self) -> list[range]:
        """The anchors, a tile at a time."""
        stop = self.anchors.stop
        return [range(start, min(start + self.tile, stop)) for start in range(self.anchors.start, stop, self.tile)]


class SimCLR:
    """Positives are the two views of one image."""

    def __init__(self, device: torch.device) -> None:
        self.note = ""
        self._device = device

    def target(self, samples_B: Int64, epoch: int) -> Target:
        """1 on the diagonal, everything else left out."""
        return OneHot(len(samples_B), self._device)

    def read_ahead(self, samples_B: Int64, epoch: int) -> None:
        """Nothing is read from files."""

    def measures(self, *, with_kl: bool) -> dict[str, Tensor | None]:
        """There is nothing to measure."""
        return {"hit_rate": None, "kl_to_dense": None}


class SupCon:
    """Positives are the images of one class: of a label column, else those of equal texts."""

    def __init__(self, config: TrainConfig, data: TrainingData, device: torch.device) -> None:
        """Read the classes.

        Raises:
            SourceError: If there is no such column.
            OptionError: If there is neither a column nor a graph.
        """
        self._config, self._device = config, device
        self._joined: Joined | None = None
        self._codes = np.zeros(0, np.int64)
        if config.label_column is not None:
            labels = data.labels(config.label_column)
            bare = labels.codes < 0
            # An image without a class is a class of its own.
            self._codes = np.where(bare, len(labels.names) + np.arange(len(bare)), labels.codes)
            self.note = f"classes: {len(labels.names):,} values of {config.label_column}"
            self.note += f"; {int(bare.sum()):,} images have none" if bare.any() else ""
        elif data.joined is not None:
            self._joined = data.joined
            self.note = "classes: images of equal texts (no --label-column)"
        else:
            raise OptionError("supcon needs classes: name their column with --label-column, or a graph with --graph-dir.")

    def target(self, samples_B: Int64, epoch: int) -> Target:
        """1 between images of one class, everything else left out."""
        if self._joined is None:
            classes = torch.from_numpy(self._codes[samples_B])
        else:
            classes = torch.from_numpy(draw(self._joined, samples_B, self._config.seed, epoch))
        return SameClass(classes.to(self._device, non_blocking=True))

    def read_ahead(self, samples_B: Int64, epoch: int) -> None:
        """Nothing is read from files."""

    def measures(self, *, with_kl: bool) -> dict[str, Tensor | None]:
        """There is nothing to measure."""
        return {"hit_rate": None, "kl_to_dense": None}


class XCLR:
    """Soft positives by the similarity of texts."""

    def __init__(self, config: TrainConfig, graph: Graph, joined: Joined, device: torch.device, split: Split) -> None:
        """Open the graph's rows.

        Raises:
            OptionError: If absent pairs have no similarity.
        """
        self._config, self._joined, self._split = config, joined, split
        bytes_needed = 2 * graph.n_texts * int(graph.manifest.encoder.get("dim") or 0)
        measured = bool(config.kl_every) and 0 < bytes_needed <= MOST_EMBEDDING_BYTES
        self._assembler = TargetAssembler(
            graph,
            tau_s=config.tau_s,
            absent=config.absent,
            symmetrize=config.symmetrize,
            min_similarity=config.min_similarity,
            own_weight=config.own_weight,
            teacher=config.teacher,
            device=device,
            graph_on_device=config.graph_on_device,
            measure_fidelity=measured,
        )
        self._measured = measured
        self._texts = torch.zeros(0, dtype=torch.int32)
        self._made: GraphTarget | None = None
        source = f"{graph.k} neighbours each" if config.teacher == "graph" else f"dense target ({bytes_needed / 1e9:.1f} GB)"
        self.note = f"{len(joined.indices):,} images of {graph.n_texts:,} texts, {source}"
        self.note += f"; the graph is held on {device}" if self._assembler.graph_on_device else ""
        if config.kl_every and not measured and config.teacher == "graph":
            self.note += f"; KL to the dense target is not measured (the embeddings take {bytes_needed / 1e9:.1f} GB)"

    def target(self, samples_B: Int64, epoch: int) -> Target:
        """Stored similarities, the sketch's estimate elsewhere; one caption an image and epoch."""
        self._texts = torch.from_numpy(draw(self._joined, samples_B, self._config.seed, epoch))
        anchors = None if self._split.whole else self._split.anchors
        self._made = self._assembler.target(self._texts, anchors, gather=self._split.gather)
        return self._made.target

    def read_ahead(self, samples_B: Int64, epoch: int) -> None:
        """Begin to read the rows of the next batch."""
        own = samples_B[self._split.anchors.start : self._split.anchors.stop]
        self._assembler.read_ahead(torch.from_numpy(draw(self._joined, own, self._config.seed, epoch)))

    def measures(self, *, with_kl: bool) -> dict[str, Tensor | None]:
        """Stored neighbours per anchor, and KL(dense || assembled) in nats.

        The KL is of the assembly, before pairs are left out and the own view is given its share.
        """
        assert self._made is not None, "a batch comes before its measures"
        anchors = self._split.anchors
        stored = self._made.stored(anchors.start, anchors.stop)
        # The dense target has neither stored pairs nor a distance to itself.
        from_graph = self._config.teacher == "graph"
        return {
            "hit_rate": stored.float().mean() if from_graph else None,
            "kl_to_dense": self._divergence() if from_graph and with_kl and self._measured else None,
        }

    def _divergence(self) -> Tensor:
        assert self._made is not None
        exact, plain, tau_s = self._assembler.dense_target(self._texts), self._made.plain, self._config.tau_s
        parts = [
            kl(exact.rows(tile.start, tile.stop), plain.rows(tile.start, tile.stop), tau_s, start=tile.start) * len(tile)
            for tile in self._split.tiles()
        ]
        return torch.stack(parts).sum() / len(self._split.anchors)


def make_objective(config: TrainConfig, data: TrainingData, device: torch.device, split: Split) -> Objective:
    """The objective that a configuration names.

    Args:
        config: What is asked for.
        data: The images and their graph.
        device: Where G is wanted.
        split: Which anchors of a batch are this process's, and how they are taken.

    Raises:
        UserError: If the data lack what it needs.
    """
    if config.objective == "simclr":
        return SimCLR(device)
    if config.objective == "supcon":
        return SupCon(config, data, device)
    if data.graph is None or data.joined is None:
        raise OptionError("xclr needs a graph: name it with --graph-dir.")
    return XCLR(config, data.graph, data.joined, device, split)


def draw(joined: Joined, samples_B: Int64, seed: int, epoch: int) -> Int32:
    """The text that each sample shows in an epoch; (B,)."""
    return draw_texts(joined.offsets, joined.text_ids, samples_B, seed=seed, epoch=epoch)
