"""Several graphs as one target: the mean of targets or of similarities, against matrices laid out in NumPy."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from helpers_graph import clustered_vectors, write_graph
from helpers_targets import Matrix, as_float64, laid_out, slow_entropy, slow_own_view_mass
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from graphbuild.errors import OptionError, SourceError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.store.embeddings import load_embeddings
from graphbuild.targets.softmax import apply_options
from graphbuild.torch import MixedSoftTargets, SoftTargets, XCLRLoss
from graphbuild.torch.assembler import GraphTarget, TargetOptions
from graphbuild.torch.blocks import MatrixTarget
from graphbuild.torch.losses import soft_cross_entropy
from graphbuild.torch.mixture import mix_targets

NAMES = [f"picture {i}" for i in range(24)]
TEXTS_OF = {"a": [i % 20 for i in range(24)], "b": [(7 * i + 3) % 15 for i in range(24)]}
Mix = Literal["targets", "similarities"]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two complete graphs of the same samples, in another order, by other texts; `c` lacks three of them."""
    folder = tmp_path_factory.mktemp("graphs")
    for seed, (name, texts) in enumerate(TEXTS_OF.items()):
        samples = list(zip(NAMES, texts, strict=True))
        write_graph(folder / name, clustered_vectors(20, 16, seed=seed), samples=samples if name == "a" else samples[::-1])
        build_knn(folder / name, KnnConfig(k="all", sketch_dim=0))
    write_graph(folder / "c", clustered_vectors(20, 16), samples=[(name, i % 20) for i, name in enumerate(NAMES[:21])])
    build_knn(folder / "c", KnnConfig(k=5, sketch_dim=8))
    return {name: folder / name for name in "abc"}


def dense(graph_dir: Path, texts: list[int]) -> Matrix:
    """Similarities of the samples of some texts, from the vectors."""
    vectors = load_embeddings(graph_dir).astype(np.float64)[texts]
    similarity: Matrix = vectors @ vectors.T
    similarity[np.equal.outer(texts, texts)] = 1.0
    return similarity


def random_similarity(rng: np.random.Generator, batch: int, absent: float) -> Matrix:
    similarity = rng.uniform(-0.2, 1, (batch, batch))
    similarity = (similarity + similarity.T) / 2
    similarity[rng.random((batch, batch)) < absent] = -np.inf
    np.fill_diagonal(similarity, 1.0)
    return similarity


def part_of(similarity: Matrix, options: TargetOptions) -> GraphTarget:
    return GraphTarget(MatrixTarget(as_float64(similarity)), options, None, None)


def brute_force(every: list[Matrix], shares: list[float], mix: Mix, options: TargetOptions) -> Matrix:
    """The (2B, 2B) target of a mixture, by its definition."""
    shaping: dict[str, Any] = {"min_similarity": options.min_similarity, "own_weight": options.own_weight}
    if mix == "similarities":
        mean = sum(share * similarity for share, similarity in zip(shares, every, strict=True) if share)
        return laid_out(apply_options(np.asarray(mean), tau_s=options.tau_s, **shaping), options.tau_s)
    laid = [laid_out(apply_options(one, tau_s=options.tau_s, **shaping), options.tau_s) for one in every]
    return np.asarray(sum(share * target for share, target in zip(shares, laid, strict=True)))


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(2, 9),
    count=st.integers(1, 4),
    tau_s=st.floats(0.02, 2),
    mix=st.sampled_from(["targets", "similarities"]),
    absent=st.sampled_from([0.0, 0.3]),
    own_weight=st.sampled_from([0.0, 0.4]),
    min_similarity=st.sampled_from([None, 0.3]),
)
def test_mixture_is_that_of_the_matrices_laid_out(
    seed: int, batch: int, count: int, tau_s: float, mix: Mix, absent: float, own_weight: float, min_similarity: float | None
) -> None:
    rng = np.random.default_rng(seed)
    every = [random_similarity(rng, batch, absent) for _ in range(count)]
    shares = rng.dirichlet(np.ones(count)).tolist()
    options = TargetOptions(tau_s=tau_s, own_weight=own_weight, min_similarity=min_similarity)
    mixed = mix_targets([part_of(one, options) for one in every], shares, mix)
    found = laid_out(mixed.rows(0, batch).numpy(), tau_s)
    np.testing.assert_allclose(found, brute_force(every, shares, mix, options), rtol=0, atol=1e-9)
    middle = batch // 2
    assert torch.equal(torch.cat([mixed.rows(0, middle), mixed.rows(middle, batch)]), mixed.rows(0, batch))


