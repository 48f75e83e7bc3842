"""The confirmatory study as it was planned before its first run: arms, blocks, folds, softness, and the rule of its reading.

docs/study/preregistration.md says the same in words. Nothing here was run when it was written. `python -m pipelines.study.confirm`
prints the planned runs; with a JSON file of scores, by arm, measure and block, what is to be said of them.
Shape letters: C classes to train on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import click
import numpy as np
import numpy.typing as npt

from graphbuild.errors import OptionError
from graphbuild.system.process import run_cli
from pipelines.study.data import hold_out
from train.results.compare.differences import ALPHA, Difference, difference, holm_adjusted

Matrix = npt.NDArray[np.float64]
ArmName = Literal["supcon", "flat", "prompts", "definitions", "permuted", "wordnet"]
Scores = Mapping[ArmName, Mapping[str, Mapping[int, float]]]
"""By arm and measure, a value for each block's number."""
Verdict = Literal["ahead", "behind", "no effect above 0.2 points", "open"]

FOLDS, SEEDS_A_FOLD = 5, 4
FIRST_SEED = 100
"""Those of the pilot and of the earlier study lie below."""
_FOLD_SEED = 1
"""Decides the folds; 0 made the held-out classes of the earlier study."""
PRIMARY: tuple[tuple[ArmName, ArmName], ...] = (("prompts", "flat"), ("definitions", "flat"), ("definitions", "supcon"))
SECONDARY: tuple[tuple[ArmName, ArmName], ...] = (("flat", "supcon"), ("definitions", "permuted"), ("permuted", "flat"))
MEASURES = ("held_out_knn", "linear_top1")
SECONDARY_MEASURES = ("superclass_p10", "severity")
"""Circular for definitions and WordNet: both measures come from WordNet, too."""
BOUND = 0.002
"""0.2 points."""
REFERENCE_TAU_S = 0.15
"""Of definitions; every other graph is made as soft as these are at it."""


@dataclass(frozen=True, slots=True)
class Block:
    """Runs that share held-out classes, weights, batches and augmentations; differences are paired within it."""

    fold: int
    number: int

    @property
    def seed(self) -> int:
        """`--seed` of its runs, a number of its own."""
        return FIRST_SEED + self.number


def blocks() -> list[Block]:
    """Return all blocks, one of each fold before the second of any, so that a study cut short is balanced."""
    return [Block(number % FOLDS, number) for number in range(FOLDS * SEEDS_A_FOLD)]


def fold_classes(names: Sequence[str], fold: int) -> list[str]:
    """Return the classes that a fold holds out; each class is held out by one fold.

    Raises:
        OptionError: If there is no such fold.
    """
    if not 0 <= fold < FOLDS:
        raise OptionError(f"fold {fold}: there are folds 0 to {FOLDS - 1}.")
    ordered = np.random.default_rng(_FOLD_SEED).permutation(sorted(names))
    held = sorted(np.array_split(ordered, FOLDS)[fold].tolist())
    assert held != hold_out(list(names)), "the fold of the earlier study is not used again"
    return held


def flat(similarity_CC: Matrix) -> Matrix:
    """Return a graph with one similarity for all other classes, the mean of those given."""
    others = ~np.eye(len(similarity_CC), dtype=bool)
    return np.where(others, similarity_CC[others].mean(), 1.0)


def permuted(similarity_CC: Matrix, block: Block) -> Matrix:
    """Return the same weights between other classes, by a permutation of the block's own that leaves no class in its place."""
    order = np.random.default_rng((FIRST_SEED, block.number)).permutation(len(similarity_CC))
    moved = np.empty_like(order)
    moved[order] = np.roll(order, 1)
    shuffled: Matrix = similarity_CC[np.ix_(moved, moved)]
    return shuffled


def own_class_mass(similarity_CC: Matrix, tau_s: float) -> float:
    """Return the target's mass on the own class, the mean over classes, where every class is met equally often."""
    logits = (similarity_CC - 1) / tau_s
    np.fill_diagonal(logits, 0)
    return float((1 / np.exp(logits).sum(axis=1)).mean())


def solve_tau_s(similarity_CC: Matrix, mass: float) -> float:
    """Return the tau_s at which a graph has a mass on the own class, from its similarities alone.

    Raises:
        OptionError: If the mass is not between that of an even target, 1 / C, and 1.
    """
    from scipy.optimize import brentq

    if not 1 / len(similarity_CC) < mass < 1:
        raise OptionError(f"mass {mass:g}: not between {1 / len(similarity_CC):g}, that of an even target, and 1.")
    found = brentq(lambda log: own_class_mass(similarity_CC, math.exp(log)) - mass, math.log(1e-3), math.log(1e4), xtol=1e-12)
    return float(math.exp(found))


