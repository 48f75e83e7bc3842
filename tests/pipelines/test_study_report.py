"""docs/study.md: every table of it is what its command prints from the records beside it, and the README's comes from them."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from click.testing import CliRunner

from pipelines.study.data import StudyData
from pipelines.study.execute import Study, StudyConfig
from pipelines.study.figure import draw_gaps
from pipelines.study.plan import controls
from pipelines.study.tables import write_gaps_figure, write_tables
from train.cli import cli
from train.config import ModelName
from train.results.compare.differences import Difference
from train.results.compare.table import compare
from train.run.checkpoint import CONFIG_FILE
from train.run.folder import EVAL_FILE

ROOT = Path(__file__).resolve().parents[2]
REPORT = (ROOT / "docs/study.md").read_text(encoding="utf-8")
RECORDS = ROOT / "docs/study/runs"
COMMANDS = [code for code in re.findall(r"^```sh\n(.*?)^```", REPORT, flags=re.MULTILINE | re.DOTALL) if code.startswith("train ")]


@pytest.mark.parametrize("command", COMMANDS)
def test_table_is_what_its_command_prints(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    # The shell expands the names of runs, as it would for a reader; the command itself runs here.
    shell = f"train() {{ printf '%s\\n' \"$@\"; }}\n{command}"
    arguments = subprocess.run(["bash", "-euc", shell], capture_output=True, text=True, check=True).stdout.splitlines()
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert REPORT.count(f"```sh\n{command}```\n\n{done.stdout.strip()}\n") == 1, done.stdout


def test_report_has_tables_to_check_and_nothing_left_to_fill_in() -> None:
    assert len(COMMANDS) >= 7
    assert "@" not in REPORT.replace("P@10", "")


def scores(arm: str, measure: str) -> dict[str, float]:
    """By seed."""
    found = {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in (RECORDS / arm).glob(f"*/{EVAL_FILE}")}
    return {seed: one["scores"]["trained"]["name"][measure] for seed, one in found.items()}


def test_gaps_are_those_of_the_records(tmp_path: Path) -> None:
    write_tables(RECORDS, tmp_path)
    table = (tmp_path / "gaps.md").read_text(encoding="utf-8").strip()
    assert table in REPORT
    own, shuffled = (scores(f"xclr-definitions{name}-tau_s-0.15", "superclass_p10") for name in ("", "-shuffled"))
    gaps = [100 * (own[seed] - shuffled[seed]) for seed in sorted(own)]
    low, high = scipy.stats.t.interval(0.95, len(gaps) - 1, np.mean(gaps), scipy.stats.sem(gaps))
    (row,) = [line for line in table.splitlines() if line.startswith("| xclr-definitions-tau_s-0.15 ")]
    assert row.split(" | ")[5] == f"+{np.mean(gaps):.2f} ± {(high - low) / 2:.2f}"


def test_picture_of_gaps_tells_what_is_told_apart_from_what_is_not_and_from_single_runs(tmp_path: Path) -> None:
    errors = (0.005, 0.02, None)
    apart, alike, single = (Difference(0.01, half and half / scipy.stats.t.ppf(0.975, 4), 4, True) for half in errors)
    figure = draw_gaps({name: {"linear_top1": one} for name, one in (("a", apart), ("b", alike), ("c", single))})
    (drawn,) = [axes for axes in figure.axes if axes.get_title() == "linear probe"]
    points, bars = zip(*((bar.lines[0], bar.lines[2][0]) for bar in drawn.containers), strict=True)
    assert [point.get_xdata()[0] for point in points] == [1.0] * 3
    assert [bar.get_segments()[0][:, 0].tolist() for bar in bars] == [[0.5, 1.5], [-1.0, 3.0], [1.0, 1.0]]
    assert [point.get_markerfacecolor() for point in points] == ["C0", "0.6", "white"]
    write_gaps_figure(RECORDS, tmp_path)
    assert (tmp_path / "gaps.png").read_bytes().startswith(b"\x89PNG")


def test_each_control_belongs_to_the_arm_whose_graph_was_shuffled() -> None:
    assert {arm.name: control.name for arm, control in controls()} == {
        "xclr": "xclr-shuffled",
        "xclr-wordnet-tau_s-0.1": "xclr-wordnet-shuffled-tau_s-0.1",
        "xclr-wordnet-tau_s-0.2": "xclr-wordnet-shuffled-tau_s-0.2",
        "xclr-definitions": "xclr-definitions-shuffled",
        "xclr-definitions-tau_s-0.15": "xclr-definitions-shuffled-tau_s-0.15",
        "xclr-centred-tau_s-0.15": "xclr-centred-shuffled-tau_s-0.15",
        "xclr-tau_s-0.05": "xclr-shuffled-tau_s-0.05",
        "xclr-tau_s-0.2": "xclr-shuffled-tau_s-0.2",
        "flickr-xclr": "flickr-xclr-shuffled",
    }


@pytest.mark.parametrize(
    ("folder", "model", "budget"), [("runs", "small", 320_000), ("resnet18", "resnet18", 320_000), ("quarter", "small", 80_000)]
)
def test_records_are_of_the_study_as_it_is_planned(folder: str, model: ModelName, budget: int, tmp_path: Path) -> None:
    records = ROOT / "docs/study" / folder
    assert list(records.glob(f"*/seed-0/{EVAL_FILE}"))
    config = StudyConfig(out=tmp_path, budget=budget, batch_size=256, encoder="all-MiniLM-L6-v2", model=model, records=records)
    Study(config, StudyData(tmp_path, tmp_path)).check()


def test_every_record_says_its_precision_and_no_place() -> None:
    records = sorted((ROOT / "docs/study").glob(f"*/*/seed-*/{EVAL_FILE}"))
    assert len(records) > 70
    for path in records:
        config = (path.parent / CONFIG_FILE).read_text(encoding="utf-8")
        assert re.match(r"# Trained in (bfloat16|float32)\.\n", config)
        assert set(re.findall(r'= "(.*/.*)"', config)) <= {f"all-MiniLM-L6-v2/{name}" for name in _graphs()}
        assert "/" not in path.read_text(encoding="utf-8").replace("image/", "")


def _graphs() -> set[str]:
    from pipelines.study.plan import ARMS

    return {arm.graph for arm in ARMS}


def test_table_of_the_readme_comes_from_the_records() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| \| untrained \|.*?\n\n", readme, flags=re.MULTILINE | re.DOTALL)
    arms = ("simclr", "supcon", "xclr-shuffled", "xclr", "xclr-definitions-shuffled-tau_s-0.15", "xclr-definitions-tau_s-0.15")
    found = compare([run for arm in arms for run in sorted((RECORDS / arm).glob("seed-*"))])
    texts = {(cell.arm, cell.measure): cell.text().rstrip(" ≈") for cell in found.cells}
    bare = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((RECORDS / "simclr").glob(f"seed-*/{EVAL_FILE}"))]
    measures = {
        "linear probe": "linear_top1",
        "superclass P@10": "superclass_p10",
        "5-shot, held-out classes": "few_shot_logistic_5",
    }
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.strip().splitlines()[2:]]
    assert [row[0] for row in rows] == list(measures)
    for title, untrained, *cells in rows:
        measure = measures[title]
        assert cells == [texts[arm, measure] for arm in arms]
        mean = sum(one["scores"]["untrained"]["name"][measure] for one in bare) / len(bare)
        assert untrained == f"{100 * mean:.1f}"
