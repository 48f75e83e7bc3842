"""docs/study.md: every table of it is what its command prints from the records beside it, and the README's comes from them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.study.data import StudyData
from pipelines.study.execute import Study, StudyConfig
from pipelines.study.plan import controls
from pipelines.study.tables import write_tables
from train.compare.arms import EVAL_FILE
from train.compare.table import compare
from train.config import ModelName
from train.runs import CONFIG_FILE

ROOT = Path(__file__).resolve().parents[2]
REPORT = (ROOT / "docs/study.md").read_text(encoding="utf-8")
RECORDS = ROOT / "docs/study/runs"
COMMANDS = [code for code in re.findall(r"^```sh\n(.*?)^```", REPORT, flags=re.MULTILINE | re.DOTALL) if code.startswith("train ")]


@pytest.mark.parametrize("command", COMMANDS)
def test_table_is_what_its_command_prints(command: str) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-euc", command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert REPORT.count(f"```sh\n{command}```\n\n{done.stdout.strip()}\n") == 1, done.stdout


def test_report_has_tables_to_check() -> None:
    assert len(COMMANDS) >= 7


def test_gaps_are_those_of_the_records(tmp_path: Path) -> None:
    write_tables(RECORDS, tmp_path)
    assert (tmp_path / "gaps.md").read_text(encoding="utf-8").strip() in REPORT
    assert (tmp_path / "gaps.png").stat().st_size > 10_000


def test_controls_differ_from_their_arms_in_the_graph_alone() -> None:
    pairs = {arm.name: control for arm, control in controls()}
    assert pairs["xclr"].name == "xclr-shuffled"
    assert pairs["xclr-centred-tau_s-0.15"].graph == "prompts+centred-shuffled"
    assert all(arm.options == control.options for arm, control in controls())
    assert "xclr-dense" not in pairs


@pytest.mark.parametrize(("folder", "model"), [("runs", "small"), ("resnet18", "resnet18")])
def test_records_are_of_the_study_as_it_is_planned(folder: str, model: ModelName, tmp_path: Path) -> None:
    config = StudyConfig(
        out=tmp_path, budget=320_000, batch_size=256, encoder="all-MiniLM-L6-v2", model=model, records=ROOT / "docs/study" / folder
    )
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
