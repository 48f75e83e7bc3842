"""The three objectives as one interface: samples of a batch in, their similarity matrix G out.

Shape letters: B samples in a batch. What G means for each objective is in `train.targets`.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from graphbuild.errors import OptionError
from graphbuild.graph import Graph
from train.batches import draw_texts
from train.config import TrainConfig
from train.data.base import Int32, Int64
from train.data.join import Joined
from train.data.prepare import TrainingData
from train.targets import TargetAssembler, kl, one_hot, own_view_mass, same_class

MOST_EMBEDDING_BYTES = 4 << 30
"""KL to the dense target is measured where the graph's embeddings are smaller than this."""


class Objective(Protocol):
    """Makes the target of a batch."""

    note: str
    """What a user should know about it, in one line; empty if nothing."""

    def similarity(self, samples_B: Int64, epoch: int) -> Tensor:
        """G of a batch; (B, B) float32."""

    def read_ahead(self, samples_B: Int64, epoch: int) -> None:
        """Begin to read what the next batch needs; only a hint."""

    def measures(self, similarity_BB: Tensor, *, with_kl: bool) -> dict[str, float | None]:
        """`own_view_mass`, `hit_rate` and `kl_to_dense` of the batch whose G was made last; None where it has no meaning."""


class SimCLR:
    """Positives are the two views of one image."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.note = ""
        self._device = device
        self._last = one_hot(config.batch_size, device=device)

    def similarity(self, samples_B: Int64, epoch: int) -> Tensor:
        """1 on the diagonal, everything else left out."""
        if len(samples_B) != len(self._last):
            self._last = one_hot(len(samples_B), device=self._device)
        return self._last

    def read_ahead(self, samples_B: Int64, epoch: int) -> None:
        """Nothing is read from files."""

    def measures(self, similarity_BB: Tensor, *, with_kl: bool) -> dict[str, float | None]:
        """All of the target lies on the own view."""
        return {"own_view_mass": 1.0, "hit_rate": None, "kl_to_dense": None}


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

    def similarity(self, samples_B: Int64, epoch: int) -> Tensor:
        """1 between images of one class, everything else left out."""
        if self._joined is None:
            classes = torch.from_numpy(self._codes[samples_B])
        else:
            classes = torch.from_numpy(_texts(self._joined, samples_B, self._config.seed, epoch))
        return same_class(classes.to(self._device))

    def read_ahead(self, samples_B: Int64, epoch: int) -> None:
        """Nothing is read from files."""

    def measures(self, similarity_BB: Tensor, *, with_kl: bool) -> dict[str, float | None]:
        """The share of the target on the own view."""
        mass = float(own_view_mass(similarity_BB, self._config.tau_s))
        return {"own_view_mass": mass, "hit_rate": None, "kl_to_dense": None}


class XCLR:
    """Soft positives by the similarity of texts."""

    def __init__(self, config: TrainConfig, graph: Graph, joined: Joined, device: torch.device) -> None:
        """Open the graph's rows.

        Raises:
            OptionError: If absent pairs have no similarity.
        """
        self._config, self._joined = config, joined
        bytes_needed = 2 * graph.n_texts * int(graph.manifest.encoder.get("dim") or 0)
        measured = bool(config.kl_every) and 0 < bytes_needed <= MOST_EMBEDDING_BYTES
        self._assembler = TargetAssembler(
            graph,
            tau_s=config.tau_s,
            absent=config.absent,
            symmetrize=config.symmetrize,
            min_similarity=config.min_similarity,
            own_weight=config.own_weight,
            device=device,
            graph_on_device=config.graph_on_device,
            measure_fidelity=measured,
        )
        self._measured = measured
        self._texts = torch.zeros(0, dtype=torch.int32)
        self.note = f"{len(joined.indices):,} images of {graph.n_texts:,} texts, {graph.k} neighbours each"
        self.note += f"; the graph is held on {device}" if self._assembler.graph_on_device else ""
        if config.kl_every and not measured:
            self.note += f"; KL to the dense target is not measured (the embeddings take {bytes_needed / 1e9:.1f} GB)"

    def similarity(self, samples_B: Int64, epoch: int) -> Tensor:
        """Stored similarities, the sketch's estimate elsewhere; one caption an image and epoch."""
        self._texts = torch.from_numpy(_texts(self._joined, samples_B, self._config.seed, epoch))
        return self._assembler.assemble(self._texts)

    def read_ahead(self, samples_B: Int64, epoch: int) -> None:
        """Begin to read the rows of the next batch."""
        self._assembler.read_ahead(torch.from_numpy(_texts(self._joined, samples_B, self._config.seed, epoch)))

    def measures(self, similarity_BB: Tensor, *, with_kl: bool) -> dict[str, float | None]:
        """Share on the own view, stored neighbours per anchor, KL(dense || assembled) in nats.

        The KL is of the assembly, before pairs are left out and the own view is given its share.
        """
        divergence = None
        if with_kl and self._measured:
            divergence = float(kl(self._assembler.dense(self._texts), self._assembler.last_plain_BB, self._config.tau_s))
        return {
            "own_view_mass": float(own_view_mass(similarity_BB, self._config.tau_s)),
            "hit_rate": float(self._assembler.last_stored_B.float().mean()),
            "kl_to_dense": divergence,
        }


def make_objective(config: TrainConfig, data: TrainingData, device: torch.device) -> Objective:
    """The objective that a configuration names.

    Raises:
        UserError: If the data lack what it needs.
    """
    if config.objective == "simclr":
        return SimCLR(config, device)
    if config.objective == "supcon":
        return SupCon(config, data, device)
    if data.graph is None or data.joined is None:
        raise OptionError("xclr needs a graph: name it with --graph-dir.")
    return XCLR(config, data.graph, data.joined, device)


def _texts(joined: Joined, samples_B: Int64, seed: int, epoch: int) -> Int32:
    return draw_texts(joined.offsets, joined.text_ids, samples_B, seed=seed, epoch=epoch)