@dataclass(frozen=True, slots=True)
class Reading:
    """What the study says of one contrast and measure."""

    contrast: tuple[ArmName, ArmName]
    measure: str
    difference: Difference
    holm_p: float
    verdict: Verdict


def read(scores: Scores) -> list[Reading]:
    """Return the reading of every primary contrast on every primary measure; Holm's correction is over all of them.

    Args:
        scores: Those of the arms of `PRIMARY`.

    Raises:
        OptionError: If there are fewer than two blocks in which both arms of a contrast were scored.
    """
    found = []
    for one, other in PRIMARY:
        for measure in MEASURES:
            gap = difference(scores[one][measure], scores[other][measure])
            if not gap.paired or gap.p is None:
                raise OptionError(f"{one} and {other} on {measure}: fewer than two blocks hold both. Run more blocks.")
            found.append(((one, other), measure, gap, gap.p))
    adjusted = holm_adjusted([p for *_, p in found])
    return [Reading(pair, measure, gap, p, _verdict(gap, p)) for (pair, measure, gap, _), p in zip(found, adjusted, strict=True)]


def text_helps(readings: Sequence[Reading]) -> bool:
    """Return whether a graph of texts is ahead of the flat one, of equal softness, in a primary measure."""
    return any(reading.verdict == "ahead" for reading in readings if reading.contrast[1] == "flat")


def describe_plan(names: Sequence[str]) -> str:
    """Return every planned run on a line, after what each fold holds out."""
    held = [f"fold {fold} holds out: {', '.join(fold_classes(names, fold))}" for fold in range(FOLDS)]
    softness = f"softness of every graph: the own-class mass of definitions at tau_s {REFERENCE_TAU_S:g}"
    runs = [f"fold {block.fold} seed {block.seed} {arm}" for block in blocks() for arm in get_args(ArmName)]
    return "\n".join([*held, softness, *runs])


def describe_scores(scores: Scores) -> str:
    """Return the readings of the primary tests, the rule's answer, and the secondary differences, a line each."""
    readings = read(scores)
    lines = [
        f"{_shown(found.contrast, found.measure, found.difference)}, corrected p {found.holm_p:.3g}: {found.verdict}"
        for found in readings
    ]
    lines.append(f"text helps: {'yes' if text_helps(readings) else 'not shown'}")
    circular = [(pair, measure) for pair in PRIMARY for measure in SECONDARY_MEASURES]
    for (one, other), measure in [*circular, *((pair, measure) for pair in SECONDARY for measure in MEASURES)]:
        if measure in scores.get(one, {}) and measure in scores.get(other, {}):
            gap = difference(scores[one][measure], scores[other][measure])
            lines.append(f"secondary: {_shown((one, other), measure, gap)}")
    return "\n".join(lines)


def _shown(pair: tuple[ArmName, ArmName], measure: str, gap: Difference) -> str:
    # Severity is counted in edges.
    scale = 1 if measure == "severity" else 100
    half = "" if gap.half is None else f" ± {scale * gap.half:.2f}"
    return f"{' - '.join(pair)}, {measure}: {scale * gap.mean:+.2f}{half}"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--scores", type=click.Path(dir_okay=False, path_type=Path), default=None, help="JSON: arm, measure, block, score.")
@click.option("--names", type=click.Path(dir_okay=False, path_type=Path), default=None, help="The 200 class names, one a line.")
def confirm(scores: Path | None, names: Path | None) -> None:
    """Print the planned runs, or what the plan says of scores."""
    if (scores is None) == (names is None):
        raise OptionError("give --names for the plan, or --scores for its reading.")
    if names is not None:
        click.echo(describe_plan(names.read_text(encoding="utf-8").split("\n")[:-1]))
    if scores is not None:
        stored = json.loads(scores.read_text(encoding="utf-8"))
        by_block = {
            arm: {name: {int(block): float(value) for block, value in values.items()} for name, values in measures.items()}
            for arm, measures in stored.items()
        }
        click.echo(describe_scores(by_block))


def _verdict(gap: Difference, holm_p: float) -> Verdict:
    if holm_p < ALPHA:
        return "ahead" if gap.mean > 0 else "behind"
    return "no effect above 0.2 points" if gap.equivalent(BOUND) else "open"


if __name__ == "__main__":
    run_cli(confirm, debug_variable="TRAIN_DEBUG")
