"""Two commands on one graph directory, begun at staggered moments: nothing is lost; the graph is whole."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import click
import pytest
from helpers_forked import run_program


def run_pairs(tmp_path: Path, first_seed: int, count: int) -> list[dict[str, Any]]:
    """What became of pairs that a server of its own began."""
    done = run_program("from faults_pairs import main; main()", tmp_path / "pairs", first_seed, count, timeout=3600)
    assert done.returncode == 0, f"seed {first_seed}: {done.stderr[-2000:]}"
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.faults
def test_two_commands_at_once_leave_a_graph_that_holds_what_both_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = int(os.environ.get("FAULT_SEED", random.SystemRandom().randrange(1_000_000)))
    trials = run_pairs(tmp_path, first, 200)
    ends = Counter(end for trial in trials for end in trial["ends"])
    with capsys.disabled():
        click.echo(f"\ninterleavings: seeds {first} to {first + 199}; ends: {dict(sorted(ends.items()))}")
    problems = [f"{trial}" for trial in trials if trial["problem"]]
    assert not problems, "\n".join(problems)
    assert len(trials) == 200
