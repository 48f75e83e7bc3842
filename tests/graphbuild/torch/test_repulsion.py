"""Weights of the denominator against the losses that were published, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers_targets import one_hot, same_class
from torch import Tensor
from torch.nn.functional import normalize

from graphbuild.errors import OptionError
from graphbuild.torch.blocks import MatrixTarget
from graphbuild.torch.losses import soft_cross_entropy
from graphbuild.torch.modules import two_view_loss
from graphbuild.torch.repulsion import ByGraph, Decoupled, Hard, Mixed, Repulsion, draw_mixtures
from graphbuild.torch.softmax import target_weights

BATCH, WIDTH, TAU, TAU_S = 11, 6, 0.2, 0.3


def projections(seed: int = 0, batch: int = BATCH) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(2 * batch, WIDTH, generator=generator, dtype=torch.float64), dim=1)


def similarities(seed: int = 0, batch: int = BATCH) -> Tensor:
    """A symmetric G from -0.2 to 0.9 with 1 on the diagonal."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(batch, batch, generator=generator, dtype=torch.float64)
    return ((drawn + drawn.T) / 2 * 1.1 - 0.2).fill_diagonal_(1.0)


def loss_of(z: Tensor, similarity: Tensor, repulsion: Repulsion | None, tile: int = BATCH) -> Tensor:
    batch = len(similarity)
    target = MatrixTarget(similarity)
    return soft_cross_entropy(z, target, range(batch), tile=tile, tau=TAU, tau_s=TAU_S, repulsion=repulsion).loss


def laid_out(z: Tensor, similarity: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, target and c of all 2B rows, from the definitions; the self pair's logit is -inf."""
    itself = torch.eye(len(z), dtype=torch.bool)
    logits = (z @ z.T / TAU).masked_fill(itself, -math.inf)
    target = (similarity.repeat(2, 2) / TAU_S).masked_fill(itself, -math.inf).softmax(dim=1)
    return logits, target, (1 - target / target.amax(dim=1, keepdim=True)).masked_fill(itself, 0.0)


def pulled(logits: Tensor, target: Tensor) -> Tensor:
    return (target * logits.masked_fill(target == 0, 0.0)).sum(dim=1)


ALL: list[Any] = [
    Decoupled(),
    Decoupled(0.5),
    Hard(1.5),
    Hard(0.7, 0.2),
    ByGraph(),
    ByGraph(MatrixTarget(similarities(9))),
    Mixed(5, 3, seed=4),
]
NAMES = [f"{type(one).__name__}-{number}" for number, one in enumerate(ALL)]
"""The same in every process: a representation holds addresses."""


@pytest.mark.parametrize("sigma", [None, 0.5, 0.8])
def test_one_hot_decoupled_is_lightlys_dcl_and_dclw(sigma: float | None) -> None:
    from lightly.loss.dcl_loss import DCLLoss, DCLWLoss

    peer = DCLLoss(TAU) if sigma is None else DCLWLoss(TAU, sigma)
    z = projections().requires_grad_()
    # lightly normalises what it is given: the gradient along a vector is gone.
    unit = normalize(z, dim=1)
    found, expected = loss_of(unit, one_hot(BATCH), Decoupled(sigma)), peer(*z.chunk(2))
    assert abs(found - expected) < 1e-9
    torch.testing.assert_close(*(torch.autograd.grad(item, z)[0] for item in (found, expected)), rtol=0, atol=1e-9)


def robinson(z: Tensor, beta: float, prior: float) -> Tensor:
    """A loop over anchors, as arXiv 2010.04592 has it in section 3.2 and its appendix: exponentials, means, a clamp."""
    batch, losses = len(z) // 2, []
    for i in range(len(z)):
        own = (i + batch) % len(z)
        positive = torch.exp(z[i] @ z[own] / TAU)
        negatives = torch.stack([torch.exp(z[i] @ z[j] / TAU) for j in range(len(z)) if j not in (i, own)])
        importance = negatives**beta
        mean = (importance / importance.mean() * negatives).mean()
        corrected = torch.clamp((mean - prior * positive) / (1 - prior), min=math.exp(-1 / TAU))
        losses.append(-torch.log(positive / (positive + len(negatives) * corrected)))
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("beta", "prior"), [(0.0, 0.0), (1.0, 0.0), (0.0, 0.1), (1.0, 0.1), (2.0, 0.9)])
def test_one_hot_hard_is_a_loop_over_the_papers_formula(beta: float, prior: float) -> None:
    z = projections(1).requires_grad_()
    # Vectors of unit length: what the gradient along them is does not matter.
    unit = normalize(z, dim=1)
    found, expected = loss_of(unit, one_hot(BATCH), Hard(beta, prior)), robinson(unit, beta, prior)
    assert abs(found - expected) < 1e-9
    torch.testing.assert_close(
        *(torch.autograd.grad(item, z, retain_graph=True)[0] for item in (found, expected)), rtol=0, atol=1e-8
    )


