"""Losses for a training loop: two views of a batch in, nats out; under torch.distributed those of one process.

Shape letters: B samples in a batch, over all processes; b of them this process's; D width of the projections.
The projections of all processes are gathered, with their gradients, and each process takes the loss of its own samples
against all of them. So the mean of the processes' losses, and the gradients that DistributedDataParallel averages, are those
of one process with the whole batch. Every process passes equally many samples.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from graphbuild.errors import OptionError
from graphbuild.targets.softmax import check_tau_s
from graphbuild.torch.blocks import MatrixTarget, OneHotTarget, SameClassTarget, Target
from graphbuild.torch.gather import Place, gather, gather_views, this_place
from graphbuild.torch.losses import SoftLoss, soft_cross_entropy, tile_size
from graphbuild.torch.repulsion import Repulsion


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
    z_2BD = gather_views(z_2bD) if gather_distributed else z_2bD
    anchors = _place(gather_distributed).part(len(z_2BD) // 2)
    if past_2QD is not None:
        views = zip(z_2BD.chunk(2), past_2QD.chunk(2), strict=True)
        z_2BD = torch.cat([rows for view in views for rows in view])
    size = tile_size(tile, len(z_2BD) // 2)
    return soft_cross_entropy(z_2BD, target, anchors, tile=size, tau=tau, tau_s=tau_s, repulsion=repulsion)


class _TwoViewLoss(nn.Module):
    """What the three losses share: temperatures, and views that are made unit vectors, in float32 or wider."""

    def __init__(self, tau: float, tau_s: float, gather_distributed: bool) -> None:
        super().__init__()
        if not tau > 0:
            raise OptionError(f"tau is a positive temperature, not {tau:g}. The paper's is 0.1.")
        check_tau_s(tau_s)
        self.tau, self.tau_s, self.gather_distributed = tau, tau_s, gather_distributed

    def extra_repr(self) -> str:
        """Return what `print` shows."""
        return f"tau={self.tau:g}, tau_s={self.tau_s:g}, gather_distributed={self.gather_distributed}"

    def _loss(self, z0: Tensor, z1: Tensor, target: Target) -> Tensor:
        with torch.autocast(z0.device.type, enabled=False):
            views = torch.cat([z0, z1])
            z = nn.functional.normalize(views if views.dtype == torch.float64 else views.float(), dim=1)
        gather_distributed = self.gather_distributed
        return two_view_loss(z, target, tau=self.tau, tau_s=self.tau_s, gather_distributed=gather_distributed).loss

    def _place(self, z0: Tensor, z1: Tensor) -> tuple[Place, int]:
        """Which process this is, and B; refuses views that do not fit together."""
        if z0.ndim != 2 or z0.shape != z1.shape:
            raise ValueError(f"views are {tuple(z0.shape)} and {tuple(z1.shape)}: both are (b, D), row i of each of sample i")
        place = _place(self.gather_distributed)
        return place, place.world * len(z0)


class XCLRLoss(_TwoViewLoss):
    """The X-CLR loss (arXiv 2407.18134): two views against the soft target that `SoftTargets` gives."""

    def __init__(self, tau: float = 0.1, tau_s: float = 0.1, gather_distributed: bool = True) -> None:
        """Set the temperatures.

        Args:
            tau: Of the learned similarities.
            tau_s: Of the target; that of `SoftTargets`, where `own_weight` is used.
            gather_distributed: Whether processes of torch.distributed share one batch; as in `SoftTargets`.
        """
        super().__init__(tau, tau_s, gather_distributed)

    def forward(self, z0: Tensor, z1: Tensor, similarity: Tensor) -> Tensor:
        """Compute the loss of this process's samples, nats; a scalar.

        Args:
            z0: Projections of one view, of any length; (b, D).
            z1: Projections of the other view, in the same order; (b, D).
            similarity: What `SoftTargets` gave for these samples: (B, B), or, under torch.distributed, (b, B).

        Raises:
            ValueError: If the shapes do not fit.
        """
        place, batch = self._place(z0, z1)
        rows = len(similarity)
        if similarity.shape != (rows, batch) or rows not in (len(z0), batch):
            raise ValueError(
                f"similarities are {tuple(similarity.shape)}, but {place.world} process(es) with {len(z0)} samples each need "
                f"({len(z0)}, {batch}): those of this process's samples with all. Call SoftTargets in the training process, with "
                "the ids of this batch and the same gather_distributed"
            )
        first = place.part(batch).start if rows < batch else 0
        return self._loss(z0, z1, MatrixTarget(similarity.to(z0.device, non_blocking=True), first=first))


class SimCLRLoss(_TwoViewLoss):
    """NT-Xent (SimCLR, arXiv 2002.05709): the other view is the only positive."""

    def __init__(self, tau: float = 0.1, gather_distributed: bool = True) -> None:
        """Set the temperature of the learned similarities, and whether processes of torch.distributed share one batch."""
        super().__init__(tau, 1.0, gather_distributed)

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """Compute the loss of this process's samples, nats; a scalar. Views are (b, D), of any length, in the same order."""
        return self._loss(z0, z1, OneHotTarget(self._place(z0, z1)[1], z0.device))


class SupConLoss(_TwoViewLoss):
    """SupCon, L_out (arXiv 2004.11362): all views of one class are positives, in equal parts."""

    def __init__(self, tau: float = 0.1, gather_distributed: bool = True) -> None:
        """Set the temperature of the learned similarities, and whether processes of torch.distributed share one batch."""
        super().__init__(tau, 1.0, gather_distributed)

    def forward(self, z0: Tensor, z1: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of this process's samples, nats; a scalar.

        Args:
            z0: Projections of one view, of any length; (b, D).
            z1: Projections of the other view, in the same order; (b, D).
            labels: The class of each sample; (b,) integers.

        Raises:
            ValueError: If the shapes do not fit.
        """
        self._place(z0, z1)
        if labels.shape != (len(z0),):
            raise ValueError(f"labels are {tuple(labels.shape)}, and there are {len(z0)} samples: one label a sample")
        labels = labels.to(z0.device)
        return self._loss(z0, z1, SameClassTarget(gather(labels) if self.gather_distributed else labels))


def _place(gather_distributed: bool) -> Place:
    return this_place() if gather_distributed else Place(0, 1)
