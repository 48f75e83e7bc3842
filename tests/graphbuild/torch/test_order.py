"""Rank-N-Contrast by the graph's order, against its formula and its limit cases, in float64."""

from __future__ import annotations

import pytest
import torch
from helpers_targets import one_hot, same_class, whole_loss
from torch import Tensor
from torch.nn.functional import normalize

from graphbuild.torch.blocks import MatrixTarget
from graphbuild.torch.order import rank_loss

BATCH, WIDTH, TAU = 8, 5, 0.2


def projections(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(2 * BATCH, WIDTH, generator=generator, dtype=torch.float64), dim=1)


def similarities(seed: int) -> Tensor:
    """Quarters, so that many pairs are equally far; 1 on the diagonal, and where texts are equal."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 5, (BATCH, BATCH), generator=generator).double() / 4
    return torch.maximum(values, values.T).fill_diagonal_(1.0)


def loss_of(z: Tensor, similarity: Tensor, tile: int = BATCH) -> Tensor:
    return rank_loss(z, MatrixTarget(similarity), range(BATCH), tile=tile, tau=TAU)


def slow(z: Tensor, similarity: Tensor) -> Tensor:
    """Equation 2 of arXiv 2210.01189 as loops: S_ij holds whatever is at least as far from i as j."""
    far, terms = -similarity.repeat(2, 2), []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        ordered = [j for j in others if far[i, j] < torch.inf]
        for j in ordered:
            rivals = torch.stack([z[i] @ z[k] / TAU for k in others if far[i, k] >= far[i, j]])
            terms.append(-(z[i] @ z[j] / TAU - rivals.logsumexp(dim=0)) / len(ordered))
    return torch.stack(terms).sum() / len(z)


@pytest.mark.parametrize("left_out", [False, True])
def test_rank_is_a_loop_over_the_papers_formula(left_out: bool) -> None:
    z, similarity = projections(0).requires_grad_(), similarities(0)
    if left_out:
        similarity = similarity.masked_fill(similarity < 0.3, -torch.inf)
    found, expected = loss_of(z, similarity), slow(z, similarity)
    assert abs(found - expected) < 1e-12
    torch.testing.assert_close(*(torch.autograd.grad(item, z)[0] for item in (found, expected)), rtol=0, atol=1e-12)


def test_rank_of_the_own_view_alone_is_simclr() -> None:
    z = projections(1)
    assert abs(loss_of(z, one_hot(BATCH)) - whole_loss(z, one_hot(BATCH), tau=TAU, tau_s=1.0).loss) < 1e-12


def test_rank_of_classes_alone_is_supcon() -> None:
    z, classes = projections(2), same_class(torch.arange(BATCH) % 3)
    assert abs(loss_of(z, classes) - whole_loss(z, classes, tau=TAU, tau_s=1.0).loss) < 1e-12


def test_rank_sees_the_order_of_the_graph_and_not_its_scale() -> None:
    z, similarity = projections(3), similarities(3)
    assert torch.equal(loss_of(z, similarity), loss_of(z, similarity.pow(3) * 0.2))


def test_tiles_give_the_loss_and_gradient_of_the_whole() -> None:
    z, similarity = projections(4).requires_grad_(), similarities(4)
    whole, tiled = (loss_of(z, similarity, tile) for tile in (BATCH, 3))
    assert abs(whole - tiled) < 1e-12
    torch.testing.assert_close(*(torch.autograd.grad(item, z)[0] for item in (whole, tiled)), rtol=0, atol=1e-12)


def test_autocast_computes_in_float32() -> None:
    z, similarity = projections(5), similarities(5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss_of(z.float(), similarity.float())
    assert found.dtype == torch.float32
    assert abs(found - loss_of(z, similarity)) < 1e-4
