"""Runs that differ in nothing but the seed are one arm; its scores, a value a seed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from graphbuild.errors import ArtifactError, OptionError
from train.config import TrainConfig
from train.config.kinds import flag
from train.run.folder import EVAL_FILE, TRAINED, read_run_config
from train.run.scores import read_scores, unreadable

_SEED_FOLDER = re.compile(r"seed-\d+")
_NUMBER = re.compile(r"[-_](seed[-_]?)?\d+$")

CONDITIONS = ("precision", "device", "images to train on", "images to score on")
"""What runs that are paired should have in common."""

Measure = tuple[str, str]
"""Label column or data set, and the name of the score."""


@dataclass(frozen=True, slots=True)
class Arm:
    """Runs of one configuration, the seed apart."""

    name: str
    first: Path
    """The folder of its first run."""
    config: TrainConfig
    """Of that run."""
    scores: Mapping[int, Mapping[Measure, float]]
    """By seed."""
    conditions: Mapping[int, Mapping[str, str]]
    """What besides the configuration decides whether runs can be compared, by seed; see `CONDITIONS`."""

    def values(self, measure: Measure) -> dict[int, float]:
        """Return a score by seed, for the seeds that have it."""
        return {seed: found[measure] for seed, found in self.scores.items() if measure in found}

    def differing(self, baseline: Arm) -> list[str]:
        """Return a line for each of `CONDITIONS` in which runs of equal seeds differ from those of a baseline."""
        shared = sorted(set(self.scores) & set(baseline.scores))
        lines = []
        for name in CONDITIONS:
            pairs = {seed: (self.conditions[seed][name], baseline.conditions[seed][name]) for seed in shared}
            unlike = {seed: pair for seed, pair in pairs.items() if pair[0] != pair[1]}
            if unlike:
                seed, (own, other) = next(iter(unlike.items()))
                lines.append(
                    f"{self.name} and {baseline.name}: {len(unlike)} of {len(shared)} pairs of runs are of different {name} "
                    f"(seed {seed}: {own} and {other})."
                )
        return lines


def read_arms(paths: Sequence[Path]) -> list[Arm]:
    """Read evaluated runs and put those together that differ in their seed alone, in the order given.

    Raises:
        OptionError: If a folder is not that of a run, or two runs are of one configuration and seed.
        ArtifactError: If a run was not evaluated, or its eval.json cannot be read.
    """
    groups: dict[tuple[object, ...], list[tuple[Path, TrainConfig]]] = {}
    for path in dict.fromkeys(path.resolve() for path in paths):
        config = read_run_config(path)
        groups.setdefault(_identity(config), []).append((path, config))
    names = _distinct([_name(members[0][0]) for members in groups.values()])
    return [_read_arm(name, members) for name, members in zip(names, groups.values(), strict=True)]


def _identity(config: TrainConfig) -> tuple[object, ...]:
    """Everything that decides the outcome but the seed; the graph and the images, too."""
    strict = [item.name for item in fields(config) if not item.metadata.get("loose") and item.name != "seed"]
    return tuple(getattr(config, name) for name in (*strict, "graphs", "data"))


def _name(path: Path) -> str:
    """`xclr` of both `xclr/seed-0` and `xclr-1`."""
    return path.parent.name if _SEED_FOLDER.fullmatch(path.name) else _NUMBER.sub("", path.name) or path.name


def _distinct(names: Sequence[str]) -> list[str]:
    """Names, numbered where several arms would share one."""
    return [f"{name} ({names[:place].count(name) + 1})" if names.count(name) > 1 else name for place, name in enumerate(names)]


def _read_arm(name: str, members: Sequence[tuple[Path, TrainConfig]]) -> Arm:
    scores: dict[int, Mapping[Measure, float]] = {}
    conditions: dict[int, Mapping[str, str]] = {}
    for path, config in members:
        if config.seed in scores:
            raise OptionError(f"{path}: is a second run of {name} with seed {config.seed}. Compare runs of different seeds.")
        evaluation = _read_evaluation(path)
        scores[config.seed] = _scores(evaluation, path)
        conditions[config.seed] = _conditions(config, evaluation)
    return Arm(name, *members[0], scores, conditions)


def _conditions(config: TrainConfig, evaluation: Mapping[str, Any]) -> dict[str, str]:
    share = [f"{flag(name)} {value}" for name in ("val_ids", "val_fraction") if (value := getattr(config, name))]
    trained_on = " ".join(filter(None, [str(config.data), *share, config.budget]))
    # Which card of a machine a run had says nothing.
    device = config.device.partition(":")[0]
    values = (config.precision, device, trained_on, str(evaluation.get("data")))
    return dict(zip(CONDITIONS, values, strict=True))


def _read_evaluation(path: Path) -> dict[str, Any]:
    try:
        return read_scores(path / EVAL_FILE)
    except FileNotFoundError:
        raise ArtifactError(f"{path}: was not evaluated. Run `train eval {path}`.") from None


def _scores(evaluation: Mapping[str, Any], path: Path) -> dict[Measure, float]:
    try:
        trained = evaluation["scores"][TRAINED]
        return {(column, name): float(value) for column, found in trained.items() for name, value in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise unreadable(path / EVAL_FILE, error) from None
