"""Few-shot classification of classes that training never saw: all of them at once, n samples of each, several draws.

Nearest class mean: Snell et al. 2017 (arXiv 1703.05175), on unit vectors. Logistic regression on them: Tian et al. 2020
(arXiv 2003.11539). kNN with everything that the gallery holds stands beside them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from graphbuild.errors import SourceError
from train.evaluate.intervals import drawn
from train.evaluate.protocols.knn import knn_predict
from train.evaluate.protocols.linear import fit_probe
from train.evaluate.protocols.scores import KNN_K
from train.evaluate.protocols.task import Labelled, Task, accuracy, draw_per_class

SHOTS = (1, 5, 20)
DRAWS = 10
_PENALTY = 1e-2
"""Of the logistic regression: with a sample a class there is nothing to choose it on."""


def few_shot_scores(task: Task) -> dict[str, float]:
    """Return `few_shot_mean_<n>` and `few_shot_logistic_<n>` with `_ci95`, `held_out_knn`, `held_out_chance`, `held_out_classes`.

    Samples are drawn from the held-out images to learn from, and all held-out images to classify are the queries; where the former
    are none, samples come from the latter, and the rest of these are the queries.

    Raises:
        SourceError: If no image is of a held-out class.
    """
    pool, queries = task.held_out_train, task.held_out_test
    if pool is None or queries is None or not len(queries):
        raise SourceError("few-shot: no image to classify is of a held-out class. Name the classes with --held-out.")
    own_pool = len(pool) > 0
    pool = pool if own_pool else queries
    classes = len(torch.unique(pool.labels))
    scores = {"held_out_classes": float(classes), "held_out_chance": 1 / classes}
    if own_pool:
        scores["held_out_knn"] = _knn(pool, queries)
    smallest = int(torch.unique(pool.labels, return_counts=True)[1].min())
    for shots in SHOTS:
        if shots >= smallest:
            continue
        results = [_one_draw(pool, queries, shots, seed, own_pool=own_pool) for seed in range(DRAWS)]
        scores |= drawn(f"few_shot_mean_{shots}", [mean for mean, _ in results])
        scores |= drawn(f"few_shot_logistic_{shots}", [logistic for _, logistic in results])
    return scores


def _knn(pool: Labelled, queries: Labelled) -> float:
    seen, places = torch.unique(pool.labels, return_inverse=True)
    guess = knn_predict(pool.features, places, queries.features, ks=(KNN_K,), classes=len(seen))[KNN_K]
    return accuracy(seen[guess], queries.labels)


def _one_draw(pool: Labelled, queries: Labelled, shots: int, seed: int, *, own_pool: bool) -> tuple[float, float]:
    """Accuracy of the nearest class mean and of the logistic regression."""
    rows = draw_per_class(pool.labels, shots, seed)
    support = pool.where(rows)
    if not own_pool:
        left = torch.ones(len(queries), dtype=torch.bool, device=queries.labels.device)
        left[rows] = False
        queries = queries.where(left)
    seen, places = torch.unique(support.labels, return_inverse=True)
    known_nF, queries_MF = (functional.normalize(part.features.float(), dim=1) for part in (support, queries))
    probe = fit_probe(known_nF, places, classes=len(seen), penalties=(_PENALTY,))
    nearest = (queries_MF @ _class_means(known_nF, places, len(seen)).T).argmax(dim=1)
    return accuracy(seen[nearest], queries.labels), accuracy(seen[probe.predict(queries_MF)], queries.labels)


def _class_means(unit: Tensor, places: Tensor, classes: int) -> Tensor:
    """The mean direction of each class; (C, F), unit length."""
    sums = unit.new_zeros(classes, unit.shape[1]).index_add_(0, places, unit)
    return functional.normalize(sums, dim=1)
