"""The targets of objectives as one interface: samples of a batch in, their similarity matrix G out, by rows.

Shape letters: B samples in a batch. What G means for each objective is in `graphbuild.torch.blocks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from graphbuild.errors import OptionError
from graphbuild.store.arrays import Int32, Int64
from graphbuild.store.choices import Mix
from graphbuild.store.graph import Graph
from graphbuild.targets.batches import draw_texts
from graphbuild.torch.assembler import GraphTarget
from graphbuild.torch.blocks import Gather, OneHotTarget, SameClassTarget, Target
from graphbuild.torch.mixture import mix_targets
from graphbuild.torch.soft_targets import SoftTargets
from train.config import TrainConfig
from train.data.join import Joined
from train.data.prepare import TrainingData


class TargetMaker(Protocol):
    """Makes the target of a batch."""

    note: str
    """What a user should know about it, in one line; empty if nothing."""

    def target(self, samples_B: Int64, epoch: int) -> Target:
        """Make G of a batch; all of it, whichever process has which sample."""

    def read_ahead(self, samples_B: Int64, epoch: int) -> None:
        """Begin to read what the next batch needs; only a hint."""


@dataclass(frozen=True, slots=True)
class Split:
    """How a batch is taken."""

    anchors: range
    """This process's samples of a batch."""
    tile: int
    """How many of them at a time."""
    gather: Gather | None = None
    """Brings the rows of several processes together; None where there is one."""

    def whole(self, samples: int) -> bool:
        """Return whether one process takes all rows of so many samples at once."""
        return self.gather is None and self.tile >= samples == len(self.anchors)


class SimCLR:
    """Positives are the two views of one image, and its earlier views where there is a queue."""

    def __init__(self, device: torch.device, *, queued: bool = False) -> None:
        self.note = ""
        self._device, self._queued = device, queued

    def target(self, samples_B: Int64, epoch: int) -> Target:
        """Return 1 on the diagonal; everything else is left out."""
        if self._queued:
            return SameClassTarget(torch.from_numpy(samples_B).to(self._device, non_blocking=True))
        return OneHotTarget(len(samples_B), self._device)

    def read_ahead(self, samples_B: Int64, epoch: int) -> None:
        """Do nothing: no files are read."""


class SupCon:
    """Positives are the images of one class: of a label column, else those of equal texts."""

    def __init__(self, config: TrainConfig, data: TrainingData, device: torch.device) -> None:
        """Read the classes.

        Raises:
            SourceError: If there is no such column.
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
        else:
            self._joined = data.joined
            self.note = "classes: images of equal texts (no --label-column)"

    def target(self, samples_B: Int64, epoch: int) -> Target:
        """Return 1 between images of one class; everything else is left out."""
        if self._joined is None:
            classes = torch.from_numpy(self._codes[samples_B])
        else:
            classes = torch.from_numpy(draw(self._joined, samples_B, self._config.seed, epoch))
        return SameClassTarget(classes.to(self._device, non_blocking=True))

    def read_ahead(self, samples_B: Int64, epoch: int) -> None:
        """Do nothing: no files are read."""


class XCLR:
    """Soft positives by the similarity of texts."""

    def __init__(self, config: TrainConfig, graph: Graph, joined: Joined, device: torch.device, split: Split) -> None:
        """Open the graph's rows.

        Raises:
            OptionError: If absent pairs have no similarity.
        """
        self._config, self._joined, self._split = config, joined, split
        self._targets = SoftTargets(
            graph.path,
            device=device,
            tau_s=float(config.tau_s),
            absent=config.absent,
            symmetrize=config.symmetrize,
            min_similarity=config.min_similarity,
            own_weight=config.own_weight,
            teacher=config.teacher,
            graph_on_device=config.graph_on_device,
            similarity=config.similarity,
        )
        assembler = self._targets.assembler
        measured = bool(config.kl_every) and assembler.load_embeddings()
        gigabytes = assembler.embedding_bytes / 1e9
        rescored = "" if config.similarity == "stored" else " rescored"
        source = (
            f"{assembler.graph.k}{rescored} neighbours each" if config.teacher == "graph" else f"dense target ({gigabytes:.1f} GB)"
        )
        self.note = f"{len(joined.indices):,} images of {graph.n_texts:,} texts, {source}"
        self.note += f"; the graph is held on {device}" if assembler.graph_on_device else ""
        if config.kl_every and not measured and config.teacher == "graph":
            why = f"the embeddings take {gigabytes:.1f} GB" if not rescored else "it is another measure"
            self.note += f"; KL to the dense target is not measured ({why})"

    def target(self, samples_B: Int64, epoch: int) -> GraphTarget:
        """Take stored similarities, the sketch's estimate elsewhere; one caption an image and epoch."""
        texts = torch.from_numpy(draw(self._joined, samples_B, self._config.seed, epoch))
        anchors = None if self._split.whole(len(samples_B)) else self._split.anchors
        return self._targets.of_texts(texts, anchors, gather=self._split.gather)

    def read_ahead(self, samples_B: Int64, epoch: int) -> None:
        """Begin to read the rows of the next batch."""
        own = samples_B[self._split.anchors.start : self._split.anchors.stop]
        self._targets.assembler.read_ahead(torch.from_numpy(draw(self._joined, own, self._config.seed, epoch)))


