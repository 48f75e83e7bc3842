"""The records of the confirmatory study against its plan, and what the page says of them against SciPy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pipelines.study.confirm import MEASURES, SETS, blocks, describe_scores, read_scores

DOCS = Path(__file__).resolve().parents[2] / "docs"
RECORDS = DOCS / "study/confirm/cpu.jsonl"


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RECORDS.read_text(encoding="utf-8").splitlines()]


def test_each_record_is_a_planned_run_and_none_stands_twice(records: list[dict[str, Any]]) -> None:
    planned = {(arm, block.number): block for block in blocks()[: SETS["cpu"].blocks] for arm in SETS["cpu"].arms}
    assert len({(record["arm"], record["block"]) for record in records}) == len(records)
    for record in records:
        block = planned[record["arm"], record["block"]]
        assert (record["fold"], record["options"]["seed"]) == (block.fold, block.seed)
        assert record["options"]["steps"] * record["options"]["batch_size"] == 79_872


def test_runs_of_a_block_were_made_alike_but_for_graph_and_temperature(records: list[dict[str, Any]]) -> None:
    for number in {record["block"] for record in records}:
        own = [record for record in records if record["block"] == number]
        alike = [{**record["options"], "graph_dir": "", "tau_s": 0.0} for record in own]
        assert all(options == alike[0] for options in alike)
        assert all(record["made"] == own[0]["made"] for record in own)


def test_reading_of_the_records_is_that_of_scipy_and_stands_on_the_page(records: list[dict[str, Any]]) -> None:
    lines = describe_scores(read_scores(RECORDS)[1], SETS["cpu"]).splitlines()
    scores = {(record["arm"], record["block"]): record["scores"] for record in records}
    whole = [number for number in range(12) if all((arm, number) in scores for arm in SETS["cpu"].arms)]
    assert lines[0].startswith(f"{len(whole)} of 12 blocks")
    tests = {}
    for measure in MEASURES:
        pairs = [[scores[arm, n][measure] for n in whole] for arm in ("definitions", "flat")]
        tests[measure] = stats.ttest_rel(*pairs).pvalue, float(np.mean(np.subtract(*pairs)))
    low, high = sorted(tests, key=lambda measure: tests[measure][0])
    corrected = {low: min(1.0, 2 * tests[low][0])}
    corrected[high] = max(corrected[low], tests[high][0])
    for measure, (_, mean) in tests.items():
        (said,) = [line for line in lines if line.startswith(f"primary: definitions - flat, {measure}")]
        assert f"{measure}: {100 * mean:+.2f}" in said
        assert f"corrected p {corrected[measure]:.3g}:" in said
    page = (DOCS / "study.md").read_text(encoding="utf-8")
    assert "\n".join(lines) in page
