"""Scores of frozen features on labels: kNN and linear top-1, with chance beside them.

Shape letters: N training rows, M test rows, F feature width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graphbuild.errors import SourceError
from train.evaluate.knn import knn_predict
from train.evaluate.linear import fit_probe

KNN_K = 20
"""The k of the headline figure, `knn_top1`."""
KNN_KS = (1, 5, 20, 100)


def evaluate_features(train_NF: Tensor, train_labels_N: Tensor, test_MF: Tensor, test_labels_M: Tensor) -> dict[str, float]:
    """Top-1 accuracies, as shares, of a kNN classifier and a linear probe.

    Args:
        train_NF: Features to learn from; (N, F).
        train_labels_N: Their classes, -1 where a sample has none (it is left out and counted); (N,).
        test_MF: Features to classify; (M, F).
        test_labels_M: Their classes, by the same numbering; a class that training lacks can only be missed; (M,).

    Returns:
        `knn_top1` (k = 20), `knn_top1_k<k>`, `linear_top1`, `linear_l2` (the penalty chosen), `chance` (always answering the
        commonest training class), `classes`, `n_train`, `n_test`, `unlabelled` (rows left out), `unseen` (test rows of
        classes that training lacks).

    Raises:
        SourceError: If no labelled row is left on one side.
    """
    train, labels = train_NF[train_labels_N >= 0], train_labels_N[train_labels_N >= 0]
    test, truth = test_MF[test_labels_M >= 0], test_labels_M[test_labels_M >= 0]
    if not len(train) or not len(test):
        raise SourceError(f"nothing to evaluate: {len(train):,} labelled images to learn from, {len(test):,} to classify.")
    seen, codes = torch.unique(labels, return_inverse=True)
    classes = len(seen)
    found = {k: _accuracy(seen[guess], truth) for k, guess in knn_predict(train, codes, test, ks=KNN_KS, classes=classes).items()}
    probe = fit_probe(train, codes, classes=classes)
    return {
        "knn_top1": found[KNN_K],
        **{f"knn_top1_k{k}": value for k, value in found.items()},
        "linear_top1": _accuracy(seen[probe.predict(test)], truth),
        "linear_l2": probe.penalty,
        "chance": _accuracy(seen[codes.bincount().argmax()].expand_as(truth), truth),
        "classes": float(classes),
        "n_train": float(len(train)),
        "n_test": float(len(test)),
        "unlabelled": float(len(train_labels_N) + len(test_labels_M) - len(train) - len(test)),
        "unseen": float((~torch.isin(truth, seen)).sum()),
    }


def _accuracy(guess: Tensor, truth: Tensor) -> float:
    return float((guess == truth).double().mean())