def test_hard_without_beta_and_prior_is_the_uniform_loss_of_any_target() -> None:
    z, similarity = projections(2), similarities(2)
    assert abs(loss_of(z, similarity, Hard(0.0)) - loss_of(z, similarity, None)) < 1e-12


def test_decoupled_weighs_a_pair_by_what_the_soft_target_leaves() -> None:
    z, similarity = projections(3), similarities(3)
    logits, target, negative = laid_out(z, similarity)
    expected = (torch.log((negative * logits.exp()).sum(dim=1)) - pulled(logits, target)).mean()
    assert abs(loss_of(z, similarity, Decoupled()) - expected) < 1e-9


def test_decoupled_supcon_pushes_from_other_classes_alone() -> None:
    z, labels = projections(4), torch.arange(BATCH) % 3
    logits, target, _ = laid_out(z, same_class(labels).double())
    other = labels.repeat(2)[:, None] != labels.repeat(2)[None, :]
    expected = (logits.masked_fill(~other, -math.inf).logsumexp(dim=1) - pulled(logits, target)).mean()
    assert abs(loss_of(z, same_class(labels), Decoupled()) - expected) < 1e-9


def test_graph_weighs_a_pair_by_one_minus_its_similarity() -> None:
    z, similarity, other = projections(5), similarities(5), similarities(6)
    logits, target, _ = laid_out(z, similarity)
    for repulsion, graph in ((ByGraph(), similarity), (ByGraph(MatrixTarget(other)), other)):
        weights = (1 - graph.repeat(2, 2)).clamp(0, 1)
        expected = (torch.log((weights * logits.exp()).sum(dim=1)) - pulled(logits, target)).mean()
        assert abs(loss_of(z, similarity, repulsion) - expected) < 1e-9


def test_graph_in_which_nothing_is_alike_is_dcl() -> None:
    z, unlike = projections(5), MatrixTarget(torch.eye(BATCH, dtype=torch.float64))
    assert loss_of(z, one_hot(BATCH), ByGraph(unlike)) == loss_of(z, one_hot(BATCH), Decoupled())


def test_mixed_adds_the_drawn_mixtures_of_the_hardest_negatives() -> None:
    z, hardest, mixtures = projections(7), 5, 3
    draws = draw_mixtures(BATCH, hardest=hardest, mixtures=mixtures, seed=8)
    losses = []
    for i in range(2 * BATCH):
        own = (i + BATCH) % (2 * BATCH)
        others = sorted((j for j in range(2 * BATCH) if j not in (i, own)), key=lambda j: -float(z[i] @ z[j]))[:hardest]
        mixed = [
            normalize(part * z[others[one]] + (1 - part) * z[others[other]], dim=0)
            for one, other, part in zip(draws.first[i], draws.second[i], draws.part[i], strict=True)
        ]
        logits = torch.stack([z[i] @ item / TAU for item in [*(z[j] for j in range(2 * BATCH) if j != i), *mixed]])
        losses.append(logits.logsumexp(dim=0) - z[i] @ z[own] / TAU)
    found = loss_of(z, one_hot(BATCH), Mixed(hardest, mixtures, seed=8))
    assert abs(found - torch.stack(losses).mean()) < 1e-9


