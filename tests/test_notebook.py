"""The notebook's code cells run in order, in a fresh folder, and leave what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "examples/look_at_a_graph.ipynb"


def test_every_code_cell_of_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in cells)
    session: dict[str, Any] = {}
    for cell in cells:
        exec("".join(cell["source"]), session)
    assert (tmp_path / "target.png").stat().st_size > 10_000
    assert session["targets"](session["ids"]).shape == (32, 32)
