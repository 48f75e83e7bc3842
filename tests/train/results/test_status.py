"""`train status`: where runs stand, and how to go on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from graphbuild.errors import OptionError
from train.cli import cli
from train.results.status import runs_status


def make_run(folder: Path, *, steps: int, checkpoint: int | None, finished: bool = False, evaluated: bool = False) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text('objective = "simclr"\nsteps = 100\n')
    lines = [json.dumps({"step": step, "loss": 5 - step / 100, "images_per_s": 10.0}) for step in range(10, steps + 1, 10)]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    if checkpoint is not None:
        (folder / f"checkpoints/step-{checkpoint:08d}").mkdir(parents=True)
    for name, there in (("model.safetensors", finished), ("eval.json", evaluated)):
        if there:
            (folder / name).write_text("{}")
    return folder


def test_each_state_has_its_next_command(tmp_path: Path) -> None:
    begun = make_run(tmp_path / "begun", steps=0, checkpoint=None)
    stopped = make_run(tmp_path / "stopped", steps=40, checkpoint=30)
    finished = make_run(tmp_path / "finished", steps=100, checkpoint=100, finished=True)
    evaluated = make_run(tmp_path / "evaluated", steps=100, checkpoint=100, finished=True, evaluated=True)
    found = runs_status([begun, stopped, finished, evaluated]).runs
    assert [one.state for one in found] == ["begun", "unfinished", "finished", "evaluated"]
    assert [(one.step, one.checkpoint) for one in found] == [(0, None), (40, 30), (100, 100), (100, 100)]
    assert found[1].loss == pytest.approx(4.6)
    assert found[1].next == f"train run --config {stopped}/config.toml --run-dir {stopped}"
    assert [one.next for one in found[2:]] == [f"train eval {finished}", f"train report {evaluated}"]


def test_without_names_all_runs_are_listed_and_none_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match="no run under runs/"):
        runs_status([])
    make_run(tmp_path / "runs/simclr-1", steps=10, checkpoint=None)
    answer = CliRunner().invoke(cli, ["status", "--json"])
    assert [one["run_dir"] for one in json.loads(answer.output)] == ["runs/simclr-1"]
    with pytest.raises(OptionError, match="not the folder of a run"):
        runs_status([tmp_path])
