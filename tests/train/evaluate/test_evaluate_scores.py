"""kNN and linear scores against scikit-learn and slow loops."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_evaluate import blobs, make_task
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from graphbuild.errors import ArtifactError, SourceError
from train.evaluate.protocols import linear, low_data
from train.evaluate.protocols.knn import knn_predict
from train.evaluate.protocols.linear import fit_probe
from train.evaluate.protocols.scores import describe, knn_scores, linear_scores
from train.run.scores import read_scores, write_scores


def all_scores(train: Tensor, labels: Tensor, test: Tensor, truth: Tensor) -> dict[str, float]:
    task = make_task(train, labels, test, truth)
    return {**describe(task), **knn_scores(task), **linear_scores(task)}


def slow_vote(train: Tensor, labels: Tensor, row: Tensor, k: int, classes: int) -> int:
    cosines = [float(row @ other / row.norm() / other.norm()) for other in train.double()]
    nearest = sorted(range(len(cosines)), key=lambda j: -cosines[j])[:k]
    votes = [math.fsum(math.exp(cosines[j] / 0.07) for j in nearest if int(labels[j]) == c) for c in range(classes)]
    return votes.index(max(votes))


@pytest.mark.parametrize("k", [1, 7, 20])
def test_knn_predictions_equal_a_loop(k: int) -> None:
    (train, labels), (test, _) = blobs(90, spread=2.0), blobs(40, spread=2.0, seed=1)
    found = knn_predict(train, labels, test, ks=(k,), classes=4)[k]
    assert found.tolist() == [slow_vote(train, labels, row, k, 4) for row in test.double()]


def test_more_neighbours_than_rows_count_as_all_rows() -> None:
    (train, labels), (test, _) = blobs(9), blobs(5, seed=1)
    found = knn_predict(train, labels, test, ks=(9, 100), classes=4)
    assert torch.equal(found[9], found[100])


def test_linear_probe_predicts_as_scikit_learn_does() -> None:
    (train, labels), (test, _) = blobs(400, spread=2.0), blobs(500, spread=2.0, seed=1)
    probe = fit_probe(train, labels, classes=4, penalties=(1e-2,))
    scaler = StandardScaler().fit(train.numpy())
    # scikit-learn minimises sum of losses + |W|^2 / (2 C): C = 1 / (N lambda).
    other = LogisticRegression(C=1 / (400 * 1e-2), max_iter=1000, tol=1e-8).fit(scaler.transform(train.numpy()), labels.numpy())
    agreement = (probe.predict(test).numpy() == other.predict(scaler.transform(test.numpy()))).mean()
    assert agreement > 0.995
    centred = probe.weight_FC - probe.weight_FC.mean(dim=1, keepdim=True)
    np.testing.assert_allclose(centred.numpy().T, other.coef_ - other.coef_.mean(axis=0), atol=2e-3)


def test_linear_probe_is_deterministic() -> None:
    train, labels = blobs(200)
    assert torch.equal(fit_probe(train, labels, classes=4).weight_FC, fit_probe(train, labels, classes=4).weight_FC)


def test_a_feature_that_never_changes_is_ignored() -> None:
    train, labels = blobs(100)
    probe = fit_probe(torch.cat([train, torch.full((100, 1), 3.7)], dim=1), labels, classes=4)
    assert torch.isfinite(probe.weight_FC).all()
    assert probe.scale_F[-1] == 0


def test_noise_gets_a_strong_penalty() -> None:
    generator = torch.Generator().manual_seed(0)
    noise, labels = torch.randn(300, 60, generator=generator), torch.randint(3, (300,), generator=generator)
    assert fit_probe(noise, labels, classes=3).penalty > 1e-4


def test_scores_of_separable_features_are_perfect() -> None:
    (train, labels), (test, truth) = blobs(200, spread=0.05), blobs(100, spread=0.05, seed=1)
    scores = all_scores(train, labels, test, truth)
    assert (scores["knn_top1"], scores["linear_top1"]) == (1.0, 1.0)


def test_scores_of_noise_are_near_chance() -> None:
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(2000) % 4
    scores = all_scores(torch.randn(2000, 8, generator=generator), labels, torch.randn(2000, 8, generator=generator), labels)
    assert scores["chance"] == 0.25
    assert abs(scores["knn_top1"] - 0.25) < 0.05
    assert abs(scores["linear_top1"] - 0.25) < 0.05


def test_chance_is_the_share_of_the_commonest_training_class_in_the_test_labels() -> None:
    features = torch.randn(10, 3)
    scores = all_scores(features, torch.tensor([1] * 6 + [0] * 4), features, torch.tensor([1] * 3 + [0] * 7))
    assert scores["chance"] == pytest.approx(0.3)


def test_test_rows_of_unseen_classes_are_missed_and_counted() -> None:
    train, labels = blobs(60, spread=0.05)
    scores = all_scores(train, labels, train, torch.where(labels == 0, 9, labels))
    assert scores["unseen"] == (labels == 0).sum()
    assert scores["linear_top1"] == pytest.approx(1 - float((labels == 0).float().mean()))


def test_nothing_labelled_is_an_error() -> None:
    train, labels = blobs(6)
    with pytest.raises(SourceError, match="6 labelled images to learn from, 0 to classify"):
        all_scores(train, labels, train[:0], labels[:0])


def test_the_final_penalty_is_the_chosen_one_beside_the_sum_of_losses() -> None:
    train, labels = blobs(1000, classes=4, spread=3.0)
    probe = fit_probe(train, labels, classes=4, sweep_rows=50)
    # 40 of the 50 rows were fitted with it: beside the mean of 1,000 losses it is a 25th.
    assert min(abs(probe.penalty * 25 / one - 1) for one in linear.PENALTIES) < 1e-9
    inputs = ((train - train.mean(dim=0)) / train.std(dim=0, correction=0)).double().numpy()
    reference = LogisticRegression(C=1 / (probe.penalty * len(inputs)), tol=1e-8, max_iter=5000).fit(inputs, labels.numpy())
    assert np.abs(probe.weight_FC.T.numpy() - reference.coef_).max() < 2e-3


@pytest.mark.parametrize("count", [1, 2])
def test_with_one_or_two_a_class_no_penalty_is_chosen(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    train, labels = blobs(200, classes=4)
    test, truth = blobs(40, classes=4, seed=1)
    asked: list[tuple[int, tuple[float, ...]]] = []
    plain = low_data.fit_probe

    def fit(features: Tensor, places: Tensor, *, classes: int, penalties: tuple[float, ...]) -> linear.LinearProbe:
        asked.append((len(features) // classes, penalties))
        return plain(features, places, classes=classes, penalties=penalties)

    monkeypatch.setattr(low_data, "fit_probe", fit)
    monkeypatch.setattr(low_data, "PER_CLASS", (count,))
    low_data.low_data_scores(make_task(train, labels, test, truth))
    assert {len(penalties) for rows, penalties in asked if rows == count} == {1}


def test_scores_of_which_a_byte_changed_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "eval.json"
    write_scores(path, {"scores": {"trained": {"label": {"knn_top1": 0.25}}}})
    assert read_scores(path) == {"scores": {"trained": {"label": {"knn_top1": 0.25}}}}
    path.write_text(path.read_text().replace("0.25", "0.35"))
    with pytest.raises(ArtifactError, match=r"eval\.json: cannot be read \(it holds something else"):
        read_scores(path)