def test_mixtures_take_no_gradient_but_the_anchor_does() -> None:
    leaf = projections(7)[:4].requires_grad_()
    z, far = normalize(leaf, dim=1), leaf.detach().clone()
    # With one hardest negative, both parts of the mixture are that one: it stands in the denominator twice.
    found = loss_of(z, one_hot(2), Mixed(1, 1), tile=2)
    expected = torch.zeros((), dtype=torch.float64)
    for i in range(4):
        own = (i + 2) % 4
        hardest = max((j for j in range(4) if j not in (i, own)), key=lambda j: float(far[i] @ far[j]))
        logits = [z[i] @ z[j] / TAU for j in range(4) if j != i] + [z[i] @ far[hardest] / TAU]
        expected = expected + (torch.stack(logits).logsumexp(dim=0) - z[i] @ z[own] / TAU) / 4
    torch.testing.assert_close(
        *(torch.autograd.grad(item, leaf, retain_graph=True)[0] for item in (found, expected)), rtol=0, atol=1e-9
    )


def test_mixtures_of_fewer_negatives_than_the_hardest_have_neither_the_anchor_nor_its_positives() -> None:
    z, labels = projections(8)[:8], torch.tensor([0, 0, 0, 1])
    mixed, plain = (loss_of(z, same_class(labels), repulsion, tile=4) for repulsion in (Mixed(6, 6, seed=1), None))
    draws = draw_mixtures(4, hardest=6, mixtures=6, seed=1)
    losses = []
    for i in range(8):
        others = [j for j in range(8) if labels[j % 4] != labels[i % 4]]
        others.sort(key=lambda j, i=i: -float(z[i] @ z[j]))  # type: ignore[misc]
        drawn = zip(draws.first[i], draws.second[i], draws.part[i], strict=True)
        both = [(others[a], others[b], part) for a, b, part in drawn if max(a, b) < len(others)]
        extra = [normalize(part * z[a] + (1 - part) * z[b], dim=0) for a, b, part in both]
        logits = [z[i] @ item / TAU for item in [*(z[j] for j in range(8) if j != i), *extra]]
        losses.append(torch.stack(logits).logsumexp(dim=0) - torch.stack(logits[:7]).logsumexp(dim=0))
    assert abs(mixed - plain - torch.stack(losses).mean()) < 1e-9


@pytest.mark.parametrize("queued", [0, 4])
@pytest.mark.parametrize("repulsion", [None, *ALL, Hard(0.5, 0.9)], ids=["none", *NAMES, "Hard-floor"])
def test_a_scale_in_the_length_of_the_vectors_is_a_temperature_with_its_gradient(repulsion: Any, queued: int) -> None:
    """As `--tau learned` has it: two vectors have the scale once."""
    z, past = projections(15), projections(16, queued)
    if isinstance(repulsion, ByGraph) and repulsion.graph is not None:
        repulsion = ByGraph(MatrixTarget(similarities(9, BATCH + queued)[:BATCH]))
    target = MatrixTarget(similarities(15, BATCH + queued)[:BATCH])

    def loss(scale: Tensor | float, tau: float, tile: int) -> Tensor:
        root = scale**0.5
        place: dict[str, Any] = {"tau": tau, "tau_s": TAU_S, "tile": tile, "repulsion": repulsion}
        return two_view_loss(z * root, target, **place, past_2QD=past * root if queued else None).loss

    scale = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    found = loss(scale, 1.0, 3)
    assert abs(found - loss(1.0, 0.25, BATCH)) < 1e-9
    near = [loss(1.0, 1 / (4.0 + step), BATCH).item() for step in (1e-5, -1e-5)]
    assert torch.autograd.grad(found, scale)[0].item() == pytest.approx((near[0] - near[1]) / 2e-5, abs=1e-6)


