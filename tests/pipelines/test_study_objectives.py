"""The table of objectives: a record each, going on after a kill, and means and differences as they are recorded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers_study import short_evaluations, write_source

from graphbuild.errors import ArtifactMismatch
from pipelines.study.objectives import MEASURES, TRIALS, TrialsConfig, execute, objectives, planned_runs, table
from pipelines.study.records import recorded
from train.run.objectives import registered


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> TrialsConfig:
    root = tmp_path_factory.mktemp("objectives")
    (root / "source").mkdir()
    write_source(root / "source")
    names = ("simclr", "xclr-flat", "xclr", "vicreg-graph", "rank-flat", "simclr-graph", "xclr-two-graphs", "xclr-two-heads")
    config = TrialsConfig(
        source=root / "source",
        out=root / "out",
        records=root / "records.jsonl",
        names=names,
        seeds=1,
        budget=64,
        batch_size=32,
        encoder="hashing:32",
    )
    with short_evaluations():
        execute(config)
    return config


def test_table_of_the_documentation_is_that_of_its_records() -> None:
    docs = Path(__file__).resolve().parents[2] / "docs"
    assert table(docs / "objectives/records.jsonl") in (docs / "objectives.md").read_text(encoding="utf-8")


def test_every_objective_without_a_text_tower_has_an_arm() -> None:
    assert {trial.arm.objective for trial in TRIALS.values()} == set(registered()) - {"clip"}
    assert all(trial.twin is None or trial.twin in TRIALS for trial in TRIALS.values())


def test_every_run_has_one_record_of_its_scores_that_names_no_place(finished: TrialsConfig) -> None:
    lines = [json.loads(line) for line in finished.records.read_text().splitlines()]
    assert [line["arm"] for line in lines] == list(finished.names)
    for line in lines:
        evaluated = finished.out / "runs" / line["arm"] / "seed-0" / "eval.json"
        found = json.loads(evaluated.read_text())["scores"]["trained"]["name"]
        assert line["scores"] == {name: found[name] for name in MEASURES}
    assert str(finished.out) not in finished.records.read_text()


def test_second_graph_is_mixed_or_has_a_head(finished: TrialsConfig) -> None:
    from train.run.folder import read_run_config

    mixed, headed = (read_run_config(finished.out / "runs" / f"xclr-two-{name}" / "seed-0") for name in ("graphs", "heads"))
    assert [Path(path).name for path in mixed.graphs] == ["prompts", "definitions"]
    assert [(head.name, head.weight) for head in headed.heads] == [("prompts", 0.5), ("definitions", 0.5)]


def test_started_again_it_makes_what_is_missing_alone(finished: TrialsConfig) -> None:
    before = finished.records.read_text().splitlines(keepends=True)
    # A line that a kill cut short is removed, and its run is recorded without being trained again.
    finished.records.write_text("".join(before[:-1]) + before[-1][:20])
    with short_evaluations():
        execute(finished)
    assert finished.records.read_text().splitlines(keepends=True) == before


def test_records_of_another_budget_are_refused(finished: TrialsConfig) -> None:
    with pytest.raises(ArtifactMismatch, match="simclr, seed 0: was made with steps 2, and 4 is asked for"):
        execute(replace(finished, budget=128))


def test_all_arms_of_a_seed_come_before_the_next_seed(finished: TrialsConfig) -> None:
    planned = planned_runs(replace(finished, seeds=2))
    assert [run.seed for run in planned] == [0] * len(finished.names) + [1] * len(finished.names)


def test_table_has_means_with_intervals_and_differences_paired_by_seed(tmp_path: Path) -> None:
    scores = {"xclr": (0.2, 0.3), "xclr-flat": (0.1, 0.1, 0.5), "simclr": (0.25,)}
    lines = [
        {"arm": arm, "seed": seed, "scores": dict.fromkeys(MEASURES, value), "options": {}, "made": {}}
        for arm, values in scores.items()
        for seed, value in enumerate(values)
    ]
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = {row.split(" | ")[0].strip("| "): row for row in table(path).splitlines()[2:]}
    assert set(rows) == set(scores)
    # Student's t of one degree of freedom, 12.706, times the standard error of 0.2 and 0.3, and of the differences 0.1 and 0.2.
    assert rows["xclr"].startswith("| xclr | 2 | xclr-flat | 25.0 ± 63.5 | +15.0 ± 63.5 |")
    assert rows["simclr"].startswith("| simclr | 1 |  | 25.0 |  |")
    assert recorded(path, "seed")[("xclr", 1)]["scores"]["knn_top1"] == 0.3
    done = CliRunner().invoke(objectives, ["--records", str(path), "--table"], catch_exceptions=False)
    assert done.output.strip() == table(path)
