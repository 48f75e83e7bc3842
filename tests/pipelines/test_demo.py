"""The demo at a tiny size, as a process of its own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from helpers_forked import run_module

SMALL = ("--epochs", "1", "--train-pictures", "128", "--val-pictures", "64", "--batch-size", "64", "--encoder", "hashing:64")
REPORT = Path("runs/demo/report.html")


def _demo(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    done = run_module("pipelines.demo", *SMALL, *options, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def first(folder: Path) -> str:
    return _demo(folder).stdout


@pytest.fixture(scope="module")
def second(folder: Path, first: str) -> str:
    return _demo(folder).stdout


def test_last_line_names_the_report(folder: Path, first: str) -> None:
    assert str(REPORT) in first.splitlines()[-1]
    assert (folder / REPORT).is_file()


def test_nearest_classes_of_a_few_are_shown(first: str) -> None:
    assert "nearest to school bus: " in first


def test_table_has_chance_the_untrained_net_and_both_objectives(first: str) -> None:
    table = [line.split() for line in first.splitlines()]
    rows = {words[0]: words[1:] for words in table if words and words[0] in ("chance", "untrained", "simclr", "xclr")}
    assert set(rows) == {"chance", "untrained", "simclr", "xclr"}
    assert all(0 <= float(cell) <= 100 for cells in rows.values() for cell in cells)
    assert {len(cells) for cells in rows.values()} == {6}


def test_both_runs_saw_equally_many_images(folder: Path, first: str) -> None:
    seen = [
        json.loads((folder / f"runs/demo/{name}/metrics.jsonl").read_text().splitlines()[-1])["images_seen"]
        for name in ("simclr", "xclr")
    ]
    assert seen[0] == seen[1] > 0


def test_demo_says_that_its_pictures_are_drawn(folder: Path, first: str) -> None:
    assert "pictures are drawn" in first
    assert "synthetic" in (folder / REPORT).read_text()


def test_report_is_one_file_that_refers_to_nothing_outside(folder: Path, first: str) -> None:
    html = (folder / REPORT).read_text()
    assert "http:" not in html
    assert "https:" not in html
    assert "<script" not in html
    assert html.count("data:image/png;base64,") > 20


def test_report_shows_curves_matrices_and_neighbours(folder: Path, first: str) -> None:
    html = (folder / REPORT).read_text()
    assert all(words in html for words in ("Excess loss", "similarity matrix", "Nearest neighbours", "hit rate"))


@pytest.mark.slow
def test_second_run_reuses_graphs_runs_and_scores(second: str) -> None:
    assert second.count("nothing to do") >= 4
    assert second.count("was finished before") == 2
    assert second.count("evaluated before, reused") == 2
    assert str(REPORT) in second.splitlines()[-1]
