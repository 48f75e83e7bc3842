"""The benchmark of the search on a GPU, at a small size on the CPU device: its lines, without its timings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu


@pytest.fixture
def report(tmp_path: Path) -> gpu.Report:
    return gpu.Report(tmp_path / "gpu.jsonl", minutes=5)


def lines(tmp_path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_figure_is_a_line_and_rows_agree_with_float64(tmp_path: Path, report: gpu.Report) -> None:
    gpu.measure(report, [700], 8, 32, "cpu", "sweep")
    found = lines(tmp_path)
    assert not [line for line in found if "failed" in line]
    assert sum(str(line["what"]).startswith("tile ") for line in found) == 4
    engines = [line for line in found if str(line["what"]).startswith("engine 700")]
    assert [line["wrong_rows"] for line in engines] == [0, 0]
    assert [line["checked_rows"] for line in engines] == [300, 300]


def test_what_fails_and_what_no_time_is_left_for_are_lines_too(tmp_path: Path, report: gpu.Report) -> None:
    def broken() -> dict[str, object]:
        raise ValueError("no kernel")

    report.attempt("one", broken)
    report.attempt("two", dict, seconds=10_000)
    first, second = lines(tmp_path)
    assert first == {"what": "one", "failed": "ValueError: no kernel"}
    assert "s are left" in str(second["skipped"])


def test_synthetic_vectors_have_length_1_and_a_falling_spectrum() -> None:
    vectors = gpu.spectral_clusters(4_000, 64, torch.device("cpu")).double()
    assert (vectors.norm(dim=1) - 1).abs().max() < 2e-3
    energy = torch.linalg.eigvalsh(vectors.T @ vectors / 4_000).flip(0)
    assert energy[:16].sum() > 2 * energy[16:32].sum()
