"""Linear probes on little data: 1 % and 10 % of the labels, and n of every class, several draws each.

1 % and 10 %, drawn with equal shares of every class: Chen et al. 2020 (arXiv 2002.05709, section 6). n of every class: El
Banani et al. 2023 (arXiv 2302.07944) and X-CLR (arXiv 2407.18134, figure of accuracy against samples per class).
"""

from __future__ import annotations

from train.evaluate.intervals import drawn
from train.evaluate.protocols.linear import fit_probe
from train.evaluate.protocols.task import Task, accuracy, draw_per_class

SHARES = {"1pct": 0.01, "10pct": 0.1}
PER_CLASS = (1, 5, 20)
DRAWS = 3
_PENALTIES = (1.0, 1e-1, 1e-2)
"""Stronger than those of the full probe: a handful of samples is fitted perfectly by any weaker one."""
_FEW = 2
_FIXED = (1e-1,)
"""With so few samples a class there is nothing to choose a penalty on."""


def low_data_scores(task: Task) -> dict[str, float]:
    """Return `linear_<share>` and `linear_n<count>`, each the mean of the draws, with `_ci95` beside it.

    A share that comes to less than one sample a class takes one; what takes all the samples is left out.
    """
    mean_count = len(task.train) / len(task.classes[0])
    counts = {name: max(1, round(share * mean_count)) for name, share in SHARES.items()}
    counts |= {f"n{count}": count for count in PER_CLASS}
    scores: dict[str, float] = {}
    for name, count in counts.items():
        if count < mean_count:
            scores |= drawn(f"linear_{name}", [_probe_accuracy(task, count, seed) for seed in range(DRAWS)])
    return scores


def _probe_accuracy(task: Task, count: int, seed: int) -> float:
    seen, places = task.classes
    rows = draw_per_class(places, count, seed)
    probe = fit_probe(task.train.features[rows], places[rows], classes=len(seen), penalties=_FIXED if count <= _FEW else _PENALTIES)
    return accuracy(seen[probe.predict(task.test.features)], task.test.labels)
