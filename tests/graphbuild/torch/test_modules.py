"""The losses as modules: projections of any length and precision, wrong shapes, and several processes as one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_graph import clustered_vectors, write_graph
from helpers_ranks import BATCH, FOREIGN, batch_of, foreign_loop, foreign_loss, net, run_ranks
from helpers_targets import one_hot, same_class, whole_loss
from torch import Tensor
from torch.nn import functional

import graphbuild.torch
from graphbuild.errors import OptionError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.torch import (
    BarlowTwinsLoss,
    ByGraph,
    Decoupled,
    Hard,
    LeJEPALoss,
    Mixed,
    RankLoss,
    SimCLRLoss,
    SimSiamLoss,
    SupConLoss,
    VICRegLoss,
    XCLRLoss,
    soft_contrastive_loss,
)
from graphbuild.torch.blocks import MatrixTarget
from graphbuild.torch.modules import two_view_loss

IDS = [f"{number}.jpg" for number in range(BATCH)]


def views(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(3 * torch.randn(BATCH, 6, generator=generator, dtype=dtype) for _ in range(2))  # type: ignore[return-value]


def similarity(seed: int = 0) -> Tensor:
    values = torch.rand(BATCH, BATCH, generator=torch.Generator().manual_seed(seed))
    return torch.maximum(values, values.T).fill_diagonal_(1.0)


@pytest.fixture(scope="module")
def graph_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two captions a picture."""
    folder = tmp_path_factory.mktemp("modules")
    write_graph(folder, clustered_vectors(40, 12), samples=[(IDS[number // 2], number % 40) for number in range(2 * BATCH)])
    build_knn(folder, KnnConfig(k=6, sketch_dim=8))
    return folder


def test_modules_are_the_loss_of_unit_vectors_with_their_target() -> None:
    z0, z1 = views()
    z, labels = functional.normalize(torch.cat([z0, z1]), dim=1), torch.arange(BATCH) % 5
    pairs = [
        (XCLRLoss(0.2, 0.3)(z0, z1, similarity()), whole_loss(z, similarity(), tau=0.2, tau_s=0.3)),
        (SimCLRLoss(0.2)(z0, z1), whole_loss(z, one_hot(BATCH), tau=0.2, tau_s=1.0)),
        (SupConLoss(0.2)(z0, z1, labels), whole_loss(z, same_class(labels), tau=0.2, tau_s=1.0)),
    ]
    for found, expected in pairs:
        assert found.item() == pytest.approx(expected.loss.item(), rel=1e-12)


def test_without_a_graph_the_family_is_lightlys() -> None:
    from lightly.loss import BarlowTwinsLoss, DCLLoss, DCLWLoss, NegativeCosineSimilarity, VICRegLoss

    (z0, z1), (p0, p1), cosine = views(), views(1), NegativeCosineSimilarity()
    pairs = [
        (graphbuild.torch.SimCLRLoss(0.2, negatives=Decoupled())(z0, z1), DCLLoss(0.2)(z0, z1)),
        (graphbuild.torch.SimCLRLoss(0.2, negatives=Decoupled(0.5))(z0, z1), DCLWLoss(0.2, 0.5)(z0, z1)),
        (graphbuild.torch.VICRegLoss(3.0, 7.0, 2.0)(z0, z1), VICRegLoss(3.0, 7.0, 2.0)(z0, z1)),
        (graphbuild.torch.BarlowTwinsLoss(0.1)(z0, z1), BarlowTwinsLoss(0.1)(z0, z1)),
        (graphbuild.torch.SimSiamLoss()(p0, p1, z0, z1), (cosine(p0, z1) + cosine(p1, z0)) / 2),
    ]
    for found, expected in pairs:
        assert found.item() == pytest.approx(expected.item(), rel=1e-9)


def test_weights_that_weigh_nothing_are_the_plain_loss() -> None:
    z0, z1 = views()
    plain = XCLRLoss(0.2, 0.3)(z0, z1, similarity()).item()
    assert XCLRLoss(0.2, 0.3, negatives=Hard(0.0))(z0, z1, similarity()).item() == pytest.approx(plain, rel=1e-12)
    assert XCLRLoss(0.2, 0.3, negatives=ByGraph())(z0, z1, similarity()).item() < plain
    z = functional.normalize(torch.cat([z0, z1]), dim=1)
    weighted = soft_contrastive_loss(z, similarity().double(), tau=0.2, tau_s=0.3, negatives=ByGraph()).item()
    assert weighted == pytest.approx(XCLRLoss(0.2, 0.3, negatives=ByGraph())(z0, z1, similarity().double()).item(), rel=1e-12)


def test_rank_takes_the_order_of_what_soft_targets_gave() -> None:
    z0, z1 = views()
    assert RankLoss(0.2)(z0, z1, one_hot(BATCH)).item() == pytest.approx(SimCLRLoss(0.2)(z0, z1).item(), rel=1e-12)
    assert RankLoss(0.2)(z0, z1, similarity()).item() == RankLoss(0.2)(z0, z1, similarity().pow(3)).item()


def test_mixtures_are_drawn_anew_unless_they_have_a_seed() -> None:
    z0, z1 = views()
    drawn, seeded = XCLRLoss(negatives=Mixed(9, 4)), XCLRLoss(negatives=Mixed(9, 4, seed=1))
    assert drawn(z0, z1, similarity()).item() != drawn(z0, z1, similarity()).item()
    assert seeded(z0, z1, similarity()).item() == seeded(z0, z1, similarity()).item()
    with pytest.raises(OptionError, match="47 hardest and 4 mixtures of them do not fit a batch of 24"):
        XCLRLoss(negatives=Mixed(47, 4))(z0, z1, similarity())


def test_directions_of_lejepa_go_on_where_a_state_dict_left_them() -> None:
    (z0, z1), first, second = views(), LeJEPALoss(0.3, 6), LeJEPALoss(0.3, 6)
    losses = [first(z0, z1).item() for _ in range(2)]
    assert losses[0] != losses[1]
    kept = first.state_dict()
    second.load_state_dict(kept)
    assert second(z0, z1).item() == first(z0, z1).item() != losses[1]
    evaluated = second.eval()(z0, z1).item()
    assert second(z0, z1).item() == evaluated


def test_tiles_need_no_gradient_and_refuse_a_second_one(monkeypatch: pytest.MonkeyPatch) -> None:
    z0, z1 = (item.requires_grad_() for item in views())
    whole = XCLRLoss()(z0, z1, similarity()).item()
    monkeypatch.setattr("graphbuild.torch.losses._MOST_LOGITS", 4 * BATCH * 5)
    loss = XCLRLoss()(z0, z1, similarity())
    with pytest.raises(RuntimeError, match="has no second derivative"):
        torch.autograd.grad(loss, z0, create_graph=True)
    with torch.inference_mode():
        assert XCLRLoss()(z0, z1, similarity()).item() == pytest.approx(whole, rel=1e-12)
    assert loss.item() == pytest.approx(whole, rel=1e-12)


def test_pairs_are_weighed_by_similarities_that_are_given_beside() -> None:
    z0, z1 = views()
    graph, labels, z = similarity(3), torch.arange(BATCH) % 5, functional.normalize(torch.cat(views()), dim=1)
    weights = ByGraph(MatrixTarget(graph))
    place: dict[str, Any] = {"tau": 0.2, "repulsion": weights}
    pairs = [
        (XCLRLoss(0.2, 0.3, negatives=ByGraph())(z0, z1, similarity(), graph), MatrixTarget(similarity()), 0.3),
        (SimCLRLoss(0.2, negatives=ByGraph())(z0, z1, graph), MatrixTarget(one_hot(BATCH)), 1.0),
        (SupConLoss(0.2, negatives=ByGraph())(z0, z1, labels, graph), MatrixTarget(same_class(labels)), 1.0),
    ]
    for found, target, tau_s in pairs:
        assert found.item() == pytest.approx(two_view_loss(z, target, tau_s=tau_s, **place).loss.item(), rel=1e-12)


def test_what_prints_has_the_options_of_the_loss() -> None:
    assert repr(RankLoss(0.2)) == "RankLoss(tau=0.2, gather_distributed=True)"
    assert repr(XCLRLoss(negatives=Hard())).endswith("negatives=Hard(beta=1.0, prior=0.0))")
    assert "covariance=1.0, tau_s=0.1" in repr(VICRegLoss())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_projections_give_a_float32_loss_under_autocast(dtype: torch.dtype) -> None:
    z0, z1 = (item.to(dtype) for item in views())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = XCLRLoss()(z0, z1, similarity())
    assert found.dtype == torch.float32
    assert found.item() == XCLRLoss()(z0.float(), z1.float(), similarity()).item()


@pytest.mark.parametrize("tau_s", [1e-5, 10.0])
def test_loss_and_gradient_are_finite_at_the_ends_of_tau_s(tau_s: float) -> None:
    z0, z1 = (item.requires_grad_() for item in views(dtype=torch.float32))
    sparse = similarity().masked_fill(similarity() < 0.5, -torch.inf)
    XCLRLoss(0.1, tau_s)(z0, z1, sparse).backward()
    assert z0.grad is not None
    assert torch.isfinite(z0.grad).all()


def test_zero_projections_and_a_batch_of_one_are_finite() -> None:
    zero = torch.zeros(3, 4, requires_grad=True)
    XCLRLoss()(zero, zero, torch.eye(3)).backward()
    assert zero.grad is not None
    assert torch.isfinite(zero.grad).all()
    assert XCLRLoss()(torch.ones(1, 4), torch.ones(1, 4), torch.ones(1, 1)).item() == pytest.approx(0.0, abs=1e-6)


def test_wrong_shapes_are_named() -> None:
    z0, z1 = views()
    with pytest.raises(ValueError, match=r"views are \(24, 6\) and \(23, 6\)"):
        SimCLRLoss()(z0, z1[:-1])
    with pytest.raises(ValueError, match=r"similarities are \(23, 23\), but 1 process\(es\) with 24 samples each need \(24, 24\)"):
        XCLRLoss()(z0, z1, similarity()[1:, 1:])
    with pytest.raises(ValueError, match=r"labels are \(23,\), and there are 24 samples"):
        SupConLoss()(z0, z1, torch.arange(23))
    with pytest.raises(ValueError, match=r"similarities are \(23, 23\)"):
        VICRegLoss()(z0, z1, similarity()[1:, 1:])
    with pytest.raises(ValueError, match=r"predictions are \(24, 5\) and \(24, 6\), embeddings \(24, 6\) and \(24, 6\)"):
        SimSiamLoss()(z0[:, 1:], z1, z0, z1)


def test_options_of_the_family_out_of_range_are_refused() -> None:
    z0, z1 = views()
    with pytest.raises(ValueError, match=r"ByGraph weighs pairs by similarities: pass what SoftTargets gives .* as repelled"):
        SimCLRLoss(negatives=ByGraph())(z0, z1)
    with pytest.raises(ValueError, match="logarithms of a mixture of targets, of which ByGraph makes no weights"):
        XCLRLoss(negatives=ByGraph())(z0, z1, similarity() - 1)
    with pytest.raises(ValueError, match="repelled are the similarities that ByGraph weighs pairs by, and negatives are None"):
        XCLRLoss()(z0, z1, similarity(), similarity())
    for wrong in ("hard", Hard):
        with pytest.raises(OptionError, match=r"negatives are Decoupled\(\), Hard\(\), ByGraph\(\), Mixed\(\) or None, not"):
            XCLRLoss(negatives=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a batch of 1 has no variance: pass at least 2 samples"):
        VICRegLoss()(z0[:1], z1[:1])
    with pytest.raises(OptionError, match=r"isotropy 1\.5 is a share from 0 to 1"):
        LeJEPALoss(1.5)
    with pytest.raises(OptionError, match="tau_s"):
        BarlowTwinsLoss(tau_s=0.0)


@pytest.mark.parametrize(("tau", "tau_s"), [(0.0, 0.1), (-1.0, 0.1), (0.1, 0.0), (float("nan"), 0.1), (float("inf"), 0.1)])
def test_temperatures_that_are_not_positive_are_refused(tau: float, tau_s: float) -> None:
    with pytest.raises(OptionError, match="is a positive temperature"):
        XCLRLoss(tau, tau_s)


@pytest.mark.parametrize("count", [2, 3])
def test_foreign_loop_under_ddp_has_the_loss_and_gradients_of_one_process(graph_dir: Path, tmp_path: Path, count: int) -> None:
    assert run_ranks(count, foreign_loop, graph_dir, IDS, tmp_path, folder=tmp_path) == [0] * count
    parts = [torch.load(tmp_path / f"found-{rank}.pt") for rank in range(count)]
    for seed, kind in enumerate(FOREIGN):
        model, (pictures, _) = net(), batch_of(seed, 2)
        loss = foreign_loss(kind, *model(pictures).chunk(2), graph_dir, IDS, range(BATCH))
        loss.backward()  # type: ignore[no-untyped-call]
        for part in parts:
            found, gradients = part[kind]
            assert found.item() == pytest.approx(loss.item(), abs=1e-7), kind
            for gradient, weight in zip(gradients, model.parameters(), strict=True):
                torch.testing.assert_close(gradient, weight.grad, rtol=0, atol=1e-7)


def test_public_names_are_importable_from_a_script_called_train(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(f"from graphbuild.torch import {', '.join(graphbuild.torch.__all__)}\n")
    done = subprocess.run([sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
