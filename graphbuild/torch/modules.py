"""Losses with negatives for a training loop: two views of a batch in, nats out; under torch.distributed those of one process.

Shape letters: B samples in a batch, over all processes; b of them this process's; D width of the projections.
The projections of all processes are gathered, with their gradients, and each process takes the loss of its own samples
against all of them. So the mean of the processes' losses, and the gradients that DistributedDataParallel averages, are those
of one process with the whole batch. Every process passes equally many samples.
"""

from __future__ import annotations

import math

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
    batch = len(z_2BD) // 2
    if past_2QD is not None:
        views = zip(z_2BD.chunk(2), past_2QD.chunk(2), strict=True)
        z_2BD = torch.cat([rows for view in views for rows in view])
    size = tile_size(tile, len(z_2BD) // 2)
    return soft_cross_entropy(z_2BD, target, anchors, tile=size, tau=tau, tau_s=tau_s, repulsion=repulsion, batch=batch)


class _Contrastive(ViewLoss):
    """What losses of unit vectors share: temperatures, and whom an anchor is pushed from."""

    def __init__(self, tau: float, tau_s: float, gather_distributed: bool, negatives: Repulsion | None = None) -> None:
        super().__init__(gather_distributed)
        if not 0 < tau < math.inf:
            raise OptionError(f"tau is a positive temperature, not {tau:g}. The paper's is 0.1.")
        check_tau_s(tau_s)
        if negatives is not None and (isinstance(negatives, type) or not hasattr(negatives, "terms")):
            raise OptionError(f"negatives are Decoupled(), Hard(), ByGraph(), Mixed() or None, not {negatives!r}.")
        self.tau, self.tau_s, self.negatives = tau, tau_s, negatives

    def _loss(self, z0: Tensor, z1: Tensor, target: Target, repelled: Tensor | None) -> Tensor:
        repulsion = self.negatives
        if repelled is not None:
            if not isinstance(repulsion, ByGraph):
                raise ValueError(f"repelled are the similarities that ByGraph weighs pairs by, and negatives are {repulsion}")
            repulsion = ByGraph(self.target_of(repelled, z0, z1))
        found = two_view_loss(
            _unit(z0, z1),
            target,
            tau=self.tau,
            tau_s=self.tau_s,
            gather_distributed=self.gather_distributed,
            repulsion=repulsion,
        )
        return found.loss


class XCLRLoss(_Contrastive):
    """The X-CLR loss (arXiv 2407.18134): two views against the soft target that `SoftTargets` gives."""

    shown = ("tau", "tau_s", "gather_distributed", "negatives")

    def __init__(
        self, tau: float = 0.1, tau_s: float = 0.1, gather_distributed: bool = True, negatives: Repulsion | None = None
    ) -> None:
        """Set the temperatures.

        Args:
            tau: Of the learned similarities.
            tau_s: Of the target; that of `SoftTargets` where `own_weight` is used, and of `MixedSoftTargets`.
            gather_distributed: Whether processes of torch.distributed share one batch; as in `SoftTargets`.
            negatives: Weights of the denominator: `Decoupled`, `Hard`, `ByGraph` or `Mixed`; None: all pairs weigh the same.
        """
        super().__init__(tau, tau_s, gather_distributed, negatives)

    def forward(self, z0: Tensor, z1: Tensor, similarity: Tensor, repelled: Tensor | None = None) -> Tensor:
        """Compute the loss of this process's samples, nats; a scalar.

        Args:
            z0: Projections of one view, of any length; (b, D).
            z1: Projections of the other view, in the same order; (b, D).
            similarity: What `SoftTargets` gave for these samples: (B, B), or, under torch.distributed, (b, B). A sample's own is
                finite.
            repelled: Plain similarities of the same shape, which `ByGraph` weighs pairs by where `similarity` has options or is
                of several graphs; None: `similarity`.

        Raises:
            ValueError: If the shapes do not fit, or `ByGraph` is given no similarities.
        """
        plain = similarity if repelled is None else repelled
        # Looked at on the host alone: a device would be waited for.
        if isinstance(self.negatives, ByGraph) and plain.device.type == "cpu" and not (plain > 0).any():
            raise ValueError(
                "these are no similarities, but logarithms of a mixture of targets, of which ByGraph makes no weights: pass plain "
                'similarities as repelled, or take MixedSoftTargets(..., mix="similarities")'
            )
        return self._loss(z0, z1, self.target_of(similarity, z0, z1), repelled)


class RankLoss(_Contrastive):
    """Rank-N-Contrast (arXiv 2210.01189) by the graph's order: a pair is nearer than all that the graph calls farther."""

    shown = ("tau", "gather_distributed")

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

    shown = ("tau", "gather_distributed", "negatives")

    def __init__(self, tau: float = 0.1, gather_distributed: bool = True, negatives: Repulsion | None = None) -> None:
        """Set the temperature of the learned similarities; the others are those of `XCLRLoss`."""
        super().__init__(tau, 1.0, gather_distributed, negatives)

    def forward(self, z0: Tensor, z1: Tensor, repelled: Tensor | None = None) -> Tensor:
        """Compute the loss of this process's samples, nats; a scalar.

        Args:
            z0: Projections of one view, of any length; (b, D).
            z1: Projections of the other view, in the same order; (b, D).
            repelled: What `SoftTargets` gave for these samples, where `negatives` are `ByGraph`.

        Raises:
            ValueError: If the shapes do not fit, or `repelled` is missing.
        """
        return self._loss(z0, z1, self.target_of(None, z0, z1), _given(repelled, self.negatives))


class SupConLoss(_Contrastive):
    """SupCon, L_out (arXiv 2004.11362): all views of one class are positives, in equal parts."""

    shown = ("tau", "gather_distributed", "negatives")

    def __init__(self, tau: float = 0.1, gather_distributed: bool = True, negatives: Repulsion | None = None) -> None:
        """Set the temperature of the learned similarities; the others are those of `XCLRLoss`."""
        super().__init__(tau, 1.0, gather_distributed, negatives)

    def forward(self, z0: Tensor, z1: Tensor, labels: Tensor, repelled: Tensor | None = None) -> Tensor:
        """Compute the loss of this process's samples, nats; a scalar.

        Args:
            z0: Projections of one view, of any length; (b, D).
            z1: Projections of the other view, in the same order; (b, D).
            labels: The class of each sample; (b,) integers.
            repelled: What `SoftTargets` gave for these samples, where `negatives` are `ByGraph`.

        Raises:
            ValueError: If the shapes do not fit, or `repelled` is missing.
        """
        self.place_of(z0, z1)
        if labels.shape != (len(z0),):
            raise ValueError(f"labels are {tuple(labels.shape)}, and there are {len(z0)} samples: one label a sample")
        labels = labels.to(z0.device)
        target = SameClassTarget(gather(labels) if self.gather_distributed else labels)
        return self._loss(z0, z1, target, _given(repelled, self.negatives))


def _unit(z0: Tensor, z1: Tensor) -> Tensor:
    with torch.autocast(z0.device.type, enabled=False):
        return functional.normalize(wide(torch.cat([z0, z1])), dim=1)


def _given(repelled: Tensor | None, negatives: Repulsion | None) -> Tensor | None:
    if repelled is None and isinstance(negatives, ByGraph) and negatives.graph is None:
        raise ValueError("ByGraph weighs pairs by similarities: pass what SoftTargets gives for these samples as repelled")
    return repelled
