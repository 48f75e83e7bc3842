"""Weighted k-nearest-neighbour classification of frozen features (Wu et al. 2018, arXiv 1805.01978, section 3.4).

Shape letters: N training rows, M test rows, F feature width, C classes, K neighbours that vote.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from train.evaluate.protocols.task import block_rows

TEMPERATURE = 0.07


def knn_predict(
    train_NF: Tensor, labels_N: Tensor, test_MF: Tensor, *, ks: Sequence[int], classes: int, temperature: float = TEMPERATURE
) -> dict[int, Tensor]:
    """Return the class that the nearest training rows vote for, each with weight exp(cosine / temperature).

    Args:
        train_NF: Training features; (N, F).
        labels_N: Their classes, 0..C-1; (N,).
        test_MF: Test features; (M, F).
        ks: Numbers of neighbours to try; those above N count as N.
        classes: C.
        temperature: Of the weights.

    Returns:
        Predicted classes, (M,), for each of `ks`. A tie goes to the lower class.
    """
    train, test = functional.normalize(train_NF.float(), dim=1), functional.normalize(test_MF.float(), dim=1)
    most = min(max(ks), len(train))
    parts: dict[int, list[Tensor]] = {k: [] for k in ks}
    for rows in torch.split(test, block_rows(len(train))):
        similarities, neighbors = (rows @ train.T).topk(most, dim=1)
        # Less the largest, which changes no vote: exp(1 / 0.07) is 1.6 million.
        weights = ((similarities - similarities[:, :1]) / temperature).exp()
        labels = labels_N[neighbors]
        for k in ks:
            votes = torch.zeros(len(rows), classes, device=rows.device).scatter_add_(1, labels[:, :k], weights[:, :k])
            parts[k].append(votes.argmax(dim=1))
    return {k: torch.cat(found) for k, found in parts.items()}
