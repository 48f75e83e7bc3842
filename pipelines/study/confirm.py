"""The confirmatory study as it was planned before its first run: arms, blocks, folds, softness, and the rule of its reading.

docs/study/preregistration.md says the same in words. Nothing here was run when it was written; `pipelines.study.confirm_runs` makes
the runs. `python -m pipelines.study.confirm` prints those that are planned; with their records, what is to be said of them.
Shape letters: C classes to train on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import click
import numpy as np

from graphbuild.errors import OptionError
from graphbuild.store.arrays import Float64
from graphbuild.system.options import FILE, HELP
from graphbuild.system.process import run_cli
from pipelines.study.data import hold_out
from pipelines.study.graphs import shuffle
from train.config import ModelName
from train.results.compare.differences import ALPHA, Difference, difference, holm_adjusted
from train.run.metrics import read_lines
from train.run.scores import IN_EDGES

ArmName = Literal["supcon", "flat", "prompts", "definitions", "permuted", "wordnet"]
Scores = Mapping[ArmName, Mapping[str, Mapping[int, float]]]
"""By arm and measure, a value for each block's number."""
Verdict = Literal["ahead", "behind", "no effect above 0.2 points", "open"]

FOLDS, SEEDS_A_FOLD = 5, 4
FIRST_SEED = 100
"""Those of the pilot and of the earlier study lie below."""
_FOLD_SEED = 1
"""Decides the folds; 0 made the held-out classes of the earlier study."""
Contrast = tuple[ArmName, ArmName]
PRIMARY: tuple[Contrast, ...] = (("prompts", "flat"), ("definitions", "flat"), ("definitions", "supcon"))
SECONDARY: tuple[Contrast, ...] = (("flat", "supcon"), ("definitions", "permuted"), ("permuted", "flat"), ("wordnet", "flat"))
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


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSet:
    """The runs of one kind of machine: a row of the plan's last table."""

    arms: tuple[ArmName, ...]
    blocks: int
    """How many of `blocks()`, from the first."""
    budget: int
    """Images that a run sees."""
    model: ModelName = "small"
    primary: tuple[Contrast, ...] = ()
    """Tested with Holm's correction over all of them on all primary measures; none: the set is secondary as a whole."""
    confirms: bool = False
    """Whether "text helps" may be said of it."""


SETS: Mapping[str, RunSet] = {
    "full": RunSet(arms=get_args(ArmName), blocks=FOLDS * SEEDS_A_FOLD, budget=320_000, primary=PRIMARY, confirms=True),
    "resnet18": RunSet(arms=("supcon", "flat", "prompts", "definitions"), blocks=8, budget=640_000, model="resnet18"),
    "cpu": RunSet(arms=("flat", "definitions", "permuted"), blocks=12, budget=80_000, primary=(("definitions", "flat"),)),
}


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


def flat(similarity_CC: Float64) -> Float64:
    """Return a graph with one similarity for all other classes, the mean of those given."""
    others = ~np.eye(len(similarity_CC), dtype=bool)
    return np.where(others, similarity_CC[others].mean(), 1.0)


def permuted(similarity_CC: Float64, block: Block) -> Float64:
    """Return the same weights between other classes, by a permutation of the block's own that leaves no class in its place."""
    return shuffle(similarity_CC, (FIRST_SEED, block.number))


def arm_similarity(arm: ArmName, block: Block, similarities: Mapping[str, Float64]) -> Float64:
    """Return the similarities of an arm's graph; of SupCon, which asks for none, those of definitions.

    Args:
        arm: The arm.
        block: Decides the permutation.
        similarities: Those of definitions, and of prompts and WordNet where they are arms, by the arm's name.
    """
    true = similarities["definitions"]
    made = {"flat": lambda: flat(true), "permuted": lambda: permuted(true, block)}
    return made[arm]() if arm in made else similarities.get(arm, true)


def own_class_mass(similarity_CC: Float64, tau_s: float) -> float:
    """Return the target's mass on the own class, the mean over classes, where every class is met equally often."""
    logits = (similarity_CC - 1) / tau_s
    np.fill_diagonal(logits, 0)
    return float((1 / np.exp(logits).sum(axis=1)).mean())


def solve_tau_s(similarity_CC: Float64, mass: float) -> float:
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

    contrast: Contrast
    measure: str
    difference: Difference
    holm_p: float
    verdict: Verdict


