"""The target's temperature by what it shall give: `--tau-s auto` with `--target-mass 0.36` or `--target-positives 12`.

Shape letters: B samples of a batch, and of the queue where there is one; T anchors of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from itertools import islice, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from graphbuild.errors import OptionError
from graphbuild.store.arrays import Int64
from graphbuild.torch.mixture import MixedTarget
from graphbuild.torch.softmax import entropy_of, own_view_mass, target_weights
from train.config import TrainConfig
from train.data.chunks import make_batches
from train.data.prepare import TrainingData
from train.run.targets import Split, SupCon, make_graph_target

_BATCHES, _ANCHORS, _MOST = 8, 512, 1 << 22
"""What is sampled: so many batches, and so many anchors of each, or as many as have rows of so many numbers (float64)."""
_LOWEST, _HIGHEST = 1e-3, 10.0
_GRID, _HALVINGS = 17, 24
"""Temperatures at which the figure is looked at first, and halvings of the interval where it passes what is asked for."""


class Sample(NamedTuple):
    """Anchors of a batch."""

    rows_at: Callable[[float], Tensor]
    """Their rows of G at a temperature; (T, B)."""
    same_TB: Tensor | None = None
    """Which samples are of an anchor's class; (T, B). None where that is not asked for."""


class Wanted(NamedTuple):
    """What a temperature is to give."""

    option: str
    value: float
    what: str
    """Of which the value is told, for people."""
    figure: Callable[[list[Sample], float], float]
    """Measures it at a temperature."""


def settle_tau_s(config: TrainConfig, data: TrainingData, device: torch.device) -> tuple[TrainConfig, str]:
    """Replace `auto` by the temperature that gives what is asked for; what was found, in a few words.

    It follows from the configuration and the data: a run that goes on finds the same.

    Raises:
        OptionError: If no temperature gives it; the nearest that can be had is named.
    """
    if config.tau_s != "auto":
        return config, ""
    plain = replace(_with_tau_s(config, 0.1), kl_every=0)
    # All of a batch at once, whichever process asks.
    maker = make_graph_target(plain, data, device, Split(range(config.batch_size), config.batch_size))
    classes = SupCon(plain, data, device) if config.mass_of == "own-class" else None
    anchors = min(config.batch_size, _ANCHORS, max(1, _MOST // (config.batch_size + config.queue)))

    def sample(samples_B: Int64, epoch: int) -> Sample:
        target = maker.target(samples_B, epoch)
        same = None if classes is None else classes.target(samples_B, epoch).rows(0, anchors) > 0
        if isinstance(target, MixedTarget):
            return Sample(lambda tau_s: target.at(tau_s).rows(0, anchors).double(), same)
        rows = target.rows(0, anchors).double()
        return Sample(lambda _: rows, same)

    wanted = wanted_of(config)
    found = solve_tau_s([sample(samples_B, epoch) for samples_B, epoch in _columns(config, data)], wanted)
    return _with_tau_s(config, found), f"tau_s {found:g} by --tau-s auto, for {wanted.what} of {wanted.value:g}"


def _with_tau_s(config: TrainConfig, tau_s: float) -> TrainConfig:
    """Return a configuration that names the temperature, and asks for nothing that gives one."""
    asked = ("target_mass", "mass_of", "target_positives")
    defaults: dict[str, Any] = {item.name: item.default for item in fields(config) if item.name in asked}
    return replace(config, tau_s=tau_s, **defaults)


def _columns(config: TrainConfig, data: TrainingData) -> Iterator[tuple[Int64, int]]:
    """Give the samples of batches and their epoch: of the first ones, or of the first for which a queue is full."""
    held = np.zeros(0, np.int64)
    filling = -(-config.queue // config.batch_size)
    batches = islice(make_batches(config, data).batches(epoch=0, step=0), filling + _BATCHES)
    for number, batch in enumerate(batches):
        if number >= filling:
            yield np.concatenate([batch.indices, held]), batch.epoch
        held = np.concatenate([held, batch.indices])[-config.queue :] if config.queue else held


def wanted_of(config: TrainConfig) -> Wanted:
    """Return what the options ask for."""
    if config.target_positives is not None:
        return Wanted("--target-positives", config.target_positives, "a number of effective positives", _positives)
    if config.mass_of == "own-class":
        return Wanted("--target-mass", config.target_mass, "an own-class mass", _class_mass)
    return Wanted("--target-mass", config.target_mass, "an own-view mass", _view_mass)


def _view_mass(sampled: list[Sample], tau_s: float) -> float:
    """Compute the mean share of the target on the other view of the same image."""
    return _mean([own_view_mass(one.rows_at(tau_s), tau_s) for one in sampled])


def _class_mass(sampled: list[Sample], tau_s: float) -> float:
    """Compute the mean share of the target on the images of the own class, the other view among them."""
    masses = []
    for one in sampled:
        assert one.same_TB is not None, "sampled for it"
        weights = target_weights(one.rows_at(tau_s), tau_s)[0]
        # Both views of each, but one of the anchor's own image.
        masses.append((2 * (weights * one.same_TB).sum(dim=1) - weights.diagonal()).mean())
    return _mean(masses)


def _positives(sampled: list[Sample], tau_s: float) -> float:
    """Compute the exponential of the mean entropy of the target, as `SoftTargets.describe` does."""
    return float(torch.tensor(_mean([entropy_of(*target_weights(one.rows_at(tau_s), tau_s)).mean() for one in sampled])).exp())


def solve_tau_s(sampled: list[Sample], wanted: Wanted) -> float:
    """Find the lowest temperature that gives what is wanted, by bisection; four digits.

    Args:
        sampled: Anchors of some batches.
        wanted: What is to be had, and how it is measured.

    Raises:
        OptionError: If it cannot be had from 0.001 to 10.
    """
    step = (_HIGHEST / _LOWEST) ** (1 / (_GRID - 1))
    grid = [_LOWEST * step**number for number in range(_GRID)]
    found = [wanted.figure(sampled, tau_s) for tau_s in grid]
    reached = [value >= wanted.value for value in found]
    crossed = [pair for pair, (one, other) in zip(pairwise(grid), pairwise(reached), strict=True) if one != other]
    if not crossed and wanted.value not in found:
        nearest, at = min(zip(found, grid, strict=True), key=lambda pair: abs(pair[0] - wanted.value))
        raise OptionError(
            f"{wanted.option} {wanted.value:g} cannot be reached: in batches of these images, {wanted.what} is {min(found):.3g} to "
            f"{max(found):.3g}; the nearest is {nearest:.3g}, at --tau-s {at:.3g}."
        )
    low, high = crossed[0] if crossed else (grid[found.index(wanted.value)],) * 2
    above = wanted.figure(sampled, low) >= wanted.value
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if (wanted.figure(sampled, middle) >= wanted.value) == above else (low, middle)
    return float(f"{(low * high) ** 0.5:.4g}")


def _mean(values: list[Tensor]) -> float:
    return float(torch.stack(values).mean())
