"""The target's temperature by what it shall give: `--tau-s auto --target-mass 0.36`.

Shape letters: B samples of a batch, T anchors of them.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from graphbuild.errors import OptionError
from graphbuild.torch.softmax import own_view_mass
from train.config import TrainConfig
from train.data.chunks import make_batches
from train.data.prepare import TrainingData
from train.run.targets import Split, make_graph_target

_BATCHES, _ANCHORS = 8, 512
"""What is sampled: so many batches of the first epoch, and so many anchors of each."""
_LOWEST, _HIGHEST = 1e-3, 10.0
_HALVINGS = 40


def settle_tau_s(config: TrainConfig, data: TrainingData, device: torch.device) -> tuple[TrainConfig, str]:
    """Replace `auto` by the temperature at which the own view has the mass asked for; what was found, in a few words.

    It follows from the configuration and the data: a run that goes on finds the same.

    Raises:
        OptionError: If no temperature gives the mass; the nearest that can be had is named.
    """
    if config.tau_s != "auto":
        return config, ""
    plain = replace(config, tau_s=0.1, kl_every=0)
    # All of a batch at once, whichever process asks.
    maker = make_graph_target(plain, data, device, Split(range(config.batch_size), config.batch_size))
    anchors = min(config.batch_size, _ANCHORS)
    batches = islice(make_batches(config, data).batches(epoch=0, step=0), _BATCHES)
    sampled = [maker.target(batch.indices, batch.epoch).rows(0, anchors).double() for batch in batches]
    found = solve_tau_s(sampled, config.target_mass)
    return replace(config, tau_s=found), f"tau_s {found:g} by --tau-s auto, for an own-view mass of {config.target_mass:g}"


def solve_tau_s(sampled: list[Tensor], mass: float) -> float:
    """Find the temperature at which the own view has a mean share of the target, by bisection; four digits.

    Args:
        sampled: Rows of G, of the first anchors of some batches; (T, B) each.
        mass: The share: it falls as the temperature rises.

    Raises:
        OptionError: If it cannot be had from 0.001 to 10.
    """

    def mass_at(tau_s: float) -> float:
        return float(torch.stack([own_view_mass(rows, tau_s) for rows in sampled]).mean())

    low, high = _LOWEST, _HIGHEST
    most, least = mass_at(low), mass_at(high)
    if not least <= mass <= most:
        nearest, at = (most, low) if mass > most else (least, high)
        raise OptionError(
            f"--target-mass {mass:g} cannot be reached: batches of these images give the own view from {least:.3g} to {most:.3g} "
            f"of the target; the nearest is {nearest:.3g}, at --tau-s {at:g}."
        )
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if mass_at(middle) > mass else (low, middle)
    return float(f"{(low * high) ** 0.5:.4g}")
