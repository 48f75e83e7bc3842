"""Soft targets for any training loop: sample ids of a batch in, similarities among its samples out.

Shape letters: B samples in a batch, over all processes; b of them this process's.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphbuild.errors import OptionError
from graphbuild.store.arrays import Int64
from graphbuild.store.choices import OnDevice, Similarity, Symmetrize, Teacher
from graphbuild.store.graph import Graph
from graphbuild.store.manifest import Manifest
from graphbuild.targets.samples import Captions, Coverage, coverage, positions_of, texts_of_batch
from graphbuild.torch.assembler import GraphTarget, TargetAssembler, TargetOptions
from graphbuild.torch.blocks import Gather
from graphbuild.torch.devices import choose_device
from graphbuild.torch.gather import gather, this_place
from graphbuild.torch.softmax import entropy_of, target_weights

SampleIds = Sequence[str] | Tensor
"""Sample ids as the graph has them, or positions from `SoftTargets.positions`."""


class SoftTargets:
    """Similarities among the samples of a batch, as a graph stores them: what `XCLRLoss` takes.

    Files are opened where they are first needed, so that it pickles in bytes, and works in threads and in forked or spawned
    DataLoader workers. The graph directory may be read-only.

    >>> from graphbuild.torch import SoftTargets
    >>> targets = SoftTargets(example_graph)
    >>> targets(["sample-0-0", "sample-1-0", "sample-2-0"]).shape
    torch.Size([3, 3])
    """

    def __init__(
        self,
        graph_dir: Path | str,
        *,
        device: torch.device | str | None = None,
        tau_s: float = 0.1,
        absent: float | None = None,
        symmetrize: Symmetrize = "union",
        min_similarity: float | None = None,
        own_weight: float = 0.0,
        teacher: Teacher = "graph",
        captions: Captions = "draw",
        seed: int = 0,
        gather_distributed: bool = True,
        graph_on_device: OnDevice = "auto",
        similarity: Similarity = "stored",
    ) -> None:
        """Describe the targets; the graph is opened at the first batch.

        Args:
            graph_dir: A graph directory whose knn stage is done.
            device: Where similarities are wanted; None: on the CPU.
            tau_s: Temperature of the target, for `own_weight` and `describe`; give the loss the same one.
            absent: What a pair counts as that the graph does not store; None takes the sketch. -inf leaves such pairs out.
            symmetrize: Whether a pair counts as stored if either of its rows stores it (`union`), or only if both do (`mutual`).
            min_similarity: Pairs below it are left out of the target (-inf).
            own_weight: Share of the target that is given to the other view of the same sample; the rest stays soft.
            teacher: `graph` for stored rows and sketches, `embeddings` for exact similarities (2 N D bytes of memory).
            captions: What a sample with several captions shows: one, drawn by (seed, epoch), or the average over all.
            seed: Of the draw among captions.
            gather_distributed: Whether processes of torch.distributed share one batch; then each gets its rows, (b, B).
            graph_on_device: Whether the graph's rows are held on the device; `auto`: on a GPU with twice the room.
            similarity: `rescored` takes the cross-encoder's similarities of `graphbuild rescore`; pairs that were not rescored
                count as `absent`, which must then be given.

        Raises:
            OptionError: If a value is out of its range, or there is no such device.
            ArtifactError: If there is no graph, or the stage that holds its similarities is not done.
        """
        if similarity not in ("stored", "rescored"):
            raise OptionError(f"similarity {similarity!r} is neither stored nor rescored.")
        if captions not in ("draw", "average"):
            raise OptionError(f"captions {captions!r} is neither draw nor average.")
        # Absolute, so that a worker that starts in another folder finds it.
        self.graph_dir = Path(graph_dir).absolute()
        self.device = choose_device(device or "cpu")
        self.captions, self.seed, self.gather_distributed = captions, seed, gather_distributed
        self.options = TargetOptions(
            tau_s=tau_s,
            absent=absent,
            symmetrize=symmetrize,
            min_similarity=min_similarity,
            own_weight=own_weight,
            teacher=teacher,
            graph_on_device=graph_on_device,
        )
        self._epoch, self.similarity = 0, similarity
        Manifest.load(self.graph_dir).require("knn" if similarity == "stored" else "rescore", self.graph_dir)
        self._opened: tuple[int, TargetAssembler] | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"SoftTargets({str(self.graph_dir)!r}, device={str(self.device)!r}, {self.options}, captions={self.captions!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"} | {"_opened": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def __call__(self, ids: SampleIds, *, epoch: int | None = None) -> Tensor:
        """Compute the similarities among the samples of a batch.

        Args:
            ids: The samples of this process: sample ids, or positions as a tensor of integers; (b,).
            epoch: For the draw among captions, from 0; None: that of `set_epoch`.

        Returns:
            G, (B, B) float32 on the device: 1 on the diagonal and between samples of one text. Where processes share the
            batch, the rows of this process's samples, (b, B).

        Raises:
            SourceError: If the graph does not know all samples; the message names them.
            ArtifactError: If a file of the graph is missing or damaged.
            OptionError: If positions are not of this graph, or absent pairs have no similarity.
        """
        target, anchors = self.of_ids(ids, epoch)
        return target.rows(anchors.start, anchors.stop)

    def set_epoch(self, epoch: int) -> None:
        """Draw other captions from now on. Has no effect on workers that are running: pass them `epoch=`."""
        self._epoch = epoch

    def positions(self, ids: Sequence[str]) -> Tensor:
        """Look up samples once, for all batches to come: row i of a data set has position i.

        Args:
            ids: Sample ids as the graph has them; (S,).

        Returns:
            The first row of each in the graph's samples table; (S,) int64 on the CPU.

        Raises:
            SourceError: If the graph does not know all samples; the message names some and says how many there are.
        """
        return torch.from_numpy(positions_of(self.graph, ids))

    def coverage(self, ids: Sequence[str]) -> Coverage:
        """Count how many of some sample ids the graph knows: `known`, `total`, `share`, and a `mask` of those that are."""
        return coverage(self.graph, ids)

    def describe(self, ids: SampleIds, *, epoch: int | None = None) -> dict[str, float]:
        """Measure the target of a batch, for logging; means over this process's samples, entropies in nats.

        Returns:
            `own_view_mass`: share of the target on the other view of the same sample. `target_entropy`, and
            `effective_positives`, its exponential. `hit_rate`: stored neighbours a sample in the batch, other
            captions of it included where all are averaged; not of the dense target.
            `kl_to_dense`: KL(dense || target), before `min_similarity` and `own_weight`; left out where embeddings take more
            than 4 GiB, or are the teacher.
        """
        self.assembler.load_embeddings()
        return describe_target(*self.of_ids(ids, epoch))

    @property
    def graph(self) -> Graph:
        """The graph, open for reading."""
        return self.assembler.graph

    @property
    def assembler(self) -> TargetAssembler:
        """The open teacher of this process; opened at its first use.

        Raises:
            ArtifactError: If a file of the graph is missing or damaged.
            OptionError: If absent pairs have no similarity.
        """
        opened = self._opened
        # A forked worker opens its own: the threads of its parent are not in it.
        if opened is None or opened[0] != os.getpid():
            with self._lock:
                opened = self._opened
                if opened is None or opened[0] != os.getpid():
                    assembler = TargetAssembler(Graph.open(self.graph_dir, similarity=self.similarity), self.options, self.device)
                    opened = self._opened = (os.getpid(), assembler)
        return opened[1]

    def of_texts(self, text_ids_B: Tensor, anchors: range | None = None, *, gather: Gather | None = None) -> GraphTarget:
        """Make the target of a batch whose texts are known, by rows, as the loss takes them tile by tile.

        Args:
            text_ids_B: The text of each sample of the whole batch; (B,).
            anchors: The samples whose rows are asked for; None: all, and at once.
            gather: Where several processes share a batch, brings their rows together; `anchors` are then this process's.
        """
        return self.assembler.assemble(text_ids_B, anchors, gather=gather)

    def of_ids(self, ids: SampleIds, epoch: int | None = None) -> tuple[GraphTarget, range]:
        """Make the target of a batch, by rows, and tell which of its samples are this process's."""
        positions = self._positions_of(ids)
        place = this_place()
        shared = self.gather_distributed and place.world > 1
        if shared:
            positions = gather(torch.from_numpy(positions)).numpy()
        epoch = self._epoch if epoch is None else epoch
        found = texts_of_batch(self.graph, positions, captions=self.captions, seed=self.seed, epoch=epoch)
        anchors = place.part(len(positions)) if shared else range(len(positions))
        texts = torch.from_numpy(found.text_ids)
        if len(texts) != len(positions):
            offsets = torch.from_numpy(found.offsets)
            return self.assembler.average(texts, offsets, torch.from_numpy(positions)), anchors
        return self.of_texts(texts, anchors if shared else None, gather=gather if shared else None), anchors

    def _positions_of(self, ids: SampleIds) -> Int64:
        if not isinstance(ids, Tensor | np.ndarray) or not _is_integer(ids):
            return positions_of(self.graph, ids.tolist() if isinstance(ids, Tensor | np.ndarray) else ids)
        if ids.ndim != 1:
            raise OptionError(f"positions are one row of integers, not of shape {tuple(ids.shape)}.")
        found: Int64 = np.asarray(ids.cpu() if isinstance(ids, Tensor) else ids, np.int64)
        return found


def describe_target(target: GraphTarget, anchors: range) -> dict[str, float]:
    """Measure a target, over some anchors: what `SoftTargets.describe` says."""
    weights, logs = target_weights(target.rows(anchors.start, anchors.stop), target.options.tau_s, start=anchors.start)
    entropy = entropy_of(weights, logs, start=anchors.start).mean()
    figures = {
        "own_view_mass": weights.diagonal(anchors.start).mean(),
        "target_entropy": entropy,
        "effective_positives": entropy.exp(),
        "hit_rate": target.hit_rate(anchors),
        "kl_to_dense": target.kl_to_dense(anchors, len(anchors)),
    }
    return {name: float(value) for name, value in figures.items() if value is not None}


def _is_integer(values: Tensor | np.ndarray[Any, Any]) -> bool:
    if isinstance(values, Tensor):
        return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)
    return bool(np.issubdtype(values.dtype, np.integer))
