"""Severity of mistakes: how far in WordNet the linear probe's answer lies from the truth.

Bertinetto et al. 2020, "Making better mistakes" (arXiv 1912.09393), with the length of the path between the two classes as
the distance.
"""

from __future__ import annotations

import torch

from graphbuild.errors import SourceError
from train.evaluate.protocols.task import Task


def severity_scores(task: Task) -> dict[str, float]:
    """Return the distances of the answers from the truth, in edges of the hierarchy.

    They are `severity`, the mean over the mistakes; `severity_all`, where right answers count 0; and `severity_chance`, of a
    wrong class at random.

    Raises:
        SourceError: If there is no hierarchy, or it lacks a class.
    """
    if task.hierarchy is None:
        raise SourceError("severity: distances between classes are needed. Name them with --hierarchy.")
    seen, _ = task.classes
    codes = torch.unique(torch.cat([seen, task.test.labels]))
    known = [[*([task.wnids[code]] if code in task.wnids else []), task.names[code]] for code in codes.tolist()]
    matrix = torch.from_numpy(task.hierarchy.matrix(known))
    truth, guess = (torch.searchsorted(codes, side).cpu() for side in (task.test.labels, task.answers))
    distances, wrong = matrix[truth, guess], truth != guess
    answers = torch.searchsorted(codes, seen).cpu()
    # The truth itself adds no distance, and is no wrong answer.
    others = len(answers) - torch.isin(truth, answers).double()
    random = (matrix[truth][:, answers].sum(dim=1) / others.clamp_min(1)).mean()
    scores = {"severity_all": float(distances.mean()), "severity_chance": float(random)}
    return {"severity": float(distances[wrong].mean()), **scores} if wrong.any() else scores
