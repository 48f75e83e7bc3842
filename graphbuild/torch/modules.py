"""Losses with negatives for a training loop: two views of a batch in, nats out; under torch.distributed those of one process.

Shape letters: B samples in a batch, over all processes; b of them this process's; D width of the projections.
The projections of all processes are gathered, with their gradients, and each process takes the loss of its own samples
against all of them. So the mean of the processes' losses, and the gradients that DistributedDataParallel averages, are those
of one process with the whole batch. Every process passes equally many samples.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from graphbuild.errors import OptionError
from graphbuild.targets.softmax import check_tau_s
from graphbuild.torch.blocks import SameClassTarget, Target
from graphbuild.torch.gather import gather, whole_batch
from graphbuild.torch.losses import SoftLoss, soft_cross_entropy, tile_size, wide
from graphbuild.torch.order import rank_loss
from graphbuild.torch.repulsion import ByGraph, Repulsion
from graphbuild.torch.views import ViewLoss


def two_view_loss(
    z_2bD: Tensor,
    target: Target,
    *,
    tau: float,
    tau_s: float,
    tile: int = 0,
    gather_distributed: bool = True,
    repulsion: Repulsion | None = None,
    past_2QD: Tensor | None = None,
) -> SoftLoss:
    """Compute the loss of this process's samples against those of all processes.

    Args:
        z_2bD: Projections of this process, of unit length, first views before second ones; (2b, D).
        target: G of the whole batch, by rows; with `past_2QD`, (B, B + Q).
        tau: Temperature of the learned similarities.
        tau_s: Temperature of the target.
        tile: Samples that are taken at a time; 0: as many as keep the logits within 256 MiB.
        gather_distributed: Whether the batch is that of all processes; else each has its own.
        repulsion: Weights of the denominator; None: all pairs weigh the same.
        past_2QD: Projections of Q samples of earlier batches, the same in all processes, first views before second ones: pairs
            of the batch's samples with them count as those within it do; (2Q, D).
    """
    z_2BD, anchors = whole_batch(z_2bD, distributed=gather_distributed)
    if past_2QD is not None:
        views = zip(z_2BD.chunk(2), past_2QD.chunk(2), strict=True)
        z_2BD = torch.cat([rows for view in views for rows in view])
    size = tile_size(tile, len(z_2BD) // 2)
    return soft_cross_entropy(z_2BD, target, anchors, tile=size, tau=tau, tau_s=tau_s, repulsion=repulsion)


class _Contrastive(ViewLoss):
    """What losses of unit vectors share: temperatures, and whom an anchor is pushed from."""

    def __init__(self, tau: float, tau_s: float, gather_distributed: bool, negatives: Repulsion | None = None) -> None:
        super().__init__(gather_distributed)
        if not tau > 0:
            raise OptionError(f"tau is a positive temperature, not {tau:g}. The paper's is 0.1.")
        check_tau_s(tau_s)
        self.tau, self.tau_s, self.negatives = tau, tau_s, negatives

    def extra_repr(self) -> str:
        """Return what `print` shows."""
        weights = "" if self.negatives is None else f", negatives={self.negatives}"
        return f"tau={self.tau:g}, tau_s={self.tau_s:g}, gather_distributed={self.gather_distributed}{weights}"

    def _loss(self, z0: Tensor, z1: Tensor, target: Target) -> Tensor:
        found = two_view_loss(
            _unit(z0, z1),
            target,
            tau=self.tau,
            tau_s=self.tau_s,
            gather_distributed=self.gather_distributed,
            repulsion=self.negatives,
        )
        return found.loss


class XCLRLoss(_Contrastive):
    """The X-CLR loss (arXiv 2407.18134): two views against the soft target that `SoftTargets` gives."""

    def __init__(
        self, tau: float = 0.1, tau_s: float = 0.1, gather_distributed: bool = True, negatives: Repulsion | None = None
    ) -> None:
        """Set the temperatures.

        Args:
            tau: Of the learned similarities.
            tau_s: Of the target; that of `SoftTargets`, where `own_weight` is used.
            gather_distributed: Whether processes of torch.distributed share one batch; as in `SoftTargets`.
            negatives: Weights of the denominator: `Decoupled`, `Hard`, `ByGraph` or `Mixed`; None: all pairs weigh the same.
        """
        super().__init__(tau, tau_s, gather_distributed, negatives)

    def forward(self, z0: Tensor, z1: Tensor, similarity: Tensor) -> Tensor:
        """Compute the loss of this process's samples, nats; a scalar.

        Args:
            z0: Projections of one view, of any length; (b, D).
            z1: Projections of the other view, in the same order; (b, D).
            similarity: What `SoftTargets` gave for these samples: (B, B), or, under torch.distributed, (b, B).

        Raises:
            ValueError: If the shapes do not fit.
        """
        return self._loss(z0, z1, self.target_of(similarity, z0, z1))


class RankLoss(_Contrastive):
    """Rank-N-Contrast (arXiv 2210.01189) by the graph's order: a pair is nearer than all that the graph calls farther."""

    def __init__(self, tau: float = 0.1, gather_distributed: bool = True) -> None:
        """Set the temperature of the learned similarities, and whether processes of torch.distributed share one batch."""
        super().__init__(tau, 1.0, gather_distributed)

    def forward(self, z0: Tensor, z1: Tensor, similarity: Tensor) -> Tensor:
        """Compute the loss of this process's samples, nats; a scalar. Arguments and errors are those of `XCLRLoss`."""
        target = self.target_of(similarity, z0, z1)
        z_2BD, anchors = whole_batch(_unit(z0, z1), distributed=self.gather_distributed)
        return rank_loss(z_2BD, target, anchors, tile=tile_size(0, len(z_2BD) // 2), tau=self.tau)


class SimCLRLoss(_Contrastive):
    """NT-Xent (SimCLR, arXiv 2002.05709): the other view is the only positive."""

    def __init__(self, tau: float = 0.1, gather_distributed: bool = True, negatives: Repulsion | None = None) -> None:
        """Set the temperature of the learned similarities; the others are those of `XCLRLoss`.

        Raises:
            OptionError: If `negatives` are those of a graph, which this loss is not given.
        """
        super().__init__(tau, 1.0, gather_distributed, _without_graph(negatives))

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """Compute the loss of this process's samples, nats; a scalar. Views are (b, D), of any length, in the same order."""
        return self._loss(z0, z1, self.target_of(None, z0, z1))


class SupConLoss(_Contrastive):
    """SupCon, L_out (arXiv 2004.11362): all views of one class are positives, in equal parts."""

    def __init__(self, tau: float = 0.1, gather_distributed: bool = True, negatives: Repulsion | None = None) -> None:
        """Set the temperature of the learned similarities; the others are those of `XCLRLoss`.

        Raises:
            OptionError: If `negatives` are those of a graph, which this loss is not given.
        """
        super().__init__(tau, 1.0, gather_distributed, _without_graph(negatives))

    def forward(self, z0: Tensor, z1: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of this process's samples, nats; a scalar.

        Args:
            z0: Projections of one view, of any length; (b, D).
            z1: Projections of the other view, in the same order; (b, D).
            labels: The class of each sample; (b,) integers.

        Raises:
            ValueError: If the shapes do not fit.
        """
        self.place_of(z0, z1)
        if labels.shape != (len(z0),):
            raise ValueError(f"labels are {tuple(labels.shape)}, and there are {len(z0)} samples: one label a sample")
        labels = labels.to(z0.device)
        return self._loss(z0, z1, SameClassTarget(gather(labels) if self.gather_distributed else labels))


def _unit(z0: Tensor, z1: Tensor) -> Tensor:
    with torch.autocast(z0.device.type, enabled=False):
        return functional.normalize(wide(torch.cat([z0, z1])), dim=1)


def _without_graph(negatives: Repulsion | None) -> Repulsion | None:
    if isinstance(negatives, ByGraph) and negatives.graph is None:
        raise OptionError(
            "ByGraph weighs pairs by the similarities that XCLRLoss is given; this loss is given none. Take XCLRLoss."
        )
    return negatives
