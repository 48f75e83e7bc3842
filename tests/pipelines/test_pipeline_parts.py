"""Tables and bookkeeping of the recipes."""

from __future__ import annotations

import json
from pathlib import Path

from pipelines.common import run_holds, score_headings, score_rows, text_table
from train.config import TrainConfig
from train.results.compare.table import markdown_table

SCORES = {
    "a": {
        "trained": {"x": {"knn_top1": 0.5, "linear_top1": 0.625, "chance": 0.1}},
        "untrained": {"x": {"knn_top1": 0.2, "linear_top1": 0.3}},
    },
    "b": {"trained": {"x": {"knn_top1": 1.0, "linear_top1": 0.0, "chance": 0.1}}},
}


def test_score_rows_are_chance_the_untrained_net_and_every_run_in_percent() -> None:
    assert score_rows(SCORES, ("x",)) == [
        ["chance", "10.0", "10.0"],
        ["untrained", "20.0", "30.0"],
        ["a", "50.0", "62.5"],
        ["b", "100.0", "0.0"],
    ]


def test_every_table_row_has_a_cell_for_every_heading() -> None:
    headings = score_headings(("x",))
    assert all(len(row) == len(headings) for row in score_rows(SCORES, ("x",)))


def test_text_table_lines_are_of_one_width() -> None:
    assert len({len(line) for line in text_table(["name", "n"], [["a", "1.0"], ["bcdefg", "100.0"]]).splitlines()}) == 1


def test_markdown_table_reads_back_to_its_cells() -> None:
    lines = markdown_table(["name", "n"], [["a", "1.0"]]).splitlines()
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in lines] == [
        ["name", "n"],
        ["---", "---:"],
        ["a", "1.0"],
    ]


def _run(folder: Path, fingerprint: str | None) -> Path:
    folder.mkdir()
    (folder / "config.toml").write_text(TrainConfig(epochs=3, batch_size=32).to_toml())
    if fingerprint is not None:
        checkpoint = folder / "checkpoints/step-00000001"
        checkpoint.mkdir(parents=True)
        (checkpoint / "checkpoint.json").write_text(json.dumps({"position": {"fingerprint": fingerprint}}))
    return folder


def test_a_run_of_equal_options_and_data_is_kept(tmp_path: Path) -> None:
    assert run_holds(_run(tmp_path / "a", "f"), {"epochs": 3, "batch_size": 32}, "f")


def test_a_run_without_a_checkpoint_is_kept(tmp_path: Path) -> None:
    assert run_holds(_run(tmp_path / "a", None), {"epochs": 3}, "f")


def test_a_run_of_other_options_is_not_kept(tmp_path: Path) -> None:
    assert not run_holds(_run(tmp_path / "a", "f"), {"epochs": 4}, "f")


def test_a_run_on_other_data_is_not_kept(tmp_path: Path) -> None:
    assert not run_holds(_run(tmp_path / "a", "g"), {"epochs": 3}, "f")


def test_a_folder_without_a_run_is_not_kept(tmp_path: Path) -> None:
    assert not run_holds(tmp_path, {}, "f")