@pytest.mark.parametrize("tau_s", [1e-4, 0.1])
def test_loss_of_mixed_targets_is_the_mean_of_the_losses(tau_s: float) -> None:
    rng, batch, shares = np.random.default_rng(0), 6, (0.7, 0.3)
    parts = [part_of(random_similarity(rng, batch, 0.2), TargetOptions(tau_s=tau_s)) for _ in shares]
    z = normalize(torch.randn(2 * batch, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), dim=1)
    whole, *alone = (
        soft_cross_entropy(z, target, range(batch), tile=4, tau=0.2, tau_s=tau_s).loss
        for target in (mix_targets(parts, shares, "targets"), *parts)
    )
    torch.testing.assert_close(whole, sum(share * one for share, one in zip(shares, alone, strict=True)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("mix", ["targets", "similarities"])
def test_graph_of_all_the_weight_is_that_graph_alone(mix: Mix) -> None:
    rng = np.random.default_rng(3)
    one, other = (part_of(random_similarity(rng, 5, 0.5), TargetOptions()) for _ in range(2))
    found = laid_out(mix_targets([one, other], (1.0, 0.0), mix).rows(0, 5).numpy(), 0.1)
    np.testing.assert_allclose(found, laid_out(one.rows(0, 5).numpy(), 0.1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("mix", ["targets", "similarities"])
def test_samples_are_matched_by_id_and_similarities_are_those_of_the_vectors(graphs: dict[str, Path], mix: Mix) -> None:
    targets = MixedSoftTargets([graphs["a"], graphs["b"]], [7, 3], mix=mix)
    chosen = [3, 20, 0, 11, 23, 5]
    every = [dense(graphs[name], [texts[i] for i in chosen]) for name, texts in TEXTS_OF.items()]
    expected = brute_force(every, [0.7, 0.3], mix, TargetOptions())
    ids = [NAMES[i] for i in chosen]
    positions = targets.positions(NAMES)
    assert positions.shape == (24, 2)
    for batch in (ids, positions[chosen], positions[chosen].numpy()):
        found = targets(batch)
        # Half an ulp of float16 over tau_s on each logit.
        np.testing.assert_allclose(laid_out(found.numpy(), 0.1), expected, rtol=0, atol=3e-3)
    described = targets.describe(ids)
    assert described["own_view_mass"] == pytest.approx(slow_own_view_mass(expected), abs=3e-3)
    assert described["target_entropy"] == pytest.approx(slow_entropy(expected), abs=1e-2)
    # All pairs are stored but those of one text.
    assert described["hit_rate"] == pytest.approx(
        sum(share * np.mean([(row < 1).sum() for row in one]) for share, one in zip([0.7, 0.3], every, strict=True)), abs=1e-4
    )
    assert abs(described["kl_to_dense"]) < 1e-4


def test_mixture_trains_in_a_loop_of_ones_own_and_pickles(graphs: dict[str, Path]) -> None:
    targets = MixedSoftTargets([SoftTargets(graphs["a"], tau_s=0.2), SoftTargets(graphs["b"], tau_s=0.2)])
    copy = pickle.loads(pickle.dumps(targets))
    copy.set_epoch(2)
    similarity = copy(NAMES[:8])
    assert torch.equal(similarity, targets(NAMES[:8]))
    z0, z1 = torch.randn(2, 8, 4, requires_grad=True).unbind()
    loss = XCLRLoss(tau_s=0.2)(z0, z1, similarity)
    assert torch.isfinite(torch.autograd.grad(loss, z0)[0]).all()
    assert "mix='targets'" in repr(targets)


def test_graph_of_other_samples_says_how_many_match(graphs: dict[str, Path]) -> None:
    targets = MixedSoftTargets([graphs["a"], graphs["c"]])
    assert [found.known for found in targets.coverage(NAMES)] == [24, 21]
    with pytest.raises(SourceError, match=r"c does not know 3 of the 24 sample ids: 'picture 21'"):
        targets(NAMES)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weights": [1.0]}, "weights: 1 for 2 graphs"),
        ({"weights": [-1.0, 2.0]}, "weights -1,2: weights are zero or more"),
        ({"weights": [0.0, 0.0]}, "weights: all are zero"),
        ({"mix": "maximum"}, "mix 'maximum' is neither targets nor similarities"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(graphs: dict[str, Path], options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        MixedSoftTargets([graphs["a"], graphs["b"]], **options)


def test_graphs_that_differ_in_what_belongs_to_the_mixture_are_refused(graphs: dict[str, Path]) -> None:
    with pytest.raises(OptionError, match=r"tau_s is 0\.1 for the first graph, and 0\.2 for another"):
        MixedSoftTargets([graphs["a"], SoftTargets(graphs["b"], tau_s=0.2)])
    with pytest.raises(OptionError, match="one graph or more"):
        MixedSoftTargets([])


def test_positions_of_one_graph_are_refused(graphs: dict[str, Path]) -> None:
    with pytest.raises(OptionError, match=r"positions are \(b, 2\), as positions\(ids\) gives them, not \(3,\)"):
        MixedSoftTargets([graphs["a"], graphs["b"]])(torch.arange(3))
