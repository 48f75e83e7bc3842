"""Losses that push no pair apart: VICReg, Barlow Twins, SimSiam, LeJEPA, with the graph's partners in place of the other view.

With SimCLR's target the partner is the other view, and each is the published loss. Of several processes each passes the
embeddings of the whole batch (`gather_views`) and its own anchors; the mean of their losses is that of one process.
Shape letters: B samples in a batch, b of them this process's, D width of the embeddings.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from graphbuild.torch.blocks import Target
from graphbuild.torch.gather import gather_rows
from graphbuild.torch.losses import wide
from graphbuild.torch.partners import partner_means

_VARIANCE_EPSILON = 1e-4
"""As VICReg's authors have it."""
_FREQUENCIES, _HIGHEST_FREQUENCY = 17, 3.0
"""Of LeJEPA's integral, as its authors' code has them."""


class Terms(NamedTuple):
    """A loss in parts."""

    loss: Tensor
    """A scalar with a gradient."""
    parts: dict[str, Tensor]
    """What it is made of, before weights; scalars without."""
    own_view_mass: Tensor


def vicreg_loss(
    y_2BD: Tensor,
    target: Target,
    anchors: range,
    *,
    tile: int,
    tau_s: float,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
) -> Terms:
    """Compute VICReg (arXiv 2105.04906, eq. 6), whose invariance is sum_ij s_ij |y_i - y_j|^2 (arXiv 2205.11508).

    Args:
        y_2BD: Embeddings of the whole batch, of any length, first views before second ones.
        target: G of the batch, by rows.
        anchors: This process's samples.
        tile: How many of them are taken at a time.
        tau_s: Temperature of the target.
        invariance: Weight of the mean over rows and coordinates of the squared distance to the partners.
        variance: Weight of the hinge that keeps each coordinate's deviation over the batch at 1.
        covariance: Weight of the squared covariances between coordinates, over D.
    """
    with torch.autocast(y_2BD.device.type, enabled=False):
        y = wide(y_2BD)
        distance, own_view_mass = _distance(y, target, anchors, tile, tau_s)
        views = y.chunk(2)
        parts = {
            "invariance": distance / y.shape[1],
            "variance": torch.stack([_too_narrow(view) for view in views]).mean(),
            "covariance": torch.stack([_covariance(view) for view in views]).sum(),
        }
        loss = invariance * parts["invariance"] + variance * parts["variance"] + covariance * parts["covariance"]
        return Terms(loss, _still(parts), own_view_mass)


def barlow_loss(y_2BD: Tensor, target: Target, anchors: range, *, tile: int, tau_s: float, redundancy: float = 5e-3) -> Terms:
    """Compute Barlow Twins (arXiv 2103.03230, eq. 1) on the correlation of first views with the means of their partners.

    Both are brought to mean 0 and variance 1 over the batch, the means after averaging: an average varies less.

    Args:
        y_2BD: Embeddings of the whole batch, of any length, first views before second ones.
        target: G of the batch, by rows.
        anchors: This process's samples; the means of the others are those of the other processes.
        tile: How many of them are taken at a time.
        tau_s: Temperature of the target.
        redundancy: Weight of the correlations between different coordinates.
    """
    with torch.autocast(y_2BD.device.type, enabled=False):
        y = wide(y_2BD)
        found = partner_means(y, target, anchors, tile=tile, tau_s=tau_s)
        first, means = y.chunk(2)[0], found.means.chunk(2)[0]
        one, other = _standard(first), _standard(means if len(means) == len(first) else gather_rows(means))
        correlation = one.T @ other / len(one)
        off = correlation - torch.diag(correlation.diagonal())
        parts = {"invariance": (correlation.diagonal() - 1).square().sum(), "redundancy": off.square().sum()}
        return Terms(parts["invariance"] + redundancy * parts["redundancy"], _still(parts), found.own_view_mass)


def simsiam_loss(p_2bD: Tensor, y_2BD: Tensor, target: Target, anchors: range, *, tile: int, tau_s: float) -> Terms:
    """Compute SimSiam (arXiv 2011.10566, eq. 2): minus the mean cosine of predictions with partners, which take no gradient.

    Args:
        p_2bD: Predictions of this process's views, of any length.
        y_2BD: Embeddings of the whole batch, of any length, first views before second ones.
        target: G of the batch, by rows.
        anchors: This process's samples.
        tile: How many of them are taken at a time.
        tau_s: Temperature of the target.
    """
    with torch.autocast(y_2BD.device.type, enabled=False):
        fixed = functional.normalize(wide(y_2BD.detach()), dim=1)
        found = partner_means(fixed, target, anchors, tile=tile, tau_s=tau_s)
        cosines = (functional.normalize(wide(p_2bD), dim=1) * found.means).sum(dim=1)
        return Terms(-cosines.mean(), {}, found.own_view_mass)


