"""Making the runs of the confirmatory study: what a block shares, what is recorded, and going on after a kill."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from helpers_study import NAMES, short_evaluations, write_source

from graphbuild.errors import ArtifactMismatch
from graphbuild.store.graph import Graph
from pipelines.study.confirm import MEASURES, SETS, RunSet, blocks, confirm, fold_classes, read_scores
from pipelines.study.confirm_runs import ConfirmConfig, confirm_runs, execute, prepare_block
from pipelines.study.records import append_record, recorded
from train.config.files import load_config

TRIED = RunSet(arms=("supcon", "flat", "definitions", "permuted", "wordnet"), blocks=2, budget=64, primary=SETS["cpu"].primary)


def configure(source: Path, out: Path, run_set: RunSet = TRIED) -> ConfirmConfig:
    return ConfirmConfig(
        source=source, out=out, records=out / "records", name="cpu", run_set=run_set, batch_size=32, encoder="hashing:32"
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source")
    write_source(root)
    return root


@pytest.fixture(scope="module")
def finished(source: Path, tmp_path_factory: pytest.TempPathFactory) -> ConfirmConfig:
    config = configure(source, tmp_path_factory.mktemp("confirm"))
    with short_evaluations():
        execute(config)
    return config


def test_every_planned_run_has_one_record_which_holds_the_measures_and_names_no_place(finished: ConfirmConfig) -> None:
    lines = [json.loads(line) for line in finished.file.read_text().splitlines()]
    assert [(line["block"], line["arm"]) for line in lines] == [(block, arm) for block in (0, 1) for arm in TRIED.arms]
    for line in lines:
        # Of so few classes none is mistaken, which leaves no severity.
        assert {*MEASURES, "superclass_p10"} <= set(line["scores"])
        assert (line["fold"], line["options"]["seed"]) == (line["block"], 100 + line["block"])
    assert str(finished.out) not in finished.file.read_text()


def test_records_are_the_scores_that_the_evaluation_of_each_run_wrote(finished: ConfirmConfig) -> None:
    for (arm, number), record in recorded(finished.file, "block").items():
        run = finished.folder(record["fold"]) / "runs" / arm / f"seed-{100 + number}"
        found = json.loads((run / "eval.json").read_text())["scores"]["trained"]["name"]
        assert record["scores"] == {name: found[name] for name in record["scores"]}
        assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["images_seen"] == TRIED.budget


def test_runs_of_a_block_differ_in_graph_objective_and_tau_s_alone(finished: ConfirmConfig) -> None:
    configs = [load_config(path, {}) for path in sorted((finished.folder(0) / "runs").glob("*/seed-100/config.toml"))]
    assert len(configs) == len(TRIED.arms)
    alike = [replace(config, graph_dir=None, objective="simclr", tau_s=0.1, absent=None, label_column=None) for config in configs]
    assert all(config == alike[0] for config in alike)


def test_graphs_hold_what_their_arms_mean_and_are_equally_soft(source: Path, finished: ConfirmConfig) -> None:
    planned = prepare_block(finished, blocks()[1])
    assert set(pl.read_parquet(planned.data.seen)["name"]) == set(NAMES) - set(fold_classes(NAMES, 1))
    stored, masses = {}, {}
    for arm in TRIED.arms[1:]:
        run = planned.runs[arm].arm
        graph = Graph.open(finished.folder(1) / "graphs" / run.graph)
        rows, matrix = graph.rows(np.arange(8)), np.ones((8, 8))
        np.put_along_axis(matrix, rows.neighbor_ids, rows.similarities.astype(float), axis=1)
        stored[arm] = matrix[~np.eye(8, dtype=bool)]
        weights = np.exp((matrix - 1) / run.options["tau_s"])
        masses[arm] = float((1 / weights.sum(axis=1)).mean())
    assert np.ptp(stored["flat"]) == 0
    assert stored["flat"].mean() == pytest.approx(stored["definitions"].mean(), abs=1e-3)
    np.testing.assert_array_equal(np.sort(stored["permuted"]), np.sort(stored["definitions"]))
    assert not np.array_equal(stored["permuted"], stored["definitions"])
    assert planned.runs["definitions"].arm.options["tau_s"] == pytest.approx(0.15)
    assert np.ptp(list(masses.values())) < 2e-3


def test_a_second_call_makes_nothing_and_a_lost_record_is_made_again_alike(finished: ConfirmConfig, tmp_path: Path) -> None:
    before = finished.file.read_text()
    execute(finished)
    assert finished.file.read_text() == before
    shutil.copytree(finished.out, tmp_path / "copy")
    moved = replace(finished, out=tmp_path / "copy", records=tmp_path / "copy/records")
    lines = before.splitlines(keepends=True)
    shutil.rmtree(moved.folder(1) / "runs/permuted")
    # As a process that was killed while it wrote leaves it.
    moved.file.write_text("".join(line for line in lines if json.loads(line)["arm"] != "permuted") + '{"set": "cp')
    with short_evaluations():
        execute(moved)
    assert sorted(moved.file.read_text().splitlines(keepends=True)) == sorted(lines)


def test_records_of_another_budget_are_refused(finished: ConfirmConfig, tmp_path: Path) -> None:
    more = replace(finished, run_set=replace(TRIED, budget=128, arms=(*TRIED.arms, "prompts")), out=tmp_path)
    with pytest.raises(ArtifactMismatch, match=r"cpu\.jsonl: block 0, supcon: was made with steps 2, and 4 is asked for"):
        execute(more)


def test_reading_of_records_is_that_of_their_scores_and_says_how_many_blocks_there_are(finished: ConfirmConfig) -> None:
    name, scores = read_scores(finished.file)
    assert name == "cpu"
    gaps = [scores["definitions"]["linear_top1"][block] - scores["flat"]["linear_top1"][block] for block in (0, 1)]
    said = CliRunner().invoke(confirm, ["--scores", str(finished.file)], catch_exceptions=False).output.splitlines()
    assert said[0] == "2 of 12 blocks, 80,000 images a run, small"
    assert f"primary: definitions - flat, linear_top1: {100 * np.mean(gaps):+.2f}" in said[2]
    assert "text helps: not to be said of this set, whatever comes out" in said


def test_a_block_that_was_cut_short_does_not_count(finished: ConfirmConfig, tmp_path: Path) -> None:
    lines = finished.file.read_text().splitlines(keepends=True)
    kept = [line for line in lines if (json.loads(line)["arm"], json.loads(line)["block"]) != ("permuted", 1)]
    (tmp_path / "cpu.jsonl").write_text("".join(kept))
    scores = read_scores(tmp_path / "cpu.jsonl")[1]
    assert {tuple(values) for measures in scores.values() for values in measures.values()} == {(0,)}


def test_an_unfinished_line_is_removed_before_the_next_is_added(tmp_path: Path) -> None:
    path = tmp_path / "new/full.jsonl"
    append_record(path, {"arm": "flat", "block": 0})
    path.write_text(path.read_text() + '{"arm": "fl')
    append_record(path, {"arm": "flat", "block": 1})
    assert list(recorded(path, "block")) == [("flat", 0), ("flat", 1)]
    assert path.read_text().count("\n") == 2


def test_dry_run_lists_the_first_blocks_and_what_is_done(finished: ConfirmConfig) -> None:
    listed = partial(CliRunner().invoke, confirm_runs, catch_exceptions=False)
    said = listed(["--data", "none", "--records", str(finished.records), "--blocks", "3", "--dry-run"]).output.splitlines()
    assert [line.split()[0] for line in said] == ["done"] * 6 + ["to"] * 3
    assert said[-1] == "to do  block 2 fold 2 seed 102 permuted"
