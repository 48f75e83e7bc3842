"""Retrieval: how many of the nearest images are of the query's class, and of its superclass.

Every image to classify is a query among the images to learn from, by cosine. Precision at 10, and mean average precision at
R (Musgrave et al. 2020, arXiv 2003.08505, section 2.3), R being the number of relevant images, at most 100. By superclass
the query's own class is left out of the gallery, so that only what the features know *beyond* the class can score.

Shape letters: M queries, N gallery rows, K ranks looked at.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from train.evaluate.protocols.task import Labelled, Task, block_rows

_TOP, _DEEPEST = 10, 100


def retrieval_scores(task: Task) -> dict[str, float]:
    """Return `retrieval_p10` and `retrieval_map` by class; `superclass_p10`, `superclass_map` and `superclass_chance` without it.

    Queries for which the gallery holds nothing relevant are left out.
    """
    scores: dict[str, float] = {}
    found = _rank(task.train, task.test, task.train.labels, task.test.labels, leave_out_class=False)
    if found is not None:
        scores |= {"retrieval_p10": found[0], "retrieval_map": found[1]}
    if task.train.groups is not None and task.test.groups is not None:
        gallery, queries = task.train.where(task.train.groups >= 0), task.test.where(task.test.groups >= 0)
        assert gallery.groups is not None
        assert queries.groups is not None
        found = _rank(gallery, queries, gallery.groups, queries.groups, leave_out_class=True)
        if found is not None:
            scores |= {"superclass_p10": found[0], "superclass_map": found[1], "superclass_chance": found[2]}
    return scores


def _rank(
    gallery: Labelled, queries: Labelled, gallery_groups: Tensor, query_groups: Tensor, *, leave_out_class: bool
) -> tuple[float, float, float] | None:
    """Mean precision at 10, mean average precision at R, and the share of relevant images; None without any."""
    if not len(gallery) or not len(queries):
        return None
    base = functional.normalize(gallery.features.float(), dim=1)
    sums, answered = torch.zeros(3, dtype=torch.float64), 0
    for rows in torch.split(torch.arange(len(queries)), block_rows(len(base))):
        similar = functional.normalize(queries.features[rows].float(), dim=1) @ base.T
        relevant = query_groups[rows, None] == gallery_groups
        offered = torch.ones_like(relevant)
        if leave_out_class:
            offered = queries.labels[rows, None] != gallery.labels
            relevant &= offered
            similar.masked_fill_(~offered, -torch.inf)
        wanted = relevant.sum(dim=1)
        kept = wanted > 0
        if kept.any():
            parts = _precision(similar[kept], relevant[kept], wanted[kept])
            shares = wanted[kept] / offered[kept].sum(dim=1)
            sums += torch.stack([*(part.double().sum().cpu() for part in parts), shares.double().sum().cpu()])
            answered += int(kept.sum())
    if not answered:
        return None
    precision, average, share = (sums / answered).tolist()
    return precision, average, share


def _precision(similar: Tensor, relevant: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Precision at 10 and average precision at R; (m,) each."""
    wanted = wanted.clamp_max(_DEEPEST)
    ranks = min(max(int(wanted.max()), _TOP), similar.shape[1])
    order = similar.topk(ranks, dim=1).indices
    hits = relevant.gather(1, order).float()
    positions = torch.arange(1, ranks + 1, device=hits.device)
    within = positions <= wanted[:, None]
    average = (hits * hits.cumsum(dim=1) / positions * within).sum(dim=1) / wanted
    return hits[:, :_TOP].mean(dim=1), average
