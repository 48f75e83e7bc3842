"""Linear probe: multinomial logistic regression on standardised frozen features, by L-BFGS, its L2 chosen on held-out rows.

Shape letters: N training rows, M test rows, F feature width, C classes. Deterministic: it starts at zero, and the rows
held out follow from their number alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""L2 penalties tried: lambda in mean cross-entropy + lambda / 2 |W|^2."""
_HELD_OUT = 0.2
ITERATIONS = 100
"""Of a fit, at most."""


class LinearProbe(NamedTuple):
    """A fitted classifier: standardise, multiply, add, take the largest."""

    mean_F: Tensor
    scale_F: Tensor
    weight_FC: Tensor
    bias_C: Tensor
    penalty: float

    def predict(self, features_MF: Tensor) -> Tensor:
        """Return the class that the probe gives each row of features; (M,)."""
        return (((features_MF.float() - self.mean_F) * self.scale_F) @ self.weight_FC + self.bias_C).argmax(dim=1)


def fit_probe(
    train_NF: Tensor, labels_N: Tensor, *, classes: int, penalties: Sequence[float] = PENALTIES, sweep_rows: int = 25_000
) -> LinearProbe:
    """Fit on all rows, with the penalty that does best on a fifth of some of them.

    The penalty stands beside the mean of the rows' losses, so one that was chosen on n rows is n / N as large on all N: the same
    beside their sum.

    Args:
        train_NF: Training features; (N, F).
        labels_N: Their classes, 0..C-1; (N,).
        classes: C.
        penalties: Tried from strong to weak, each fit starting at the one before; on a tie the stronger is taken.
        sweep_rows: Rows to choose the penalty by, at most; the final fit takes all.
    """
    features = train_NF.float()
    mean, deviation = features.mean(dim=0), features.std(dim=0, correction=0)
    # A feature that never changes says nothing: it is left at zero, not divided by zero.
    scale = torch.where(deviation > 1e-6 * (1 + mean.abs()), 1 / deviation.clamp_min(1e-12), 0.0)
    inputs = (features - mean) * scale
    ordered = sorted(penalties, reverse=True)
    if len(ordered) == 1:
        penalty = ordered[0]
    else:
        chosen, rows = _choose_penalty(inputs, labels_N, classes, ordered, sweep_rows)
        penalty = chosen * rows / len(inputs)
    weight, bias = _fit(inputs, labels_N, _zeros(inputs, classes), penalty)
    return LinearProbe(mean, scale, weight, bias, penalty)


def _choose_penalty(inputs: Tensor, labels: Tensor, classes: int, penalties: Sequence[float], most: int) -> tuple[float, int]:
    """The penalty, and the number of rows that it was chosen for."""
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))[:most].to(inputs.device)
    held = max(1, int(len(order) * _HELD_OUT))
    fitted, checked = order[held:], order[:held]
    if not len(fitted):
        return penalties[0], len(inputs)
    state, best, best_correct = _zeros(inputs, classes), penalties[0], -1
    for penalty in penalties:
        state = _fit(inputs[fitted], labels[fitted], state, penalty)
        correct = int(((inputs[checked] @ state[0] + state[1]).argmax(dim=1) == labels[checked]).sum())
        if correct > best_correct:
            best, best_correct = penalty, correct
    return best, len(fitted)


def _zeros(inputs: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    return inputs.new_zeros(inputs.shape[1], classes), inputs.new_zeros(classes)


def _fit(inputs: Tensor, labels: Tensor, start: tuple[Tensor, Tensor], penalty: float) -> tuple[Tensor, Tensor]:
    """Minimise mean cross-entropy + penalty / 2 |W|^2; the bias is not penalised."""
    weight, bias = (part.detach().clone().requires_grad_() for part in start)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=ITERATIONS,
        history_size=10,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(inputs @ weight + bias, labels) + penalty / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
