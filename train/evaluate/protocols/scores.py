"""kNN and linear top-1 on one label column, with chance beside them.

kNN: Wu et al. 2018 (arXiv 1805.01978), over several k. Linear probe: Kornblith et al. 2019 (arXiv 1805.08974), with its
L2 penalty chosen on a part of the training rows.
"""

from __future__ import annotations

import torch

from train.evaluate.protocols.knn import knn_predict
from train.evaluate.protocols.task import Task, accuracy
from train.run.scores import KNN_TOP1, LINEAR_TOP1

KNN_K = 20
"""The k of the headline figure, `knn_top1`."""
KNN_KS = (1, 5, 20, 100)


def describe(task: Task) -> dict[str, float]:
    """Return what every score of a column is read beside.

    Returns:
        `chance` (always answering the commonest training class), `classes`, `n_train`, `n_test`, `unlabelled` (rows left
        out), `unseen` (test rows of classes that training lacks, which can only be missed).
    """
    seen, places = task.classes
    truth = task.test.labels
    return {
        "chance": accuracy(seen[places.bincount().argmax()].expand_as(truth), truth),
        "classes": float(len(seen)),
        "n_train": float(len(task.train)),
        "n_test": float(len(task.test)),
        "unlabelled": float(task.unlabelled),
        "unseen": float((~torch.isin(truth, seen)).sum()),
    }


def knn_scores(task: Task) -> dict[str, float]:
    """Return `knn_top1` (k = 20) and `knn_top1_k<k>`."""
    seen, places = task.classes
    guesses = knn_predict(task.train.features, places, task.test.features, ks=KNN_KS, classes=len(seen))
    found = {k: accuracy(seen[guess], task.test.labels) for k, guess in guesses.items()}
    return {KNN_TOP1: found[KNN_K], **{f"{KNN_TOP1}_k{k}": value for k, value in found.items()}}


def linear_scores(task: Task) -> dict[str, float]:
    """Return `linear_top1`, and `linear_l2`, the penalty chosen."""
    return {LINEAR_TOP1: accuracy(task.answers, task.test.labels), "linear_l2": task.probe.penalty}
