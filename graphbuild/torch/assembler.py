"""The torch twin of `graphbuild.targets.assemble`, for CPU and CUDA: text ids in, similarities among the batch's samples out.

Shape letters: B samples in a batch, T anchors of a tile, K neighbours stored, R sketch width, D embedding width.
Nothing here waits for a device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from graphbuild.errors import OptionError
from graphbuild.store.choices import OnDevice, Symmetrize, Teacher
from graphbuild.store.graph import Graph
from graphbuild.targets.assemble import assemble, resolve_absent
from graphbuild.targets.softmax import check_tau_s
from graphbuild.torch.blocks import AveragedTarget, DenseTarget, Gather, MatrixTarget, StoredTarget, Target
from graphbuild.torch.rows import DeviceRows, MappedRows, belongs_on_device, rows_to_device, to_device
from graphbuild.torch.softmax import apply_options, kl

MOST_EMBEDDING_BYTES = 4 << 30
"""KL to the dense target is measured where the graph's embeddings are smaller than this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetOptions:
    """What the target of a batch is made of.

    Raises:
        OptionError: If a value is out of its range.
    """

    tau_s: float = 0.1
    """Temperature of the target."""
    absent: float | None = None
    """What a pair counts as that the graph does not store; None takes the sketch."""
    symmetrize: Symmetrize = "union"
    """Whether a pair counts as stored if either of its rows stores it (`union`), or only if both do (`mutual`)."""
    min_similarity: float | None = None
    """Pairs below it are left out of the target."""
    own_weight: float = 0.0
    """Share of the target that is given to the own view; the rest is the soft target."""
    teacher: Teacher = "graph"
    """`graph` for stored rows and sketches, `embeddings` for the dense target from them (2 N D bytes of memory)."""
    graph_on_device: OnDevice = "auto"
    """Whether the graph's rows are held on the device; `auto` does so on a GPU with room to spare."""

    def __post_init__(self) -> None:
        check_tau_s(self.tau_s)
        if not 0 <= self.own_weight <= 1:
            raise OptionError(f"own_weight is a share from 0 to 1, not {self.own_weight:g}.")
        choices = {"symmetrize": ("union", "mutual"), "teacher": ("graph", "embeddings"), "graph_on_device": ("auto", "yes", "no")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise OptionError(f"{name} {getattr(self, name)!r} is none of {', '.join(known)}.")


@dataclass(frozen=True, slots=True)
class GraphTarget:
    """G of a batch by rows, as the loss takes it, and what can be measured of it."""

    plain: Target
    """G before `min_similarity` and `own_weight`: what compares with the dense one."""
    options: TargetOptions
    exact: Callable[[], Target] | None
    """Makes the dense target; None where the embeddings are not at hand, or are the teacher."""
    stored: StoredTarget | Tensor | None
    """What knows the stored neighbours of every anchor, or their number (B,); None of the dense target."""

    def rows(self, start: int, stop: int) -> Tensor:
        """Return similarities of some anchors, with the options of the target applied; (T, B) float32."""
        options = self.options
        return apply_options(
            self.plain.rows(start, stop),
            min_similarity=options.min_similarity,
            own_weight=options.own_weight,
            tau_s=options.tau_s,
            start=start,
        )

    def hit_rate(self, anchors: range) -> Tensor | None:
        """Compute the stored neighbours per anchor in the batch; a scalar, None where nothing is stored."""
        if self.stored is None:
            return None
        part, stored = slice(anchors.start, anchors.stop), self.stored
        counts = stored[part] if isinstance(stored, Tensor) else stored.stored(part.start, part.stop)
        return counts.float().mean()

    def kl_to_dense(self, anchors: range, tile: int) -> Tensor | None:
        """Compute KL(dense || assembled), nats, before pairs are left out and the own view is given its share.

        Args:
            anchors: The rows that the mean is over.
            tile: How many of them are taken at a time.

        Returns:
            A scalar; None where there is no dense target to compare with.
        """
        if self.exact is None:
            return None
        dense, parts = self.exact(), []
        for start in range(anchors.start, anchors.stop, tile):
            stop = min(start + tile, anchors.stop)
            exact, plain = dense.rows(start, stop), self.plain.rows(start, stop)
            parts.append(kl(exact, plain, self.options.tau_s, start=start) * (stop - start))
        return torch.stack(parts).sum() / len(anchors)


class TargetAssembler:
    """A graph that is open as a teacher: turns the text ids of a batch into its similarities G."""

    def __init__(self, graph: Graph, options: TargetOptions, device: torch.device | str = "cpu") -> None:
        """Open a teacher.

        Args:
            graph: The graph, open for reading.
            options: What the target is made of.
            device: Where G is wanted.

        Raises:
            OptionError: If the graph has no sketch and no constant is given, or its rescored similarities are asked of embeddings.
            ResourceError: If the graph is to be held on a device that has no room for it.
        """
        self.graph, self.options, self.device = graph, options, torch.device(device)
        from_graph = options.teacher == "graph"
        if not from_graph and graph.similarity != "stored":
            raise OptionError(
                "teacher embeddings takes similarities from vectors, not those of a cross-encoder. Leave one of them out."
            )
        self._absent = resolve_absent(graph, options.absent) if from_graph else options.absent
        resident = from_graph and belongs_on_device(graph, self.device, options.graph_on_device)
        self._resident = DeviceRows(graph, self.device) if resident else None
        self._mapped = MappedRows(graph)
        self._embeddings = None if from_graph else graph.embeddings()
        self.captions_at_once = 8_192
        """Captions whose similarities are averaged from one matrix (256 MiB), at most; more are scored by rows."""

    @property
    def graph_on_device(self) -> bool:
        """Whether the graph's rows are held on the device."""
        return self._resident is not None

    @property
    def embedding_bytes(self) -> int:
        """Memory that the graph's embeddings take; 0 where it has none."""
        return 2 * self.graph.n_texts * int(self.graph.manifest.encoder.get("dim") or 0)

    def load_embeddings(self) -> bool:
        """Load the embeddings, where similarities are theirs and they take at most 4 GiB, so that KL to the dense target is known.

        Returns:
            Whether they are there.
        """
        # Those of a cross-encoder are another measure, which has no dense target to compare with.
        comparable = self.graph.similarity == "stored"
        if self._embeddings is None and comparable and 0 < self.embedding_bytes <= MOST_EMBEDDING_BYTES:
            self._embeddings = self.graph.embeddings()
        return self._embeddings is not None

    def read_ahead(self, text_ids_B: Tensor) -> None:
        """Begin to read the rows of the next batch, where they come from files. Text ids are on the CPU."""
        if self.options.teacher == "graph" and self._resident is None:
            self._mapped.read_ahead(text_ids_B.numpy())

    def assemble(self, text_ids_B: Tensor, anchors: range | None = None, *, gather: Gather | None = None) -> GraphTarget:
        """Make G of a batch by rows, as the loss takes them tile by tile.

        On a CPU, and for all anchors at once, this is the numba reference. On a GPU all of it happens there: where the graph is
        held on the device only the text ids travel, else the B rows; neither waits for the device, if the ids are on the CPU.

        Args:
            text_ids_B: The text of each sample of the whole batch, on any device; (B,).
            anchors: The samples whose rows are asked for; None: all, and at once.
            gather: Where several processes share a batch, brings their rows together; `anchors` are then this process's.
        """
        if self.options.teacher == "embeddings":
            return GraphTarget(self._dense(text_ids_B), self.options, None, None)
        exact = None if self._embeddings is None else partial(self._dense, text_ids_B)
        if anchors is None and self._resident is None and self.device.type == "cpu":
            return self._whole(text_ids_B.detach().cpu().numpy(), exact)
        stored = self._stored(text_ids_B, anchors if gather else None, gather or (lambda own: own))
        return GraphTarget(stored, self.options, exact, stored)

    def average(self, text_ids_C: Tensor, offsets: Tensor, positions_B: Tensor) -> GraphTarget:
        """Make G of samples with several captions, each pair the mean over the captions of both.

        Args:
            text_ids_C: The texts of all samples of the batch, one after another, on the CPU; (C,).
            offsets: Sample i has the texts from `offsets[i]` to `offsets[i + 1]` - 1; (B + 1,).
            positions_B: What tells the samples apart, on the CPU; (B,).
        """
        captions = self.assemble(text_ids_C, range(len(text_ids_C)) if len(text_ids_C) > self.captions_at_once else None)
        positions = positions_B.to(self.device)
        dense, stored = captions.exact, None
        exact = None if dense is None else lambda: AveragedTarget(dense(), offsets, positions)
        if captions.stored is not None:
            counted = captions.stored
            counts = counted if isinstance(counted, Tensor) else counted.stored(0, len(text_ids_C))
            stored = torch.segment_reduce(counts.float(), "mean", offsets=offsets.to(counts.device))
        return GraphTarget(AveragedTarget(captions.plain, offsets, positions), self.options, exact, stored)

    def _whole(self, text_ids_B: npt.NDArray[np.integer], exact: Callable[[], Target] | None) -> GraphTarget:
        rows = self._mapped.rows(text_ids_B)
        assembly = assemble(rows, text_ids_B, absent=self._absent, symmetrize=self.options.symmetrize)
        stored = torch.from_numpy(assembly.stored_B)
        return GraphTarget(MatrixTarget(torch.from_numpy(assembly.similarity_BB)), self.options, exact, stored)

    def _stored(self, text_ids_B: Tensor, own: range | None, gather: Gather) -> StoredTarget:
        ids = _move(text_ids_B, self.device)
        absent, symmetrize, correction = self._absent, self.options.symmetrize, self.graph.correction
        if self._resident is not None:
            # Each process holds the graph: looking all rows up costs less than sending what was found.
            return StoredTarget(self._resident.rows(ids), ids, absent=absent, symmetrize=symmetrize, correction=correction)
        mine = text_ids_B if own is None else text_ids_B[own.start : own.stop]
        rows = rows_to_device(self._mapped.rows(mine.detach().cpu().numpy()), self.device)
        return StoredTarget(rows, ids, absent=absent, symmetrize=symmetrize, gather=gather, correction=correction)

    def _dense(self, text_ids_B: Tensor) -> DenseTarget:
        assert self._embeddings is not None, "asked for only where they are"
        vectors = to_device(self._embeddings[text_ids_B.detach().cpu().numpy()], self.device)
        return DenseTarget(vectors, _move(text_ids_B, self.device))


def _move(text_ids_B: Tensor, device: torch.device) -> Tensor:
    on_host = text_ids_B.device.type == "cpu"
    return to_device(text_ids_B.numpy(), device) if on_host else text_ids_B.to(device, non_blocking=True)