def read(scores: Scores, contrasts: Sequence[Contrast] = PRIMARY) -> list[Reading]:
    """Return the reading of every contrast on every primary measure; Holm's correction is over all of them.

    Args:
        scores: Those of the arms of the contrasts.
        contrasts: One family of tests.

    Raises:
        OptionError: If there are fewer than two blocks in which both arms of a contrast were scored.
    """
    found = []
    for one, other in contrasts:
        for measure in MEASURES:
            gap = difference(scores.get(one, {}).get(measure, {}), scores.get(other, {}).get(measure, {}))
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


def read_scores(records: Path) -> tuple[str, Scores]:
    """Return the name of the set that a file of records is of, and the scores of its whole blocks.

    Raises:
        OptionError: If it holds no record, or those of several sets.
    """
    lines = read_lines(records)
    sets = sorted({line["set"] for line in lines})
    if len(sets) != 1:
        raise OptionError(
            f"{records}: holds records of {len(sets)} sets of runs, and those of one are read. Name another --scores."
        )
    made = {(line["arm"], line["block"]) for line in lines}
    scores: dict[ArmName, dict[str, dict[int, float]]] = {}
    for line in lines:
        if any((arm, line["block"]) not in made for arm in SETS[sets[0]].arms):
            # A block that was cut short does not count.
            continue
        for measure in (*MEASURES, *SECONDARY_MEASURES):
            if measure in line["scores"]:
                scores.setdefault(line["arm"], {}).setdefault(measure, {})[line["block"]] = line["scores"][measure]
    return sets[0], scores


def describe_scores(scores: Scores, run_set: RunSet) -> str:
    """Return in lines how many blocks there are, the readings of the primary tests, the rule's answer, and other differences."""
    whole = set.intersection(*(set(scores.get(arm, {}).get(MEASURES[0], {})) for arm in run_set.arms))
    lines = [f"{len(whole)} of {run_set.blocks} blocks, {run_set.budget:,} images a run, {run_set.model}"]
    readings = read(scores, run_set.primary)
    lines += [
        f"primary: {_shown(found.contrast, found.measure, found.difference)}, corrected p {found.holm_p:.3g}: {found.verdict}"
        for found in readings
    ]
    lines.append(_answer(scores, readings, run_set))
    others = [pair for pair in (*PRIMARY, *SECONDARY) if pair not in run_set.primary]
    circular = [(pair, measure) for pair in run_set.primary for measure in SECONDARY_MEASURES]
    for pair, measure in [*circular, *((pair, measure) for pair in others for measure in (*MEASURES, *SECONDARY_MEASURES))]:
        if all(measure in scores.get(arm, {}) for arm in pair):
            gap = difference(scores[pair[0]][measure], scores[pair[1]][measure])
            lines.append(f"secondary: {_shown(pair, measure, gap)}")
    return "\n".join(lines)


def _answer(scores: Scores, readings: Sequence[Reading], run_set: RunSet) -> str:
    """What the rule says of texts. The positive control is tested as a family of its own."""
    if not run_set.confirms:
        return "text helps: not to be said of this set, whatever comes out"
    if not any(reading.verdict == "ahead" for reading in read(scores, [("wordnet", "flat")])):
        return "text helps: nothing is said, for wordnet - flat is not ahead either: the study could not have seen an effect"
    return f"text helps: {'yes' if text_helps(readings) else 'not shown'}"


def _shown(pair: Contrast, measure: str, gap: Difference) -> str:
    scale = 1 if measure in IN_EDGES else 100
    half = "" if gap.half is None else f" ± {scale * gap.half:.2f}"
    return f"{' - '.join(pair)}, {measure}: {scale * gap.mean:+.2f}{half}"


@click.command(context_settings=HELP)
@click.option("--scores", type=FILE, default=None, help="Records of the runs of one set.")
@click.option("--names", type=FILE, default=None, help="The 200 class names, one a line.")
def confirm(scores: Path | None, names: Path | None) -> None:
    """Print the planned runs, or what the plan says of those that were made."""
    if (scores is None) == (names is None):
        raise OptionError("give --names for the plan, or --scores for its reading.")
    if names is not None:
        click.echo(describe_plan(names.read_text(encoding="utf-8").split("\n")[:-1]))
    if scores is not None:
        name, found = read_scores(scores)
        click.echo(describe_scores(found, SETS[name]))


def _verdict(gap: Difference, holm_p: float) -> Verdict:
    if holm_p < ALPHA:
        return "ahead" if gap.mean > 0 else "behind"
    return "no effect above 0.2 points" if gap.equivalent(BOUND) else "open"


if __name__ == "__main__":
    run_cli(confirm, debug_variable="TRAIN_DEBUG")