def test_decoupled_weighted_takes_its_mean_over_the_batch_and_not_over_a_queue() -> None:
    z, past, target = projections(17), projections(18, 4), MatrixTarget(one_hot(BATCH + 4)[:BATCH])
    place: dict[str, Any] = {"tau": TAU, "tau_s": TAU_S, "past_2QD": past}
    weighted, plain = (two_view_loss(z, target, **place, repulsion=Decoupled(sigma)).loss for sigma in (0.5, None))
    cosines = (z[:BATCH] * z[BATCH:]).sum(dim=1)
    weights = 2 - (cosines / 0.5).exp() / (cosines / 0.5).exp().mean()
    assert abs(weighted - plain - ((1 - weights) * cosines / TAU).mean()) < 1e-9


@pytest.mark.parametrize("repulsion", ALL, ids=NAMES)
def test_tiles_give_the_loss_and_gradient_of_the_whole(repulsion: Repulsion) -> None:
    z, similarity = projections(10).requires_grad_(), similarities(10)
    whole, tiled = (loss_of(z, similarity, repulsion, tile) for tile in (BATCH, 3))
    assert abs(whole - tiled) < 1e-12
    torch.testing.assert_close(*(torch.autograd.grad(item, z)[0] for item in (whole, tiled)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("repulsion", ALL, ids=NAMES)
def test_autocast_computes_in_float32(repulsion: Repulsion) -> None:
    z, similarity = projections(11), similarities(11)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss_of(z.float(), similarity.float(), repulsion)
    assert found.dtype == torch.float32
    assert abs(found - loss_of(z, similarity, repulsion)) < 1e-4


@pytest.mark.parametrize("repulsion", ALL, ids=NAMES)
def test_an_anchor_without_any_negative_has_a_finite_loss(repulsion: Repulsion) -> None:
    z, alike = projections(12).requires_grad_(), torch.ones(BATCH, BATCH, dtype=torch.float64)
    found = loss_of(z, alike, repulsion)
    assert found.isfinite()
    assert torch.autograd.grad(found, z)[0].isfinite().all()


@pytest.mark.parametrize("tau", [0.005, 0.01])
def test_hard_stays_finite_in_float32_at_small_temperatures(tau: float) -> None:
    z = projections(13).float().requires_grad_()
    target = MatrixTarget(one_hot(BATCH))
    found = soft_cross_entropy(z, target, range(BATCH), tile=4, tau=tau, tau_s=0.1, repulsion=Hard(2.0, 0.1)).loss
    assert found.isfinite()
    assert torch.autograd.grad(found, z)[0].isfinite().all()


def test_without_weights_every_bit_is_that_of_the_cross_entropy() -> None:
    """The plain loss as it is written without weights, operation by operation."""
    z, similarity = projections(14).float().requires_grad_(), similarities(14).float()
    first, second = z.chunk(2)
    weights = target_weights(similarity, TAU_S)[0]
    own, both = weights.diagonal()[:, None], weights @ (first + second)
    mean_positive = torch.cat([both - own * first, both - own * second])
    rows = torch.cat([first, second])
    logits = (rows @ z.T / TAU).masked_fill_(torch.eye(2 * BATCH, dtype=torch.bool), -math.inf)
    drawn = (rows * mean_positive).sum(dim=1) / TAU
    expected, found = (logits.logsumexp(dim=1) - drawn).sum() / (2 * BATCH), loss_of(z, similarity, None)
    assert torch.equal(found, expected)
    assert torch.equal(*(torch.autograd.grad(item, z)[0] for item in (found, expected)))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Hard(-0.1), "beta is at least 0, not -0.1"),
        (lambda: Hard(math.nan), "beta is at least 0"),
        (lambda: Hard(1.0, 1.0), "prior is a share from 0 to less than 1, not 1"),
        (lambda: Decoupled(0.0), "sigma is a positive width, not 0"),
        (lambda: Mixed(0, 4), "0 hardest and 4 mixtures: take at least one of each"),
        (lambda: draw_mixtures(4, hardest=7, mixtures=2, seed=0), "7 hardest and 2 mixtures .* batch of 4, .* 6 negatives"),
        (lambda: draw_mixtures(4, hardest=3, mixtures=0, seed=0), "3 hardest and 0 mixtures"),
    ],
)
def test_weights_out_of_range_are_refused(make: Any, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        make()
