"""The loss against slow twins in float64, written from the papers, one pair at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers_graph import clustered_vectors
from helpers_targets import laid_out, one_hot, same_class, slow_entropy, whole_clip_loss, whole_loss
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from graphbuild.targets import assemble as reference
from graphbuild.torch import soft_contrastive_loss
from graphbuild.torch.blocks import MatrixTarget, OneHotTarget, SameClassTarget, StoredTarget
from graphbuild.torch.losses import LogitScale, soft_cross_entropy, tile_size
from graphbuild.torch.rows import RowTensors


def unit(count: int, width: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(count, width, generator=generator, dtype=torch.float64), dim=1).to(dtype)


def similarities(count: int) -> np.ndarray:
    """Of distinct texts: 1 on the diagonal, less elsewhere."""
    vectors = clustered_vectors(count, 16, clusters=4, seed=3)
    return reference.dense(vectors, np.arange(count)).astype(np.float64)


def slow_cross_entropy(z: Tensor, target: np.ndarray, tau: float) -> float:
    """mean_i -sum_j s_ij log p_ij with both softmaxes over j != i."""
    rows = z.tolist()
    losses = []
    for i, row in enumerate(rows):
        others = [j for j in range(len(rows)) if j != i]
        logits = {j: math.fsum(a * b for a, b in zip(row, rows[j], strict=True)) / tau for j in others}
        log_sum = math.log(math.fsum(math.exp(value) for value in logits.values()))
        losses.append(-math.fsum(target[i, j] * (logits[j] - log_sum) for j in others))
    return math.fsum(losses) / len(losses)


def slow_ntxent(z: Tensor, tau: float) -> float:
    """NT-Xent, eq. 1 of arXiv 2002.05709: the positive of i is its other view, the denominator all but i."""
    count = len(z)
    total = 0.0
    for i in range(count):
        positive = (i + count // 2) % count
        denominator = math.fsum(math.exp(float(z[i] @ z[j]) / tau) for j in range(count) if j != i)
        total += -math.log(math.exp(float(z[i] @ z[positive]) / tau) / denominator)
    return total / count


def slow_supcon(z: Tensor, labels: list[int], tau: float) -> float:
    """L_out of SupCon, eq. 2 of arXiv 2004.11362: the mean over positives lies outside the logarithm."""
    both = labels + labels
    total = 0.0
    for i in range(len(z)):
        positives = [p for p in range(len(z)) if p != i and both[p] == both[i]]
        denominator = math.fsum(math.exp(float(z[i] @ z[a]) / tau) for a in range(len(z)) if a != i)
        total += -math.fsum(math.log(math.exp(float(z[i] @ z[p]) / tau) / denominator) for p in positives) / len(positives)
    return total / len(z)


@pytest.mark.parametrize("tau_s", [0.05, 0.1, 1.0])
def test_loss_equals_the_double_loop(tau_s: float) -> None:
    z, g = unit(24, 8), similarities(12)
    loss = whole_loss(z, torch.from_numpy(g), tau=0.1, tau_s=tau_s)
    target = laid_out(g, tau_s)
    assert loss.loss.item() == pytest.approx(slow_cross_entropy(z, target, 0.1), rel=1e-10)
    assert loss.target_entropy.item() == pytest.approx(slow_entropy(target), rel=1e-10)


@pytest.mark.parametrize("tau_s", [1e-5, 1e-3, 0.1, 10.0])
def test_public_loss_is_finite_in_float32_at_every_temperature_and_is_that_of_the_tiles(tau_s: float) -> None:
    z, g = unit(48, 8, dtype=torch.float32).requires_grad_(), torch.from_numpy(similarities(24)).float()
    loss = soft_contrastive_loss(z, g, tau=0.1, tau_s=tau_s)
    loss.backward()
    assert z.grad is not None
    assert torch.isfinite(torch.cat([loss[None], z.grad.flatten()])).all()
    assert loss.item() == whole_loss(z, g, tau=0.1, tau_s=tau_s).loss.item()


def test_public_loss_of_one_sample_is_zero() -> None:
    z = unit(2, 8).requires_grad_()
    loss = soft_contrastive_loss(z, torch.ones(1, 1), tau=0.1, tau_s=0.1)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    assert z.grad is not None
    assert z.grad.abs().max() < 1e-12


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (4, 8), (5, 5)])
def test_public_loss_names_the_shapes_that_do_not_fit(rows: int, columns: int) -> None:
    with pytest.raises(ValueError, match=rf"\({rows}, {columns}\) and projections \(8, 4\)"):
        soft_contrastive_loss(unit(8, 4), torch.ones(rows, columns), tau=0.1, tau_s=0.1)


def test_loss_equals_ntxent_as_tau_s_goes_to_zero() -> None:
    z = unit(32, 8)
    loss = whole_loss(z, torch.from_numpy(similarities(16)), tau=0.2, tau_s=1e-5).loss
    assert loss.item() == pytest.approx(slow_ntxent(z, 0.2), abs=1e-5)


def test_loss_equals_supcon_as_tau_s_goes_to_zero_with_class_prompts() -> None:
    z, labels = unit(32, 8), [0, 1, 2, 0, 0, 3, 1, 4, 2, 2, 0, 5, 1, 1, 3, 0]
    g = similarities(6)[np.ix_(labels, labels)]
    loss = whole_loss(z, torch.from_numpy(g), tau=0.2, tau_s=1e-5).loss
    assert loss.item() == pytest.approx(slow_supcon(z, labels, 0.2), abs=1e-5)


def test_one_hot_similarities_give_ntxent_and_no_target_entropy() -> None:
    z = unit(20, 8)
    found = whole_loss(z, one_hot(10), tau=0.5, tau_s=0.1)
    assert found.loss.item() == pytest.approx(slow_ntxent(z, 0.5), rel=1e-10)
    assert found.target_entropy.item() == 0.0


def test_same_class_similarities_give_supcon() -> None:
    z, labels = unit(16, 8), [0, 1, 1, 2, 0, 0, 3, 1]
    found = whole_loss(z, same_class(torch.tensor(labels)), tau=0.1, tau_s=0.1)
    assert found.loss.item() == pytest.approx(slow_supcon(z, labels, 0.1), rel=1e-10)


def test_gradient_equals_finite_differences() -> None:
    g = torch.from_numpy(similarities(4))
    z = unit(8, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: whole_loss(x, g, tau=0.3, tau_s=0.1).loss, (z,))


def test_pairs_left_out_give_finite_loss_and_gradient() -> None:
    z = unit(8, 5, dtype=torch.float32).requires_grad_()
    found = whole_loss(z, one_hot(4), tau=0.1, tau_s=1e-5)
    found.loss.backward()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()
    assert torch.isfinite(found.target_entropy)


def test_loss_is_never_below_the_target_entropy() -> None:
    for seed in range(20):
        found = whole_loss(unit(16, 6, seed=seed), torch.from_numpy(similarities(8)), tau=0.1, tau_s=0.1)
        assert found.kl.item() > 0


def test_loss_reaches_the_target_entropy_when_learned_similarities_are_the_target() -> None:
    vectors = torch.from_numpy(clustered_vectors(10, 16).astype(np.float64))
    z = functional.normalize(torch.cat([vectors, vectors]), dim=1)
    found = whole_loss(z, z[:10] @ z[:10].T, tau=0.1, tau_s=0.1)
    assert found.kl.item() == pytest.approx(0.0, abs=1e-9)


def test_swapping_the_views_changes_nothing() -> None:
    z, g = unit(20, 6), torch.from_numpy(similarities(10))
    assert whole_loss(z, g, tau=0.1, tau_s=0.1).loss.item() == pytest.approx(
        whole_loss(z.roll(10, dims=0), g, tau=0.1, tau_s=0.1).loss.item(), rel=1e-12
    )


def test_float32_loss_is_close_to_float64_at_a_small_temperature() -> None:
    z, g = unit(64, 16), torch.from_numpy(similarities(32))
    exact = whole_loss(z, g, tau=0.05, tau_s=0.05).loss.item()
    assert whole_loss(z.float(), g.float(), tau=0.05, tau_s=0.05).loss.item() == pytest.approx(exact, abs=1e-4)


def test_loss_is_float32_under_bfloat16_autocast() -> None:
    z, g = unit(16, 8, dtype=torch.float32), torch.from_numpy(similarities(8)).float()
    plain = whole_loss(z, g, tau=0.1, tau_s=0.1).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = whole_loss(z, g, tau=0.1, tau_s=0.1).loss
    assert cast.dtype == torch.float32
    assert torch.equal(plain, cast)


def test_clip_loss_equals_cross_entropy_with_the_diagonal_where_texts_differ() -> None:
    images, texts = unit(12, 8), unit(12, 8, seed=1)
    logits, truth = 20 * images @ texts.T, torch.arange(12)
    expected = (functional.cross_entropy(logits, truth) + functional.cross_entropy(logits.T, truth)) / 2
    found = whole_clip_loss(images, texts, torch.tensor(20.0), torch.arange(12))
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)


def test_repeated_texts_share_the_positive_in_clip() -> None:
    images, texts = unit(3, 4), unit(2, 4, seed=1)[[0, 1, 0]]
    log_p = (10 * images @ texts.T).log_softmax(dim=1)
    log_q = (10 * texts @ images.T).log_softmax(dim=1)
    rows = [[0, 2], [1], [0, 2]]
    expected = -sum(float(log[i, j]) / len(js) for log in (log_p, log_q) for i, js in enumerate(rows) for j in js) / 6
    found = whole_clip_loss(images, texts, torch.tensor(10.0), torch.tensor([7, 3, 7]))
    assert found.item() == pytest.approx(expected, rel=1e-10)


def test_logit_scale_starts_at_the_inverse_of_007_and_ends_at_100() -> None:
    scale = LogitScale()
    assert scale().item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        scale.log_scale.fill_(9.0)
    scale.limit()
    assert scale().item() == pytest.approx(100.0)
    # At the limit there is still a gradient that leads back.
    scale().backward()
    assert scale.log_scale.grad is not None
    assert scale.log_scale.grad.item() == pytest.approx(100.0)


@pytest.mark.parametrize("tile", [1, 3, 10])
def test_tiled_loss_and_gradient_equal_the_plain_ones(tile: int) -> None:
    g = torch.from_numpy(similarities(10))
    plain_z, tiled_z = (unit(20, 6).requires_grad_() for _ in range(2))
    plain = whole_loss(plain_z, g, tau=0.1, tau_s=0.1)
    tiled = soft_cross_entropy(tiled_z, MatrixTarget(g), range(10), tile=tile, tau=0.1, tau_s=0.1)
    (3 * plain.loss).backward()
    (3 * tiled.loss).backward()
    for one, other in zip(plain, tiled, strict=True):
        assert one.item() == pytest.approx(other.item(), abs=1e-12)
    torch.testing.assert_close(plain_z.grad, tiled_z.grad, rtol=0, atol=1e-12)


def test_losses_of_parts_of_the_anchors_average_to_the_whole() -> None:
    z, g = unit(20, 6), torch.from_numpy(similarities(10))
    whole = whole_loss(z, g, tau=0.1, tau_s=0.1)
    parts = [soft_cross_entropy(z, MatrixTarget(g), anchors, tile=2, tau=0.1, tau_s=0.1) for anchors in (range(0, 5), range(5, 10))]
    for found, *halves in zip(whole, *parts, strict=True):
        assert found.item() == pytest.approx(sum(half.item() for half in halves) / 2, abs=1e-12)


def test_tiled_loss_of_many_pairs_left_out_is_finite() -> None:
    z = unit(20, 6, dtype=torch.float32).requires_grad_()
    found = soft_cross_entropy(z, OneHotTarget(10, "cpu"), range(10), tile=3, tau=0.1, tau_s=1e-5)
    found.loss.backward()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()
    assert (found.own_view_mass.item(), found.target_entropy.item()) == (1.0, 0.0)


@pytest.mark.parametrize(("asked", "batch", "tile"), [(0, 64, 64), (0, 4096, 4096), (0, 32_768, 512), (100, 4096, 100)])
def test_tiles_are_as_asked_or_keep_the_logits_within_a_quarter_of_a_gigabyte(asked: int, batch: int, tile: int) -> None:
    assert tile_size(asked, batch) == tile
    assert asked or 2 * tile * 2 * batch * 4 <= 1 << 28


class LargestTensor(TorchDispatchMode):
    """Remembers how many numbers the largest tensor holds that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [item.numel() for item in tree_leaves(out) if isinstance(item, Tensor)]
        self.numbers = max(self.numbers, *made, 0)
        return out


def test_no_tensor_of_the_tiled_loss_is_larger_than_the_logits_of_a_tile() -> None:
    batch, tile = 96, 4
    z = unit(2 * batch, 8).requires_grad_()
    rows = RowTensors(
        torch.arange(batch, dtype=torch.int32)[:, None] ^ 1,
        torch.full((batch, 1), 0.5, dtype=torch.float16),
        torch.ones(batch, 4, dtype=torch.int8),
        torch.ones(batch),
    )
    targets = [
        OneHotTarget(batch, "cpu"),
        SameClassTarget(torch.arange(batch) % 7),
        StoredTarget(rows, torch.arange(batch), absent=None),
    ]
    for target in targets:
        with LargestTensor() as largest:
            soft_cross_entropy(z, target, range(batch), tile=tile, tau=0.1, tau_s=0.1).loss.backward()
        assert 0 < largest.numbers <= 2 * tile * 2 * batch, type(target)
