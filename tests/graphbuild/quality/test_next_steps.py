"""What a finished command says to do next can be pasted: its words are one command's, and that command takes them."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from helpers_graph import clustered_vectors, write_graph

from graphbuild.cli import cli
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from train.cli import cli as train_cli

PROGRAMS: dict[str, click.Group] = {"graphbuild": cli, "train": train_cli}
COMMANDS = (
    "knn --k 5",
    "verify",
    "inspect",
    "advise --batch-size 16 --batches 1",
    "report --no-map --no-fidelity",
    "dedup --out OUT/kept.parquet",
    "sample --count 5 --out OUT/chosen.parquet",
    "outliers --out OUT/far.parquet",
    "export --out OUT/edges.npz",
)


@pytest.fixture(scope="module")
def graph_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a graph in a folder whose name has a space, as on many a desktop."""
    made = tmp_path_factory.mktemp("graphs") / "my captions"
    made.mkdir()
    write_graph(made, clustered_vectors(60, 8))
    build_knn(made, KnnConfig(k=5))
    return made


def next_of(output: str) -> list[list[str]]:
    """Return the words of each command of an answer's last lines."""
    lines = [line.removeprefix("next: ") for line in output.splitlines() if line.startswith("next: ")]
    return [shlex.split(command) for line in lines for command in line.split(" | ")]


def answer_of(line: str, graph_dir: Path, out: Path) -> str:
    words = [word.replace("OUT", str(out)) for word in shlex.split(line)]
    outcome = CliRunner().invoke(cli, [*words, "--graph-dir", str(graph_dir)])
    assert outcome.exit_code == 0, outcome.output
    return outcome.output


def require_taken(words: list[str]) -> click.Context:
    program, name, *arguments = words
    return PROGRAMS[program].commands[name].make_context(name, arguments)


@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: line.split()[0])
def test_the_next_command_is_taken_as_it_stands(line: str, graph_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "my results"
    out.mkdir()
    commands = next_of(answer_of(line, graph_dir, out))
    assert commands
    for words in commands:
        if words[0] in PROGRAMS:
            # A training takes several graphs.
            assert require_taken(words).params["graph_dir"] in (graph_dir, (str(graph_dir),))
    if line.startswith("export"):
        assert commands == [["in", "Python,", f"scipy.sparse.load_npz({out / 'edges.npz'})"]]


def test_of_two_graphs_each_can_be_looked_at_or_both_fused(graph_dir: Path) -> None:
    outcome = CliRunner().invoke(cli, ["compare", str(graph_dir), str(graph_dir)])
    assert outcome.exit_code == 0, outcome.output
    *looks, fused = next_of(outcome.output)
    assert [Path(require_taken(words).params["graph_dir"]) for words in looks] == [graph_dir, graph_dir]
    assert require_taken(fused).params["graphs"] == (graph_dir, graph_dir)
