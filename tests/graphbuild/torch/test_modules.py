"""The losses as modules: projections of any length and precision, wrong shapes, and several processes as one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers_graph import clustered_vectors, write_graph
from helpers_ranks import BATCH, batch_of, foreign_loop, net, run_ranks
from helpers_targets import one_hot, same_class, whole_loss
from torch import Tensor
from torch.nn import functional

from graphbuild.errors import OptionError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.torch import SimCLRLoss, SoftTargets, SupConLoss, XCLRLoss

KINDS = ["ids", "positions", "average", "simclr", "supcon"]
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


@pytest.mark.parametrize(("tau", "tau_s"), [(0.0, 0.1), (-1.0, 0.1), (0.1, 0.0), (float("nan"), 0.1)])
def test_temperatures_that_are_not_positive_are_refused(tau: float, tau_s: float) -> None:
    with pytest.raises(OptionError, match="is a positive temperature"):
        XCLRLoss(tau, tau_s)


@pytest.mark.parametrize("count", [2, 3])
def test_foreign_loop_under_ddp_has_the_loss_and_gradients_of_one_process(graph_dir: Path, tmp_path: Path, count: int) -> None:
    assert run_ranks(count, foreign_loop, KINDS, graph_dir, IDS, tmp_path, folder=tmp_path) == [0] * count
    parts = [torch.load(tmp_path / f"found-{rank}.pt") for rank in range(count)]
    for seed, kind in enumerate(KINDS):
        model, (pictures, _) = net(), batch_of(seed, 2)
        z0, z1 = model(pictures).chunk(2)
        if kind == "simclr":
            loss = SimCLRLoss(0.2)(z0, z1)
        elif kind == "supcon":
            loss = SupConLoss(0.2)(z0, z1, torch.arange(BATCH) % 5)
        else:
            targets = SoftTargets(graph_dir, captions="average" if kind == "average" else "draw", seed=3)
            loss = XCLRLoss(0.2, 0.1)(z0, z1, targets(IDS, epoch=2))
        loss.backward()
        for part in parts:
            found, gradients = part[kind]
            assert found.item() == pytest.approx(loss.item(), abs=1e-7), kind
            for gradient, weight in zip(gradients, model.parameters(), strict=True):
                torch.testing.assert_close(gradient, weight.grad, rtol=0, atol=1e-7)


def test_public_names_are_importable_from_a_script_called_train(tmp_path: Path) -> None:
    names = "NeighborBatchSampler, SimCLRLoss, SoftTargets, SupConLoss, XCLRLoss, soft_contrastive_loss"
    (tmp_path / "train.py").write_text(f"from graphbuild.torch import {names}\n")
    done = subprocess.run([sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
