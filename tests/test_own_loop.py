"""docs/own-loop.md by itself: a user's captions and pictures, every command and every snippet, in order, in one session."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from helpers_pictures import write_pictures

from graphbuild.cli import cli

DOC = (Path(__file__).resolve().parents[1] / "docs/own-loop.md").read_text(encoding="utf-8")
README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```", DOC, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Names that are there after the last snippet, and what was printed."""
    folder = write_pictures(tmp_path_factory.mktemp("newcomer"), 70)
    pa_csv.write_csv(pq.read_table(folder / "captions.parquet"), folder / "captions.csv")
    names: dict[str, Any] = {"printed": []}
    names["print"] = lambda *values: names["printed"].append(values[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # The first snippet is the loop alone; it runs at the end, with the loader and model of the others.
        for number, (language, code) in enumerate([*BLOCKS[1:], BLOCKS[0]]):
            if language == "sh":
                for line in code.strip().splitlines():
                    CliRunner().invoke(cli, shlex.split(line)[1:], catch_exceptions=False)
            else:
                exec(compile(code, f"own-loop snippet {number}", "exec"), names)
    return names


def test_every_snippet_runs_and_the_loss_is_a_number(session: dict[str, Any]) -> None:
    losses = [line for line in session["printed"] if str(line).startswith("loss")]
    assert len(losses) == 2
    assert all(0 < float(line.split()[1]) < 10 for line in losses)
    assert 0 < session["loss"].item() < 10


def test_what_is_printed_is_what_the_text_says(session: dict[str, Any]) -> None:
    printed = session["printed"]
    assert "70 of 71 are known" in printed
    (described,) = [line for line in printed if isinstance(line, dict)]
    assert set(described) == {"own_view_mass", "target_entropy", "effective_positives", "hit_rate", "kl_to_dense"}
    assert all(f"`{name}`" in DOC for name in described)
    assert session["similarity"].shape == (3, 3)


def test_readme_shows_the_same_six_lines_on_its_first_screen() -> None:
    code = BLOCKS[0][1]
    assert len([line for line in code.splitlines() if line]) <= 7
    assert code in README[: README.index("## A graph")]
