"""Whom a view is drawn to, as one vector: the mean of its partners under the soft target. For losses without negatives.

Shape letters: B samples in a batch, b of them whose anchors are asked for, T anchors of a tile, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from graphbuild.torch.blocks import Target
from graphbuild.torch.softmax import target_weights


class Partners(NamedTuple):
    """Means over the partners of some anchors, of their first views, then of their second ones."""

    means: Tensor
    """sum_j s_ij v_j; (2b, D), with the gradient of the vectors."""
    own_view_mass: Tensor
    """Mean share of the target on the other view of the same picture; a scalar."""


def partner_means(vectors_2BD: Tensor, target: Target, anchors: range, *, tile: int, tau_s: float) -> Partners:
    """Average the vectors of both views of a batch by the target of some anchors.

    s_i is the softmax over j != i of G_ij / tau_s, as in `soft_cross_entropy`: where G is SimCLR's, the mean is the other view.
    The weights of all anchors, b x B numbers, are kept for the gradient.

    Args:
        vectors_2BD: One vector a view, first views before second ones; (2B, D).
        target: G of the batch, by rows.
        anchors: The samples whose means are asked for.
        tile: How many of them are taken at a time.
        tau_s: Temperature of the target.
    """
    first, second = vectors_2BD.chunk(2)
    sums, means, masses = first + second, [], []
    for start in range(anchors.start, anchors.stop, tile):
        stop = min(start + tile, anchors.stop)
        weights = target_weights(target.rows(start, stop).to(vectors_2BD.dtype), tau_s, start=start)[0]
        own = weights.diagonal(start)
        both = weights @ sums
        # The self pair is taken out of the sum over both views.
        means.append(torch.stack([both - own[:, None] * view[start:stop] for view in (first, second)]))
        masses.append(own)
    return Partners(torch.cat(means, dim=1).flatten(0, 1), torch.cat(masses).mean())