def lejepa_loss(
    y_2BD: Tensor, target: Target, anchors: range, *, tile: int, tau_s: float, directions_DM: Tensor, isotropy: float = 0.05
) -> Terms:
    """Compute LeJEPA of two global views (arXiv 2511.08544): a mean of the distance to partners and of SIGReg.

    SIGReg, of each view and along each direction: B times the Epps-Pulley distance of the characteristic function of the
    batch from that of a standard normal, by the trapezoidal rule on 17 frequencies up to 3, with its window.

    Args:
        y_2BD: Embeddings of the whole batch, of any length, first views before second ones.
        target: G of the batch, by rows.
        anchors: This process's samples.
        tile: How many of them are taken at a time.
        tau_s: Temperature of the target.
        directions_DM: Unit vectors, one a column; the same for all processes.
        isotropy: Share of SIGReg; the rest is that of the distance.
    """
    with torch.autocast(y_2BD.device.type, enabled=False):
        y = wide(y_2BD)
        distance, own_view_mass = _distance(y, target, anchors, tile, tau_s)
        # Each view is half of their distance from their centre.
        parts = {
            "invariance": distance / (4 * y.shape[1]),
            "isotropy": torch.stack([_from_gaussian(view @ directions_DM.to(y.dtype)) for view in y.chunk(2)]).mean(),
        }
        return Terms((1 - isotropy) * parts["invariance"] + isotropy * parts["isotropy"], _still(parts), own_view_mass)


def draw_directions(width: int, count: int, *, seed: int) -> Tensor:
    """Draw unit vectors, one a column, evenly over the sphere; (D, M) float32."""
    drawn = torch.randn(width, count, generator=torch.Generator().manual_seed(seed))
    return functional.normalize(drawn, dim=0)


def _from_gaussian(values_BM: Tensor) -> Tensor:
    """Compute the Epps-Pulley statistic of each column against N(0, 1), and their mean; a scalar."""
    frequencies = torch.linspace(0, _HIGHEST_FREQUENCY, _FREQUENCIES, dtype=values_BM.dtype, device=values_BM.device)
    normal = torch.exp(-frequencies.square() / 2)
    errors = []
    # A frequency at a time: memory for B x M numbers, not 17 of them.
    for frequency, expected in zip(frequencies, normal, strict=True):
        angles = values_BM * frequency
        errors.append((angles.cos().mean(dim=0) - expected).square() + angles.sin().mean(dim=0).square())
    # Both signs of a frequency tell the same, so each counts twice, the ends once.
    return 2 * len(values_BM) * torch.trapezoid(torch.stack(errors, dim=1) * normal, frequencies, dim=1).mean()


def _distance(y_2BD: Tensor, target: Target, anchors: range, tile: int, tau_s: float) -> tuple[Tensor, Tensor]:
    """Compute the mean over rows of sum_j s_ij |y_i - y_j|^2, and the own view's share of the target; scalars."""
    # Distances do not depend on the origin, and are more exact near it.
    centred = y_2BD - y_2BD.detach().mean(dim=0)
    squares = centred.square().sum(dim=1, keepdim=True)
    found = partner_means(torch.cat([centred, squares], dim=1), target, anchors, tile=tile, tau_s=tau_s)
    own = _own_rows(centred, anchors)
    distances = own.square().sum(dim=1) - 2 * (own * found.means[:, :-1]).sum(dim=1) + found.means[:, -1]
    return distances.mean(), found.own_view_mass


def _own_rows(rows_2BD: Tensor, anchors: range) -> Tensor:
    return torch.cat([view[anchors.start : anchors.stop] for view in rows_2BD.chunk(2)])


def _too_narrow(view_BD: Tensor) -> Tensor:
    return functional.relu(1 - (view_BD.var(dim=0) + _VARIANCE_EPSILON).sqrt()).mean()


def _covariance(view_BD: Tensor) -> Tensor:
    centred = view_BD - view_BD.mean(dim=0)
    covariance = centred.T @ centred / (len(centred) - 1)
    return (covariance - torch.diag(covariance.diagonal())).square().sum() / covariance.shape[0]


def _standard(view_BD: Tensor) -> Tensor:
    return functional.batch_norm(view_BD, None, None, training=True)


def _still(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: part.detach() for name, part in parts.items()}
