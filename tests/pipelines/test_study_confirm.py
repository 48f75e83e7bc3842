"""The confirmatory study's plan: folds, blocks, permutations, equal softness, and its rule of reading."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from click.testing import CliRunner

from graphbuild.errors import OptionError
from graphbuild.store.arrays import Float64
from pipelines.study.confirm import (
    MEASURES,
    PRIMARY,
    SECONDARY_MEASURES,
    SETS,
    ArmName,
    blocks,
    confirm,
    describe_scores,
    flat,
    fold_classes,
    own_class_mass,
    permuted,
    read,
    solve_tau_s,
    text_helps,
)
from pipelines.study.data import hold_out

NAMES = [f"class {number}" for number in range(200)]


def similarities(count: int, seed: int = 0) -> Float64:
    vectors = np.random.default_rng(seed).normal(size=(count, 16)) + 0.5
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    product: Float64 = unit @ unit.T
    return product


def test_every_class_is_held_out_by_one_fold_and_none_is_that_of_the_earlier_study() -> None:
    folds = [fold_classes(NAMES, fold) for fold in range(5)]
    assert [len(held) for held in folds] == [40] * 5
    assert sorted(name for held in folds for name in held) == sorted(NAMES)
    assert hold_out(NAMES) not in folds
    with pytest.raises(OptionError, match="folds 0 to 4"):
        fold_classes(NAMES, 5)


def test_twenty_blocks_are_balanced_however_many_are_run_and_have_seeds_of_their_own() -> None:
    found = blocks()
    assert len({block.seed for block in found}) == 20
    assert min(block.seed for block in found) > 7
    for count in (5, 10, 20):
        assert {sum(block.fold == fold for block in found[:count]) for fold in range(5)} == {count // 5}


def test_permutation_is_the_blocks_own_keeps_all_weights_and_moves_every_class() -> None:
    true = similarities(30)
    wrong = [permuted(true, block) for block in blocks()]
    assert len({matrix.tobytes() for matrix in wrong}) == 20
    for matrix in wrong:
        assert np.array_equal(np.sort(matrix, axis=None), np.sort(true, axis=None))
        assert not (matrix == true).all(axis=1).any()


@pytest.mark.parametrize("mass", [0.3, 0.63, 0.95])
def test_tau_s_gives_every_graph_the_same_mass_by_a_softmax_over_classes(mass: float) -> None:
    true = similarities(40)
    for graph in (true, flat(true), permuted(true, blocks()[3])):
        rows = np.exp(graph / solve_tau_s(graph, mass))
        assert float((np.diag(rows) / rows.sum(axis=1)).mean()) == pytest.approx(mass, abs=1e-8)
    assert solve_tau_s(permuted(true, blocks()[3]), mass) == pytest.approx(solve_tau_s(true, mass))


def test_flat_graph_knows_nothing_of_its_classes_but_their_mean() -> None:
    true = similarities(12)
    others = flat(true)[~np.eye(12, dtype=bool)]
    assert np.ptp(others) == 0
    assert others[0] == pytest.approx(true[~np.eye(12, dtype=bool)].mean())


def test_mass_that_no_target_has_is_refused() -> None:
    with pytest.raises(OptionError, match=r"not between 0\.1, that of an even target, and 1"):
        solve_tau_s(similarities(10), 0.05)
    assert own_class_mass(similarities(10), 1e6) == pytest.approx(0.1, abs=1e-4)


def scores(gaps: dict[ArmName, float], spread: float) -> dict[ArmName, dict[str, dict[int, float]]]:
    rng = np.random.default_rng(2)
    measures = (*MEASURES, *SECONDARY_MEASURES)
    return {
        arm: {measure: {n: 0.2 + gaps.get(arm, 0) + spread * rng.normal() for n in range(20)} for measure in measures}
        for arm in get_args(ArmName)
    }


@pytest.mark.parametrize(
    ("gap", "spread", "verdict", "helps"),
    [(0.01, 0.002, "ahead", True), (-0.01, 0.002, "behind", False), (0.0, 0.0005, "no effect above 0.2 points", False)],
)
def test_reading_says_ahead_behind_or_no_effect_by_holm_over_six_and_the_bound(
    gap: float, spread: float, verdict: str, helps: bool
) -> None:
    found = read(scores({"prompts": gap, "definitions": gap}, spread))
    assert len(found) == len(PRIMARY) * len(MEASURES) == 6
    assert {reading.verdict for reading in found} == {verdict}
    assert text_helps(found) is helps


def test_wide_intervals_leave_the_question_open_and_one_block_is_refused() -> None:
    assert {reading.verdict for reading in read(scores({}, 0.02))} == {"open"}
    one = {arm: {name: {0: 0.1} for name in MEASURES} for arm in ("supcon", "flat", "prompts", "definitions")}
    with pytest.raises(OptionError, match="fewer than two blocks"):
        read(one)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("gaps", "said"),
    [
        ({"prompts": 0.01, "wordnet": 0.01}, "text helps: yes"),
        ({"wordnet": 0.01}, "text helps: not shown"),
        ({"prompts": 0.01}, "text helps: nothing is said, for wordnet - flat is not ahead either"),
    ],
)
def test_texts_are_spoken_of_only_where_the_positive_control_is_ahead(gaps: dict[ArmName, float], said: str) -> None:
    lines = describe_scores(scores(gaps, 0.002), SETS["full"]).splitlines()
    assert lines[0] == "20 of 20 blocks, 320,000 images a run, small"
    assert [line for line in lines if line.startswith(said)]
    assert sum(line.startswith("primary: ") for line in lines) == 6


def test_sets_are_those_of_the_plan_and_the_small_one_corrects_over_two_tests_and_confirms_nothing() -> None:
    assert {name: (len(run_set.arms), run_set.blocks, run_set.budget) for name, run_set in SETS.items()} == {
        "full": (6, 20, 320_000),
        "resnet18": (4, 8, 640_000),
        "cpu": (3, 12, 80_000),
    }
    said = describe_scores(scores({"definitions": 0.01}, 0.002), SETS["cpu"])
    assert said.count("primary: definitions - flat") == 2
    assert said.count("primary") == 2
    assert "text helps: not to be said" in said


def test_command_prints_the_planned_runs(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n")
    planned = CliRunner().invoke(confirm, ["--names", str(tmp_path / "names.txt")], catch_exceptions=False).output.splitlines()
    assert len(planned) == 5 + 1 + 120
    assert planned[0].count("class ") == 40
    with pytest.raises(OptionError, match="holds records of 0 sets"):
        CliRunner().invoke(confirm, ["--scores", str(tmp_path / "none.jsonl")], catch_exceptions=False)
    with pytest.raises(OptionError, match="--names for the plan"):
        CliRunner().invoke(confirm, [], catch_exceptions=False)
