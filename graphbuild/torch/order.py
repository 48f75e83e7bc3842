"""Order in place of values: a pair must be nearer than all pairs that the graph calls farther. Nats.

Shape letters: B samples in a batch (2B rows with two views), T anchors of a tile, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from graphbuild.torch.blocks import Target
from graphbuild.torch.losses import Sums, mean_of_tiles, wide, without_self


def rank_loss(z_2BD: Tensor, target: Target, anchors: range, *, tile: int, tau: float) -> Tensor:
    """Compute Rank-N-Contrast (arXiv 2210.01189, eq. 2) with the order of G in place of that of labels; a scalar.

    L_i = mean over j of -log exp(l_ij) / sum_{k: G_ik <= G_ij} exp(l_ik), l_ij = z_i . z_j / tau, over both views, without
    the self pair. The paper's similarity is minus the distance; of unit vectors this one has the same order. Only the order
    of G counts. Pairs that are left out (-inf) are farther than all others, with no order among themselves: j runs over the
    others. So SimCLR's target gives NT-Xent, and SupCon's gives SupCon.

    Args:
        z_2BD: Projections of the whole batch, of unit length, first views before second ones.
        target: G of the batch, by rows.
        anchors: The samples whose rows the mean is over.
        tile: How many of them are taken at a time.
        tau: Temperature of the logits.
    """
    with torch.autocast(z_2BD.device.type, enabled=False):
        return mean_of_tiles(lambda part, z: _rank_sums(z, target, part, tau), anchors, tile, wide(z_2BD)).loss


def _rank_sums(z: Tensor, target: Target, tile: range, tau: float) -> Sums:
    start, batch = tile.start, len(z) // 2
    similarity = target.rows(start, tile.stop)
    rows = torch.cat([view[start : tile.stop] for view in z.chunk(2)])
    logits = without_self(rows @ z.T / tau, tile)
    # Both views of j are equally far: a sample is one entry, of both its logits.
    first, second = logits[:, :batch], logits[:, batch:]
    ordered, order = similarity.sort(dim=1)
    entries = torch.logaddexp(first, second).gather(1, order.repeat(2, 1))
    # Of entries that are equally far, the sum is that of the last one.
    last = torch.searchsorted(ordered, ordered, right=True) - 1
    farther = entries.logcumsumexp(dim=1).gather(1, last.repeat(2, 1))
    counted = torch.where(ordered > -math.inf, 2.0, 0.0).to(z.dtype)
    counted = torch.where(order == torch.arange(start, tile.stop, device=order.device)[:, None], counted / 2, counted)
    kept = similarity.repeat(2, 2) > -math.inf
    drawn = logits.masked_fill(~kept | (logits == -math.inf), 0.0).sum(dim=1)
    pushed = (counted.repeat(2, 1) * farther).sum(dim=1)
    loss = ((pushed - drawn) / counted.sum(dim=1).repeat(2)).sum()
    nothing = loss.detach().new_zeros(())
    return loss, nothing, nothing
