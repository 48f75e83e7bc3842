"""VICReg, Barlow Twins, SimSiam and LeJEPA against lightly's, and against loops over the graph's partners, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers_targets import one_hot
from torch import Tensor
from torch.nn.functional import batch_norm, normalize

from graphbuild.torch.blocks import MatrixTarget
from graphbuild.torch.without_negatives import Terms, barlow_loss, draw_directions, lejepa_loss, simsiam_loss, vicreg_loss

BATCH, WIDTH, TAU_S = 9, 4, 0.3
WEIGHTS: dict[str, dict[str, float]] = {
    "vicreg": {"invariance": 3.0, "variance": 7.0, "covariance": 2.0},
    "barlow": {"redundancy": 0.1},
    "simsiam": {},
    "lejepa": {"isotropy": 0.3},
}
DIRECTIONS = draw_directions(WIDTH, 6, seed=5).double()


def drawn(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2 * BATCH, WIDTH, generator=generator, dtype=torch.float64) * 0.7 + 3


def similarities(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(BATCH, BATCH, generator=generator, dtype=torch.float64)
    return ((values + values.T) / 2).fill_diagonal_(1.0)


def loss_of(kind: str, y: Tensor, similarity: Tensor, *, tile: int = BATCH, predictions: Tensor | None = None) -> Terms:
    target, place = MatrixTarget(similarity), {"tile": tile, "tau_s": TAU_S}
    options: dict[str, Any] = {**place, **WEIGHTS[kind]}
    if kind == "simsiam":
        return simsiam_loss(y if predictions is None else predictions, y, target, range(BATCH), **options)
    if kind == "lejepa":
        return lejepa_loss(y, target, range(BATCH), directions_DM=DIRECTIONS, **options)
    return (vicreg_loss if kind == "vicreg" else barlow_loss)(y, target, range(BATCH), **options)


def laid_out(similarity: Tensor) -> Tensor:
    itself = torch.eye(2 * BATCH, dtype=torch.bool)
    return (similarity.repeat(2, 2) / TAU_S).masked_fill(itself, -torch.inf).softmax(dim=1)


def lightlys(kind: str, y: Tensor, predictions: Tensor) -> Tensor:
    from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, SIGReg, VICRegLoss
    from lightly.loss.lejepa_loss import lejepa_invariance_loss

    first, second = y.chunk(2)
    if kind == "lejepa":
        views, regular = torch.stack([first, second]), SIGReg(num_vectors=DIRECTIONS.shape[1]).double()
        regular.phi.copy_(torch.exp(-regular.t.square() / 2))
        regular.weights.copy_(2 * (3 / 16) * regular.phi)
        regular.weights[[0, -1]] /= 2
        regular._generate_unit_vectors = lambda *_: DIRECTIONS
        return 0.3 * regular(views) + 0.7 * lejepa_invariance_loss(all_proj=views, global_proj=views)
    if kind == "vicreg":
        return VICRegLoss(*WEIGHTS[kind].values())(first, second)
    if kind == "barlow":
        return BarlowTwinsLoss(*WEIGHTS[kind].values())(first, second)
    one, other = predictions.chunk(2)
    cosine = NegativeCosineSimilarity()
    return (cosine(one, second.detach()) + cosine(other, first.detach())) / 2


@pytest.mark.parametrize("kind", WEIGHTS)
def test_own_view_alone_is_lightlys_loss_and_gradient(kind: str) -> None:
    y, predictions = drawn(1).requires_grad_(), drawn(2).requires_grad_()
    found, expected = loss_of(kind, y, one_hot(BATCH), predictions=predictions).loss, lightlys(kind, y, predictions)
    assert abs(found - expected) < 1e-9
    leaf = predictions if kind == "simsiam" else y
    torch.testing.assert_close(*(torch.autograd.grad(item, leaf)[0] for item in (found, expected)), rtol=0, atol=1e-9)


def test_vicreg_by_the_graph_draws_every_pair_by_its_share() -> None:
    y, similarity = drawn(3), similarities(3)
    target = laid_out(similarity)
    pairs = [target[i, j] * (y[i] - y[j]).square().sum() for i in range(2 * BATCH) for j in range(2 * BATCH)]
    found, published = loss_of("vicreg", y, similarity), loss_of("vicreg", y, one_hot(BATCH))
    assert abs(found.parts["invariance"] - torch.stack(pairs).sum() / (2 * BATCH * WIDTH)) < 1e-12
    for name in ("variance", "covariance"):
        assert found.parts[name] == published.parts[name]


def test_lejepa_by_the_graph_draws_every_pair_by_its_share() -> None:
    y, similarity = drawn(3), similarities(3)
    target = laid_out(similarity)
    pairs = [target[i, j] * (y[i] - y[j]).square().sum() for i in range(2 * BATCH) for j in range(2 * BATCH)]
    found = loss_of("lejepa", y, similarity)
    assert abs(found.parts["invariance"] - torch.stack(pairs).sum() / (2 * BATCH * WIDTH * 4)) < 1e-12
    assert found.parts["isotropy"] == loss_of("lejepa", y, one_hot(BATCH)).parts["isotropy"]


def test_isotropy_is_least_for_a_standard_normal() -> None:
    spread = torch.randn(400, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = {
        scale: lejepa_loss(
            spread * scale, MatrixTarget(torch.eye(200)), range(200), tile=200, tau_s=TAU_S, directions_DM=DIRECTIONS
        ).parts["isotropy"]
        for scale in (0.1, 0.5, 1.0, 2.0)
    }
    assert min(found, key=lambda scale: float(found[scale])) == 1.0


def test_barlow_by_the_graph_correlates_with_averaged_partners() -> None:
    y, similarity = drawn(4), similarities(4)
    first = batch_norm(y[:BATCH], None, None, training=True)
    partners = batch_norm((laid_out(similarity) @ y)[:BATCH], None, None, training=True)
    correlation = first.T @ partners / BATCH
    weights = torch.full((WIDTH, WIDTH), 0.1, dtype=torch.float64).fill_diagonal_(1.0)
    expected = (weights * (correlation - torch.eye(WIDTH)).square()).sum()
    assert abs(loss_of("barlow", y, similarity).loss - expected) < 1e-12


def test_simsiam_by_the_graph_predicts_all_partners_by_their_shares() -> None:
    y, predictions, similarity = drawn(5), drawn(6), similarities(5)
    cosines = normalize(predictions, dim=1) @ normalize(y, dim=1).T
    found = loss_of("simsiam", y, similarity, predictions=predictions).loss
    assert abs(found + (laid_out(similarity) * cosines).sum(dim=1).mean()) < 1e-12


def test_simsiams_partners_take_no_gradient() -> None:
    y, predictions = drawn(5).requires_grad_(), drawn(6).requires_grad_()
    loss = loss_of("simsiam", y, similarities(5), predictions=predictions).loss
    assert torch.autograd.grad(loss, [predictions, y], allow_unused=True)[1] is None


@pytest.mark.parametrize("kind", WEIGHTS)
def test_tiles_give_the_loss_and_gradient_of_the_whole(kind: str) -> None:
    y = drawn(7).requires_grad_()
    whole, tiled = (loss_of(kind, y, similarities(7), tile=tile).loss for tile in (BATCH, 2))
    assert abs(whole - tiled) < 1e-12
    torch.testing.assert_close(*(torch.autograd.grad(item, y)[0] for item in (whole, tiled)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_autocast_computes_in_float32(kind: str) -> None:
    y, similarity = drawn(8), similarities(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss_of(kind, y.float(), similarity.float()).loss
    assert found.dtype == torch.float32
    assert abs(found - loss_of(kind, y, similarity).loss) < 1e-4