class Mixed:
    """Soft positives by several graphs."""

    def __init__(self, parts: Sequence[XCLR], shares: tuple[float, ...], mix: Mix) -> None:
        self._parts, self._shares, self._mix = parts, shares, mix
        told = [f"{share:.3g} of {part.note}" for share, part in zip(shares, parts, strict=True)]
        self.note = f"mean of {mix}: {' + '.join(told)}"

    def target(self, samples_B: Int64, epoch: int) -> GraphTarget:
        """Take the target of each graph, and their mean."""
        return mix_targets([part.target(samples_B, epoch) for part in self._parts], self._shares, self._mix)

    def read_ahead(self, samples_B: Int64, epoch: int) -> None:
        """Begin to read the rows of the next batch."""
        for part in self._parts:
            part.read_ahead(samples_B, epoch)


def measures(target: Target, split: Split, *, with_kl: bool) -> dict[str, Tensor | None]:
    """Measure a batch's target, over the anchors of this process.

    Returns:
        `hit_rate`, stored neighbours per anchor, and `kl_to_dense`, KL(dense || assembled) in nats; None where they have no
        meaning: without a graph, and for the dense target, which has neither stored pairs nor a distance to itself.
    """
    if not isinstance(target, GraphTarget):
        return {"hit_rate": None, "kl_to_dense": None}
    return {
        "hit_rate": target.hit_rate(split.anchors),
        "kl_to_dense": target.kl_to_dense(split.anchors, split.tile) if with_kl else None,
    }


def make_target(config: TrainConfig, data: TrainingData, device: torch.device, split: Split) -> TargetMaker:
    """Make the target of simclr, supcon or xclr.

    Args:
        config: What is asked for.
        data: The images and their graph.
        device: Where G is wanted.
        split: Which anchors of a batch are this process's, and how they are taken.

    Raises:
        UserError: If the data lack what it needs.
    """
    if config.objective == "simclr":
        return SimCLR(device, queued=bool(config.queue))
    if config.objective == "supcon":
        return SupCon(config, data, device)
    return make_graph_target(config, data, device, split)


def make_graph_target(config: TrainConfig, data: TrainingData, device: torch.device, split: Split) -> XCLR | Mixed:
    """Make the target of X-CLR, whichever objective uses it; that of several --graph-dir is their mixture.

    Raises:
        OptionError: If there is no graph.
    """
    if data.graph is None or data.joined is None:
        options = {"negatives": config.negatives, "positives": config.positives, "tau-s": config.tau_s}
        asking = [f" with --{name} {value}" for name, value in options.items() if value in ("graph", "auto")]
        raise OptionError(f"{config.objective}{''.join(asking[:1])} needs a graph: name it with --graph-dir.")
    if not config.more_graphs:
        return XCLR(config, data.graph, data.joined, device, split)
    known = [data.opened.known[path] for path in (str(data.graph.path), *config.more_graphs)]
    parts = [XCLR(config, graph, joined, device, split) for graph, joined in known]
    return Mixed(parts, config.graph_shares, config.graph_mix)


def draw(joined: Joined, samples_B: Int64, seed: int, epoch: int) -> Int32:
    """Draw the text that each sample shows in an epoch; (B,)."""
    return draw_texts(joined.offsets, joined.text_ids, samples_B, seed=seed, epoch=epoch)
